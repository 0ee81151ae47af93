"""Converted networks whose calls are replayed, and parts of them."""

import pytest
import torch
import torchvision_shim
from support import randomise
from torch import nn

import resnet_fused
from resnet_fused import models, modules, reference

torchvision_shim.install()
torchvision_models = pytest.importorskip("torchvision.models")


def stage():
    blocks = [reference.Bottleneck(32, 8) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.Sequential(*blocks), nn.ReLU())


NETWORKS = {
    "ResNet-18": lambda: torchvision_models.resnet18(num_classes=10),
    "ResNet-50": lambda: models.resnet50(num_classes=10),
    "ResNeXt": lambda: torchvision_models.resnet50(num_classes=10, groups=4, width_per_group=16),
    "CIFAR": lambda: models.small_resnet(10),
    "pre-activation": lambda: models.small_preact_resnet(10),
    "stage": stage,
}
FORMATS = [torch.contiguous_format, torch.channels_last]


def network(name="CIFAR", dtype=torch.float32, memory_format=torch.contiguous_format):
    torch.manual_seed(0)
    eager = randomise(NETWORKS[name]()).eval().to(dtype).to(memory_format=memory_format)
    return resnet_fused.convert(eager)


def image(dtype=torch.float32, size=32, batch=2, memory_format=torch.contiguous_format):
    return torch.randn(batch, 3, size, size).to(dtype).contiguous(memory_format=memory_format)


def call(module, x):
    with torch.no_grad():
        return module(x)


def warm(name="CIFAR"):
    """A network and an image whose next call is a replay."""
    fused, x = network(name), image()
    for _ in range(2):
        call(fused, x)
    return fused, x


def block(fused):
    return next(m for m in fused.modules() if isinstance(m, modules.FusedBlock))


def conv(fused):
    return next(m for m in block(fused).modules() if isinstance(m, nn.Conv2d))


def norm(fused):
    return next(m for m in block(fused).modules() if isinstance(m, nn.BatchNorm2d))


def first_stage(fused):
    return next(m for m in fused.modules() if type(m) is nn.Sequential)
