"""The eager blocks of :mod:`resnet_fused.reference` and the networks of :mod:`resnet_fused.models`."""

from torch import Tensor

from .. import modules, reference
from ..models import cifar, resnet
from ..modules import FusedPreActEnds, FusedStem
from ._blocks import (
    Recogniser,
    refuse_pooled_stem,
    refuse_stem,
    refuse_three_convs,
    refuse_two_convs,
    refuse_two_plain_convs,
)


class FusedResNet(FusedStem, resnet.ResNet):
    """:class:`resnet_fused.models.ResNet` with a fused stem."""

    _eager_class = resnet.ResNet

    def _features(self, x: Tensor) -> Tensor:
        return self._features_of(x, (self.layer1, self.layer2, self.layer3, self.layer4))


class FusedCifarResNet(FusedStem, cifar.CifarResNet):
    """:class:`resnet_fused.models.CifarResNet` with a fused stem; there is no pooling in it."""

    _eager_class = cifar.CifarResNet

    def _features(self, x: Tensor) -> Tensor:
        return self._features_of(x, [getattr(self, stage) for stage in self.stages])


class FusedCifarPreActResNet(FusedPreActEnds, cifar.CifarPreActResNet):
    """:class:`resnet_fused.models.CifarPreActResNet` with a fused BatchNorm and ReLU at its end."""

    _eager_class = cifar.CifarPreActResNet

    def _features(self, x: Tensor) -> Tensor:
        return self._features_of(x, [getattr(self, stage) for stage in self.stages])


RECOGNISERS = (
    Recogniser("basic block", reference.BasicBlock, modules.FusedBasicBlock, refuse_two_convs),
    Recogniser("bottleneck", reference.Bottleneck, modules.FusedBottleneck, refuse_three_convs),
    Recogniser("pre-activation block", reference.PreActBlock, modules.FusedPreActBlock, refuse_two_convs),
    Recogniser(
        "pre-activation bottleneck",
        reference.PreActBottleneck,
        modules.FusedPreActBottleneck,
        refuse_three_convs,
    ),
    Recogniser("plain block", reference.PlainBlock, modules.FusedPlainBlock, refuse_two_plain_convs),
    Recogniser(
        "plain pre-activation block",
        reference.PlainPreActBlock,
        modules.FusedPlainPreActBlock,
        refuse_two_plain_convs,
    ),
    Recogniser("stem", resnet.ResNet, FusedResNet, refuse_pooled_stem),
    Recogniser("stem", cifar.CifarResNet, FusedCifarResNet, refuse_stem),
    Recogniser("stem", cifar.CifarPreActResNet, FusedCifarPreActResNet, refuse_stem),
)
