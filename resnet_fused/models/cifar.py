"""ResNets for small images (He et al. 2015, arXiv:1512.03385, section 4.2; v2: arXiv:1603.05027).

A 3x3 stem at full resolution, then stages of two-convolution blocks; each stage except the first halves the resolution.
Global average pooling accepts any input size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..reference import BasicBlock, PlainBlock, PlainPreActBlock, PreActBlock, ZeroPadShortcut
from ._init import initialise

CIFAR_WIDTHS = (16, 32, 64)


class CifarResNet(nn.Module):
    """``(N, in_channels, H, W)`` in any floating dtype -> ``(N, num_classes)`` logits in that dtype.

    He et al. 2015 (arXiv:1512.03385, section 4.2). Stage ``layer<i + 1>`` has ``blocks[i]`` blocks of ``widths[i]``
    channels. ``shortcut`` selects how blocks of different shapes are joined: "A" subsamples and pads channels with
    zeros, "B" uses a 1x1 convolution and a norm. ``residual=False`` omits all shortcuts: the plain network that the
    paper compares with.

    Raises:
        ValueError: ``shortcut`` is neither "A" nor "B".
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = CIFAR_WIDTHS,
        residual: bool = True,
        shortcut: str = "A",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.stages = _add_stages(self, BasicBlock if residual else PlainBlock, blocks, widths, shortcut)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def _stem(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, widths[0], H, W); convert() fuses it
        return self.relu(self.bn1(self.conv1(x)))

    def _features(self, x: Tensor) -> Tensor:  # all before pooling; convert() runs it in channels_last
        x = self._stem(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return x

    def _head(self, x: Tensor) -> Tensor:  # (N, widths[-1], h, w) -> (N, num_classes); convert() fuses it
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._head(self._features(x))


class CifarPreActResNet(nn.Module):
    """The pre-activation (v2) form of :class:`CifarResNet` (arXiv:1603.05027), with the same arguments and errors.

    Norm and ReLU precede each convolution. The stem is a convolution alone, and ``bn1`` and ``relu`` follow the last
    stage, before pooling. The projection of ``shortcut="B"`` is a 1x1 convolution without a norm.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int] = CIFAR_WIDTHS,
        residual: bool = True,
        shortcut: str = "A",
        num_classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel_size=3, padding=1, bias=False)
        self.stages = _add_stages(self, PreActBlock if residual else PlainPreActBlock, blocks, widths, shortcut)
        self.bn1 = nn.BatchNorm2d(widths[-1])
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(widths[-1], num_classes)
        initialise(self)

    def _stem(self, x: Tensor) -> Tensor:  # (N, in_channels, H, W) -> (N, widths[0], H, W); convert() fuses it
        return self.conv1(x)

    def _tail(self, x: Tensor) -> Tensor:  # (N, widths[-1], h, w), same shape out; convert() fuses it
        return self.relu(self.bn1(x))

    def _features(self, x: Tensor) -> Tensor:  # all before pooling; convert() runs it in channels_last
        x = self._stem(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        return self._tail(x)

    def _head(self, x: Tensor) -> Tensor:  # (N, widths[-1], h, w) -> (N, num_classes); convert() fuses it
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._head(self._features(x))


def cifar_resnet(
    depth: int,
    preact: bool = False,
    residual: bool = True,
    shortcut: str = "A",
    num_classes: int = 10,
    in_channels: int = 3,
) -> CifarResNet | CifarPreActResNet:
    """The paper's network of ``depth`` = 6n + 2 layers: three stages of n blocks with 16, 32 and 64 channels.

    ``cifar_resnet(20)`` has 0.27 million parameters, ``cifar_resnet(110)`` has 1.7 million. ``shortcut="A"`` adds none.
    ``preact=True`` gives the pre-activation network of arXiv:1603.05027. Shapes are those of :class:`CifarResNet`.

    >>> sum(p.numel() for p in cifar_resnet(20).parameters())
    269722

    Raises:
        ValueError: ``depth`` is not 6n + 2 with n >= 1, or ``shortcut`` is neither "A" nor "B".
    """
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110, ...), got {depth}")
    network = CifarPreActResNet if preact else CifarResNet
    return network([n] * 3, CIFAR_WIDTHS, residual, shortcut, num_classes, in_channels)


Block = type[BasicBlock] | type[PreActBlock]


def _add_stages(
    model: nn.Module, block: Block, blocks: Sequence[int], widths: Sequence[int], shortcut: str
) -> list[str]:
    """Adds ``model.layer1``, ``model.layer2``, ...; returns their names."""
    names = []
    channels = widths[0]
    for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
        stride = 1 if i == 0 else 2
        first = block(channels, width, stride, _downsample(block, channels, width, stride, shortcut))
        rest = [block(width, width) for _ in range(1, count)]
        channels = width
        names.append(f"layer{i + 1}")
        model.add_module(names[-1], nn.Sequential(first, *rest))
    return names


def _downsample(block: Block, inplanes: int, planes: int, stride: int, shortcut: str) -> nn.Module | None:
    if shortcut not in ("A", "B"):
        raise ValueError(f'shortcut must be "A" (zero padding) or "B" (1x1 projection), got {shortcut!r}')
    if issubclass(block, PlainBlock | PlainPreActBlock) or (stride == 1 and inplanes == planes):
        return None
    if shortcut == "A":
        return ZeroPadShortcut(inplanes, planes, stride)
    conv = nn.Conv2d(inplanes, planes, kernel_size=1, stride=stride, bias=False)
    return conv if issubclass(block, PreActBlock) else nn.Sequential(conv, nn.BatchNorm2d(planes))
