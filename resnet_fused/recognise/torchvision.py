"""Recognisers of torchvision's ResNet, ResNeXt and Wide ResNet. Imported only if torchvision already is."""

from torch import Tensor
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
    """A ResNet with a fused stem, and a fused head for few images."""

    _eager_class = resnet.ResNet
    _eager_methods = original_methods(resnet.ResNet, "forward", "_forward_impl")

    def _forward_impl(self, x: Tensor) -> Tensor:
        override = replacement(self, "_forward_impl")
        if override is not None:
            return override(self, x)
        return self._logits_of(x)


RECOGNISERS = (
    Recogniser("basic block", resnet.BasicBlock, FusedTorchvisionBasicBlock),
    Recogniser("bottleneck", resnet.Bottleneck, FusedTorchvisionBottleneck),
    Recogniser("stem", resnet.ResNet, FusedTorchvisionResNet),
)
