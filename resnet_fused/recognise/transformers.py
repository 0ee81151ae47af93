"""Recognisers of the stems of Hugging Face's ResNet, RegNet and RT-DETR, whose check of channels cannot be traced."""

import sys
from typing import Any

from ..chain.spec import BlockSpec, Reason
from . import registered
from ._blocks import Recogniser


def _stem(*layers: str, pool: str | None = None) -> BlockSpec:
    """The spec of layers that are a convolution, a BatchNorm and a ReLU each."""
    convs, norms, relus = (
        tuple(f"{layer}.{name}" for layer in layers) for name in ("convolution", "normalization", "activation")
    )
    return BlockSpec(convs, (None, *norms), relus, pool=pool)


def _checked(spec: BlockSpec) -> Any:
    """The spec of a stem that accepts the channels of its convolution, as class attribute."""

    def spec_of(stem: Any) -> BlockSpec | Reason:
        conv = stem.get_submodule(spec.convs[0])
        if stem.num_channels != conv.in_channels:
            return Reason("num_channels is {} and {name} has {}", spec.convs[0], stem.num_channels, conv.in_channels)
        return spec

    return staticmethod(spec_of)


_PLAIN = _stem("embedder", pool="pooler")
_DEEP = _stem("embedder.0", "embedder.1", "embedder.2", pool="pooler")
# By module: the class of the stem, that of its layers, and what it computes.
_STEMS = {
    "transformers.models.resnet.modeling_resnet": ("ResNetEmbeddings", "ResNetConvLayer", _PLAIN),
    "transformers.models.regnet.modeling_regnet": ("RegNetEmbeddings", "RegNetConvLayer", _stem("embedder")),
    "transformers.models.rt_detr.modeling_rt_detr_resnet": ("RTDetrResNetEmbeddings", "RTDetrResNetConvLayer", _DEEP),
}
_known: dict[str, Recogniser] = {}


def recognisers() -> tuple[Recogniser, ...]:
    """Those of the modules of transformers that are already imported."""
    for name, (stem, layer, spec) in _STEMS.items():
        if name in _known or name not in sys.modules:
            continue
        kinds: list[Any] = [vars(sys.modules[name]).get(kind) for kind in (stem, layer)]
        if all(isinstance(kind, type) for kind in kinds):
            _known[name] = registered.recogniser("stem", kinds[0], _checked(spec), (kinds[1],))
    return tuple(_known.values())
