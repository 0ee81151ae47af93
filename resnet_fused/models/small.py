"""Two networks that train in seconds, for experiments, examples and tests.

A 3x3 convolution to 16 channels, a block 16 -> 16, a block 16 -> 32 with stride 2, global average pooling and a linear
layer.
"""

from .cifar import CifarPreActResNet, CifarResNet

BLOCKS, WIDTHS = (1, 1), (16, 32)


def small_resnet(num_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """``(N, in_channels, H, W)`` of any size -> ``(N, num_classes)``. The shortcut is a 1x1 convolution and a BN."""
    return CifarResNet(BLOCKS, WIDTHS, shortcut="B", num_classes=num_classes, in_channels=in_channels)


def small_preact_resnet(num_classes: int = 10, in_channels: int = 3) -> CifarPreActResNet:
    """:func:`small_resnet` with pre-activation (v2) blocks; ends with BN and ReLU before pooling."""
    return CifarPreActResNet(BLOCKS, WIDTHS, shortcut="B", num_classes=num_classes, in_channels=in_channels)
