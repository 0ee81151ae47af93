"""What the fused blocks share: the fused path where it computes the eager block's function, else the eager block."""

import functools
import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from ._eager import Methods
from ._packing import OwnsPackedWeights


class FusedBlock(OwnsPackedWeights):
    """A block whose ``_eager_class`` is its specification, its fallback, and what ``revert`` makes of it again.

    Inference's path runs where no gradient is needed and every BatchNorm of the block uses its running
    statistics (``bn.training`` is read, never ``self.training``); elsewhere training's, which is one op with one
    autograd formula (docs/training.md). Under ``torch.func`` transforms, with tensor subclasses, hooks on inner
    modules or exchanged inner modules, the eager block runs.

    Two attributes may be set on a block: ``recompute = True`` computes the outputs of 1x1 convolutions again in the
    backward pass instead of keeping them (same bits, less memory, more time), and ``fused_training = False`` trains
    eagerly (as it does where it is set on a network with a fused stem).
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    recompute: bool = False
    fused_training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.computed(x)
        if y is not None:
            return y
        if _is_traced_by_fx(x):
            _say_that_fx_looks_inside()
        return self._eager_class.forward(self, x)

    def computed(self, x: Tensor) -> Tensor | None:
        """The block's output, or None where only the eager block is right."""
        if self._eager_class.forward is not self._eager_methods["forward"]:
            return None  # somebody replaced it, and means what he put there
        y = self._fused(x)
        return self._trained(x) if y is None else y

    def _fused(self, x: Tensor) -> Tensor | None:
        """The block's output where no gradient is needed, or None where this path is not right."""
        raise NotImplementedError

    def _trained(self, x: Tensor) -> Tensor | None:
        """The block's output with batch statistics or gradients, or None where only the eager block is right."""
        raise NotImplementedError


def _is_traced_by_fx(x: Any) -> bool:
    return isinstance(x, Proxy)


@functools.cache  # once is enough: a network has many blocks, and torchvision traces it twice
def _say_that_fx_looks_inside() -> None:
    warnings.warn(
        "torch.fx traces through fused blocks, so its graph holds their eager layers; to keep blocks fused, make them "
        "leaves: create_feature_extractor(model, ..., tracer_kwargs={'leaf_modules': "
        "[resnet_fused.modules.FusedBlock]}), or is_leaf_module of another torch.fx.Tracer",
        stacklevel=3,
    )


def conv_add(x: Tensor, conv: tuple[Any, ...], shortcut: tuple[Any, ...], relu: bool, how: tuple[bool, bool]) -> Tensor:
    """The last convolution of a block with what ``_read.shortcut`` found for it to add."""
    if len(shortcut) == 1:
        return ops.conv_bn_act(x, *conv, shortcut[0], relu, *how)
    return ops.conv_bn_proj_act(x, *conv, *shortcut, relu, *how)


def nhwc(x: Tensor) -> Tensor:
    """x in channels_last, where kernels work: between a block's convolutions nothing changes its format."""
    return x.contiguous(memory_format=torch.channels_last)


def as_eager(y: Tensor, x: Tensor, *convs: tuple[Any, ...]) -> Tensor:
    """A block's output y in the format that eager's would have: channels_last if x or a weight is."""
    if _is_channels_last(x) or any(_is_channels_last(conv[0]) for conv in convs):
        return y
    return y.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    last = x.is_contiguous(memory_format=torch.channels_last)
    if last != x.is_contiguous():
        return last
    # both, where a dimension is 1, or neither: torch goes by the order of the strides
    return torch._prims_common.suggest_memory_format(x) == torch.channels_last
