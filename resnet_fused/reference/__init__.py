"""Eager definitions of every op and block: the specification, and the fallback of the fused blocks.

Everything accepts any floating dtype and returns it, and any device; tests evaluate it in float64. Activations are
``(N, C, H, W)``, weights ``(K, C / groups, R, S)``; gamma, beta, mean and var, of a BatchNorm, are ``(C,)``.
``stride``, ``padding`` (pixels) and ``dilation`` are ints or (height, width). Sizes that do not fit raise torch's
``RuntimeError``. Imports torch only.
"""

from collections.abc import Callable
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from .ops import (
    CLOSED,
    avg_pool_linear,
    basic_block,
    bn_act_backward,
    bn_act_backward_reduce,
    bn_add_act,
    bn_add_act_backward_reduce,
    bn_add_bn_act,
    bn_relu_conv_bn_act,
    bn_relu_max_pool,
    bn_relu_max_pool_backward,
    bn_stats,
    conv_backward_input,
    conv_backward_reduce,
    conv_bn_act,
    conv_bn_proj_act,
    conv_bn_relu_pool,
    conv_stats,
)

__all__ = [
    "CLOSED",
    "BasicBlock",
    "Bottleneck",
    "PlainBlock",
    "PlainPreActBlock",
    "PreActBlock",
    "PreActBottleneck",
    "ZeroPadShortcut",
    "avg_pool_linear",
    "basic_block",
    "bn_act_backward",
    "bn_act_backward_reduce",
    "bn_add_act",
    "bn_add_act_backward_reduce",
    "bn_add_bn_act",
    "bn_relu_conv_bn_act",
    "bn_relu_max_pool",
    "bn_relu_max_pool_backward",
    "bn_stats",
    "conv_backward_input",
    "conv_backward_reduce",
    "conv_bn_act",
    "conv_bn_proj_act",
    "conv_bn_relu_pool",
    "conv_stats",
]

Norm = Callable[[int], nn.Module]


def _conv3x3(inplanes: int, planes: int, stride: int = 1, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 3, stride, dilation, dilation, groups, bias=False)


def _conv1x1(inplanes: int, planes: int) -> nn.Conv2d:
    return nn.Conv2d(inplanes, planes, 1, bias=False)


def _check_basic(name: str, groups: int, base_width: int, dilation: int) -> None:
    if groups != 1 or base_width != 64:
        raise ValueError(f"{name} supports groups=1 and base_width=64 only, got {groups} and {base_width}")
    if dilation > 1:
        raise NotImplementedError(f"{name} supports dilation=1 only, got {dilation}")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 left).

    ``(N, inplanes, H, W)`` gives ``(N, planes, ceil(H / stride), ceil(W / stride))``. Arguments, attributes and their
    order, and initialisation match ``torchvision.models.resnet.BasicBlock``.

    Raises:
        ValueError: ``groups != 1`` or ``base_width != 64``.
        NotImplementedError: ``dilation > 1``.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        _check_basic(type(self).__name__, groups, base_width, dilation)
        norm = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.conv1 = _conv3x3(inplanes, planes, stride)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(planes, planes)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PlainBlock(BasicBlock):
    """A BasicBlock without shortcut: the plain networks of He et al. 2015 (arXiv:1512.03385), section 3.3.

    The parameters are those of a BasicBlock. ``downsample`` is not used; do not pass one.
    """

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 5 right).

    The 3x3 convolution has the stride ("v1.5"). ``groups`` and ``base_width`` give the ResNeXt (arXiv:1611.05431) and
    wide (arXiv:1605.07146) variants. ``(N, inplanes, H, W)`` gives ``(N, 4 * planes, ceil(H / stride), ceil(W /
    stride))``. Arguments, attributes and their order, and initialisation match torchvision's.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if norm_layer is None else norm_layer
        width = int(planes * (base_width / 64.0)) * groups
        self.conv1 = _conv1x1(inplanes, width)
        self.bn1 = norm(width)
        self.conv2 = _conv3x3(width, width, stride, groups, dilation)
        self.bn2 = norm(width)
        self.conv3 = _conv1x1(width, planes * self.expansion)
        self.bn3 = norm(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (He et al. 2016, arXiv:1603.05027, figure 4e).

    ``downsample`` reads the pre-activated tensor ``relu(bn1(x))``; without it the shortcut is ``x``. Nothing follows
    the addition: the network ends with its own BatchNorm and ReLU. Raises the errors of :class:`BasicBlock`.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        _check_basic(type(self).__name__, groups, base_width, dilation)
        norm = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.bn1 = norm(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = _conv3x3(inplanes, planes, stride)
        self.bn2 = norm(planes)
        self.conv2 = _conv3x3(planes, planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(activated)))
        out = self.conv2(out)
        out += x if self.downsample is None else self.downsample(activated)
        return out


class PlainPreActBlock(PreActBlock):
    """A PreActBlock without shortcut. ``downsample`` is not used; do not pass one."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.conv1(self.relu(self.bn1(x)))))
        return self.conv2(out)


class PreActBottleneck(nn.Module):
    """BatchNorm and ReLU before each of 1x1, 3x3 and 1x1 convolutions (He et al. 2016, arXiv:1603.05027, section 4.2).

    The shortcut is as in :class:`PreActBlock`, the arguments are as in :class:`Bottleneck`.
    """

    expansion: ClassVar[int] = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Norm | None = None,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if norm_layer is None else norm_layer
        width = int(planes * (base_width / 64.0)) * groups
        self.bn1 = norm(inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = _conv1x1(inplanes, width)
        self.bn2 = norm(width)
        self.conv2 = _conv3x3(width, width, stride, groups, dilation)
        self.bn3 = norm(width)
        self.conv3 = _conv1x1(width, planes * self.expansion)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        out = self.relu(self.bn2(self.conv1(activated)))
        out = self.relu(self.bn3(self.conv2(out)))
        out = self.conv3(out)
        out += x if self.downsample is None else self.downsample(activated)
        return out


class ZeroPadShortcut(nn.Module):
    """A shortcut without parameters: subsamples pixels by ``stride`` and pads new channels with zeros.

    Option A of He et al. 2015 (arXiv:1512.03385, sections 3.3 and 4.2). ``(N, inplanes, H, W)`` gives ``(N, planes,
    ceil(H / stride), ceil(W / stride))``. Half of the new channels come before the existing ones, the rest after.

    Raises:
        ValueError: ``planes < inplanes``.
    """

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        if planes < inplanes:
            raise ValueError(f"ZeroPadShortcut adds channels, but planes={planes} is less than inplanes={inplanes}")
        self.inplanes, self.planes, self.stride = inplanes, planes, stride

    def extra_repr(self) -> str:
        return f"{self.inplanes}, {self.planes}, stride={self.stride}"

    def forward(self, x: Tensor) -> Tensor:
        before = (self.planes - self.inplanes) // 2
        after = self.planes - self.inplanes - before
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))
