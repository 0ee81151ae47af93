"""A small residual network of any block, and what resnet_fused does with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused.models._init import initialise
from resnet_fused.reference import ZeroPadShortcut

MakeBlock = Callable[[int, int, int], nn.Module]  # (channels in, channels out, stride) -> block


class SmallResNet(nn.Module):
    """``(N, in_channels, H, W)`` float -> ``(N, 10)`` logits: a 3x3 stem, stages of blocks, mean over pixels, ``fc``.

    Stage i has ``counts[i]`` blocks of ``widths[i]`` channels, the first with ``strides[i]``. ``stem`` follows the
    first convolution and ``end`` the last stage; both get the number of channels.
    """

    def __init__(
        self,
        block: MakeBlock,
        counts: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        strides: Sequence[int] = (1, 2, 2),
        stem: Callable[[int], nn.Module] | None = None,
        end: Callable[[int], nn.Module] | None = None,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.stem = nn.Sequential(first, *([] if stem is None else [stem(widths[0])]))
        channels, stages = widths[0], []
        for count, width, stride in zip(counts, widths, strides, strict=True):
            stages.append(
                nn.Sequential(block(channels, width, stride), *(block(width, width, 1) for _ in range(1, count)))
            )
            channels = width
        self.stages = nn.Sequential(*stages)
        self.end = nn.Identity() if end is None else end(channels)
        self.fc = nn.Linear(channels, 10)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.end(self.stages(self.stem(x))).mean((2, 3)))


def norm_relu(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def shortcut(kind: str, inplanes: int, planes: int, stride: int, norm: bool = True) -> nn.Module | None:
    """He et al. 2015 (arXiv:1512.03385), section 4.1: "A" pads channels with zeros, "B" projects where the shape
    changes, "C" projects in every block. None stands for x itself. ``norm=False`` omits the projection's BatchNorm."""
    if (inplanes, stride) == (planes, 1) and kind != "C":
        return None
    if kind == "A":
        return ZeroPadShortcut(inplanes, planes, stride)
    conv = nn.Conv2d(inplanes, planes, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes)) if norm else conv


@dataclass(frozen=True)
class Fusing:
    """What ran fused: numbers of residual blocks, and the reason that ``report`` gives for the first refused one."""

    blocks: int
    inference: int
    training: int
    reason: str

    def __str__(self) -> str:
        if self.inference == self.training == self.blocks:
            return f"all {self.blocks}"
        return f"{self.training} of {self.blocks} in training, {self.inference} in inference"


def fusing(model: nn.Module, blocks: type[nn.Module] | tuple[type[nn.Module], ...], x: Tensor) -> Fusing:
    """Converts ``model`` and runs it; says how many of its modules of the types ``blocks`` ran fused.

    The reason is of ``report`` before conversion. Leaves the model in training mode.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, blocks)]
    before = resnet_fused.report(model)
    resnet_fused.convert(model, chains=True)
    with torch.no_grad():
        inference = resnet_fused.explain(model.eval(), x)
    training = resnet_fused.explain(model.train(), x)
    counts = [sum(name in runs and runs[name].how != "eager" for name in names) for runs in (inference, training)]
    reasons = [before[name].reason for name in names if name in before and before[name].status == "refused"]
    missing = [name for name in names if name not in before]
    reason = reasons[0] if reasons else "report() does not list it" if missing else ""
    return Fusing(len(names), *counts, reason)
