"""Eager networks built from :mod:`resnet_fused.reference` blocks; ``resnet_fused.convert`` fuses them.

ImageNet: ``resnet18`` ... ``resnet152`` (torchvision's parameter names). CIFAR-sized images: ``cifar_resnet(depth,
...)``. Small networks for experiments: ``small_resnet``, ``small_preact_resnet``.
"""

from .cifar import CifarPreActResNet, CifarResNet, cifar_resnet
from .resnet import ResNet, resnet18, resnet34, resnet50, resnet101, resnet152
from .small import small_preact_resnet, small_resnet

__all__ = [
    "CifarPreActResNet",
    "CifarResNet",
    "ResNet",
    "cifar_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "small_preact_resnet",
    "small_resnet",
]
