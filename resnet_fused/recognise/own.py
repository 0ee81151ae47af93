"""Recognisers of the blocks in :mod:`resnet_fused.reference` and the networks in :mod:`resnet_fused.models`."""

from typing import Any, ClassVar

from torch import Tensor

from .. import modules, reference
from ..chain.program import abandon
from ..models import cifar, resnet
from ..modules import FusedPreActEnds, FusedStem
from ..modules._eager import original_methods, replacement
from ..modules._head import run_head
from ._blocks import Recogniser


class _OwnHead:
    """A fused head for a network whose head is the method ``_head``, which may be patched."""

    _eager_class: ClassVar[Any]
    avgpool: Any
    fc: Any

    def _head(self, x: Tensor) -> Tensor:
        override = replacement(self, "_head")
        y = run_head(x, self.avgpool, self.fc) if override is None else None
        if y is not None:
            return y
        return self._eager_class._head(self, x)  # type: ignore[no-any-return]


class _OwnStem(FusedStem):
    """A fused stem for a network whose stem is the method ``_stem``, which may be overridden or patched."""

    def _stem(self, x: Tensor) -> Tensor:
        override = replacement(self, "_stem")
        if override is None:
            return super()._stem(x)
        abandon()
        return override(self, x)


class FusedResNet(_OwnHead, _OwnStem, resnet.ResNet):
    """:class:`resnet_fused.models.ResNet` with a fused stem and head."""

    _eager_class = resnet.ResNet
    _eager_methods = original_methods(resnet.ResNet, "forward", "_features", "_stem", "_head")

    def _features(self, x: Tensor) -> Tensor:
        override = replacement(self, "_features")
        if override is not None:
            return override(self, x)
        return self._features_of(x)


class FusedCifarResNet(_OwnHead, _OwnStem, cifar.CifarResNet):
    """:class:`resnet_fused.models.CifarResNet` with a fused stem (without pooling) and head."""

    _pools = False
    _eager_class = cifar.CifarResNet
    _eager_methods = original_methods(cifar.CifarResNet, "forward", "_features", "_stem", "_head")

    def _features(self, x: Tensor) -> Tensor:
        override = replacement(self, "_features")
        if override is not None:
            return override(self, x)
        return self._features_of(x, self.stages)


class FusedCifarPreActResNet(_OwnHead, FusedPreActEnds, cifar.CifarPreActResNet):
    """:class:`resnet_fused.models.CifarPreActResNet` with a fused final BatchNorm and ReLU, and head."""

    _eager_class = cifar.CifarPreActResNet
    _eager_methods = original_methods(cifar.CifarPreActResNet, "forward", "_features", "_stem", "_tail", "_head")

    def _features(self, x: Tensor) -> Tensor:
        override = replacement(self, "_features")
        if override is not None:
            return override(self, x)
        return self._features_of(x, self.stages)


RECOGNISERS = (
    Recogniser("basic block", reference.BasicBlock, modules.FusedBasicBlock),
    Recogniser("bottleneck", reference.Bottleneck, modules.FusedBottleneck),
    Recogniser("pre-activation block", reference.PreActBlock, modules.FusedPreActBlock),
    Recogniser("pre-activation bottleneck", reference.PreActBottleneck, modules.FusedPreActBottleneck),
    Recogniser("plain block", reference.PlainBlock, modules.FusedPlainBlock),
    Recogniser("plain pre-activation block", reference.PlainPreActBlock, modules.FusedPlainPreActBlock),
    Recogniser("stem", resnet.ResNet, FusedResNet),
    Recogniser("stem", cifar.CifarResNet, FusedCifarResNet),
    Recogniser("stem", cifar.CifarPreActResNet, FusedCifarPreActResNet),
)
