"""Recogniser of the stem of timm's ResNet and its relatives. Imported only if ``timm.models.resnet`` already is."""

from typing import Any

import torch
from timm.models import resnet
from torch import Tensor, nn

from ..chain.spec import BlockSpec
from ..modules import FusedStem
from ..modules._eager import original_methods, replacement
from ._blocks import Recogniser

_PLAIN = BlockSpec(("conv1",), (None, "bn1"), ("act1",), part="stem")
_DEEP = BlockSpec(
    ("conv1.0", "conv1.3", "conv1.6"),
    (None, "conv1.1", "conv1.4", "bn1"),
    ("conv1.2", "conv1.5", "act1"),
    part="deep stem",
)
_NAMES = list("0123456")  # of the layers of a deep stem


def _stem(network: Any) -> BlockSpec:
    conv1 = network._modules.get("conv1")
    return _DEEP if type(conv1) is nn.Sequential and [*conv1._modules] == _NAMES else _PLAIN


def _pooled_stem(network: Any) -> BlockSpec:
    spec = _stem(network)
    return spec._replace(pool="maxpool", part=f"{spec.part} and pooling")


class FusedTimmResNet(FusedStem, resnet.ResNet):
    """A ResNet of timm with a fused stem; the layers after its stages run as in eager."""

    _eager_class = resnet.ResNet
    _eager_methods = original_methods(resnet.ResNet, "forward_features")
    _spec = staticmethod(_stem)
    _pooled_spec = staticmethod(_pooled_stem)
    _relu = "act1"

    def forward_features(self, x: Tensor) -> Tensor:
        override = replacement(self, "forward_features")
        if override is None and (self.grad_checkpointing or torch.jit.is_scripting()):
            override = self._eager_class.forward_features
        if override is not None:
            return override(self, x)
        return self._features_of(x)


# What forward_features uses, in the releases that this file is written for.
_USED = "conv1 bn1 act1 maxpool grad_checkpointing torch jit is_scripting checkpoint_seq layer1 layer2 layer3 layer4"
_is_known = set(resnet.ResNet.forward_features.__code__.co_names) == set(_USED.split())
RECOGNISERS = (Recogniser("stem", resnet.ResNet, FusedTimmResNet),) if _is_known else ()
