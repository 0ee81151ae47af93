"""The blocks of the study ``variants``: where ReLU and addition stand (He et al. 2016, arXiv:1603.05027, figure 4)."""

import torch.nn.functional as F
from torch import Tensor, nn

from resnet_fused.reference import BasicBlock, PreActBlock

from .common.networks import MakeBlock, SmallResNet, norm_relu, shortcut


class TwoConvolutions(nn.Module):
    """The layers that blocks (b) to (d) of the figure share with BasicBlock (a)."""

    def __init__(self, inplanes: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = nn.Identity() if downsample is None else downsample


class NormAfterAddition(TwoConvolutions):
    """Figure 4 (b)."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu(self.bn1(self.conv1(x))))
        return F.relu(self.bn2(out + self.downsample(x)))


class ReluBeforeAddition(TwoConvolutions):
    """Figure 4 (c)."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out))) + self.downsample(x)


class ReluOnlyPreActivation(TwoConvolutions):
    """Figure 4 (d)."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn1(self.conv1(F.relu(x)))
        return self.bn2(self.conv2(F.relu(out))) + self.downsample(x)


# name -> block, what follows the first convolution, what follows the last stage
PLACES: dict[str, tuple[type[nn.Module], object, object]] = {
    "original (v1)": (BasicBlock, norm_relu, None),
    "BatchNorm after addition": (NormAfterAddition, norm_relu, None),
    "ReLU before addition": (ReluBeforeAddition, norm_relu, None),
    "ReLU-only pre-activation": (ReluOnlyPreActivation, nn.BatchNorm2d, lambda channels: nn.ReLU()),
    "full pre-activation (v2)": (PreActBlock, None, norm_relu),
}
V1, *_, V2 = PLACES
BLOCKS = tuple(block for block, *_ in PLACES.values())


def _maker(block: type[nn.Module], option: str) -> MakeBlock:
    def make(inplanes: int, planes: int, stride: int) -> nn.Module:
        joined = shortcut(option, inplanes, planes, stride, norm=block is not PreActBlock)
        return block(inplanes, planes, stride, joined)

    return make


def build(
    place: str, n: int, option: str, widths: tuple[int, ...], strides: tuple[int, ...], channels: int
) -> nn.Module:
    """The network of 6n + 2 layers of the block ``place`` with shortcuts of ``option`` "A", "B" or "C"."""
    block, stem, end = PLACES[place]
    return SmallResNet(_maker(block, option), [n] * len(widths), widths, strides, stem, end, channels)
