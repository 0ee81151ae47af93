"""Recognisers of torchvision's ResNet, ResNeXt and Wide ResNet. Imported only if torchvision already is."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet

from ..modules import FusedBasicBlock, FusedBottleneck, FusedStem
from ..modules._eager import original_methods, replacement
from ._blocks import Recogniser


class FusedTorchvisionBasicBlock(FusedBasicBlock, resnet.BasicBlock):
    """A converted BasicBlock; ``isinstance`` with torchvision's class still holds."""

    _eager_class = resnet.BasicBlock
    _eager_methods = original_methods(resnet.BasicBlock, "forward")


class FusedTorchvisionBottleneck(FusedBottleneck, resnet.Bottleneck):
    """A converted Bottleneck; ``isinstance`` with torchvision's class still holds."""

    _eager_class = resnet.Bottleneck
    _eager_methods = original_methods(resnet.Bottleneck, "forward")


class FusedTorchvisionResNet(FusedStem, resnet.ResNet):
    """A ResNet with a fused stem; the layers after its stages run as in eager."""

    _eager_class = resnet.ResNet
    _eager_methods = original_methods(resnet.ResNet, "forward", "_forward_impl")
    avgpool: nn.Module
    fc: nn.Module

    def _forward_impl(self, x: Tensor) -> Tensor:
        override = replacement(self, "_forward_impl")
        if override is not None:
            return override(self, x)
        x = self._features_of(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


RECOGNISERS = (
    Recogniser("basic block", resnet.BasicBlock, FusedTorchvisionBasicBlock),
    Recogniser("bottleneck", resnet.Bottleneck, FusedTorchvisionBottleneck),
    Recogniser("stem", resnet.ResNet, FusedTorchvisionResNet),
)
