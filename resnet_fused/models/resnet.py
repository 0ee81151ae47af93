"""ResNet-18 to -152 for 224x224 images (He et al. 2015, arXiv:1512.03385, table 1), with v1.5 strides.

Parameter names, buffers, initialisation and arguments match torchvision's, so a state_dict loads in both directions.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import BasicBlock, Bottleneck
from ._init import initialise

WIDTHS = (64, 128, 256, 512)


class ResNet(nn.Module):
    """``(N, 3, H, W)`` images in any floating dtype -> ``(N, num_classes)`` logits in that dtype.

    He et al. 2015 (arXiv:1512.03385, table 1), with torchvision's arguments, names and initialisation. ``layers`` has
    the number of blocks of each stage. ``zero_init_residual`` starts each block as the identity (arXiv:1706.02677,
    section 5.1). ``groups`` and ``width_per_group`` are for bottlenecks (arXiv:1611.05431, arXiv:1605.07146).
    ``norm_layer`` is called with the number of channels. ``replace_stride_with_dilation`` has one flag each for layer2,
    layer3 and layer4 (dilated networks for segmentation).

    Raises:
        ValueError: ``replace_stride_with_dilation`` does not have 3 flags, or basic blocks get ``groups`` or
            ``width_per_group``.
        NotImplementedError: basic blocks are dilated.
    """

    def __init__(
        self,
        block: type[nn.Module],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        dilate = (False, False, False) if replace_stride_with_dilation is None else replace_stride_with_dilation
        if len(dilate) != 3:
            raise ValueError(f"replace_stride_with_dilation must hold 3 flags (layer2, layer3, layer4), got {dilate}")
        norm = nn.BatchNorm2d if norm_layer is None else norm_layer
        self.conv1 = nn.Conv2d(3, WIDTHS[0], kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm(WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

        build = _StageBuilder(block, WIDTHS[0], groups, width_per_group, norm)
        self.layer1 = build(WIDTHS[0], layers[0], stride=1, dilate=False)
        self.layer2 = build(WIDTHS[1], layers[1], stride=2, dilate=dilate[0])
        self.layer3 = build(WIDTHS[2], layers[2], stride=2, dilate=dilate[1])
        self.layer4 = build(WIDTHS[3], layers[3], stride=2, dilate=dilate[2])

        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(build.channels, num_classes)
        initialise(self, zero_init_residual)

    def _stem(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 64, H/4, W/4); convert() fuses it
        return self.maxpool(self.relu(self.bn1(self.conv1(x))))

    def _features(self, x: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, C, H/32, W/32); convert() runs it in channels_last
        return self.layer4(self.layer3(self.layer2(self.layer1(self._stem(x)))))

    def _head(self, x: Tensor) -> Tensor:  # (N, C, H/32, W/32) -> (N, num_classes); convert() fuses it
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._head(self._features(x))


class _StageBuilder:
    """Builds the stages in order and tracks the number of channels and the dilation."""

    def __init__(
        self,
        block: type[nn.Module],
        channels: int,
        groups: int,
        base_width: int,
        norm: Callable[..., nn.Module],
    ) -> None:
        self.block, self.channels, self.groups, self.base_width, self.norm = (
            block,
            channels,
            groups,
            base_width,
            norm,
        )
        self.dilation = 1

    def __call__(self, planes: int, blocks: int, stride: int, dilate: bool) -> nn.Sequential:
        # The first block of a dilated stage keeps the previous stage's dilation, as in torchvision.
        first_dilation = self.dilation
        if dilate:
            self.dilation *= stride
            stride = 1
        out_channels = planes * self.block.expansion  # type: ignore[attr-defined]
        downsample = None
        if stride != 1 or self.channels != out_channels:
            downsample = nn.Sequential(
                nn.Conv2d(self.channels, out_channels, kernel_size=1, stride=stride, bias=False),
                self.norm(out_channels),
            )
        stage = [self._block(planes, first_dilation, stride, downsample)]
        self.channels = out_channels
        stage += [self._block(planes, self.dilation) for _ in range(1, blocks)]
        return nn.Sequential(*stage)

    def _block(self, planes: int, dilation: int, stride: int = 1, downsample: nn.Module | None = None) -> nn.Module:
        return self.block(
            self.channels,
            planes,
            stride,
            downsample,
            self.groups,
            self.base_width,
            dilation,
            self.norm,
        )


def resnet18(num_classes: int = 1000, **kwargs: Any) -> ResNet:
    """ResNet-18: 11.7 million parameters with 1000 classes. ``kwargs`` are those of :class:`ResNet`, as below.

    >>> import torch
    >>> resnet18(num_classes=10).eval()(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    """
    return ResNet(BasicBlock, [2, 2, 2, 2], num_classes, **kwargs)


def resnet34(num_classes: int = 1000, **kwargs: Any) -> ResNet:
    """ResNet-34: 21.8 million parameters with 1000 classes."""
    return ResNet(BasicBlock, [3, 4, 6, 3], num_classes, **kwargs)


def resnet50(num_classes: int = 1000, **kwargs: Any) -> ResNet:
    """ResNet-50: 25.6 million parameters with 1000 classes. A stage's first 3x3 convolution has its stride (v1.5)."""
    return ResNet(Bottleneck, [3, 4, 6, 3], num_classes, **kwargs)


def resnet101(num_classes: int = 1000, **kwargs: Any) -> ResNet:
    """ResNet-101: 44.5 million parameters with 1000 classes."""
    return ResNet(Bottleneck, [3, 4, 23, 3], num_classes, **kwargs)


def resnet152(num_classes: int = 1000, **kwargs: Any) -> ResNet:
    """ResNet-152: 60.2 million parameters with 1000 classes."""
    return ResNet(Bottleneck, [3, 8, 36, 3], num_classes, **kwargs)
