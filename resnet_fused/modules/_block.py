"""What the fused blocks share: the fused path where it computes the eager block's function, else the eager block."""

import functools
import warnings
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from ..autograd import ALONE, Place, is_channels_last
from ..functional import PLAIN_TENSORS
from ._eager import Methods
from ._format import contiguous, has_channels_last_weight
from ._geometry import convolved_size
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
    _convs: ClassVar[tuple[str, ...]]  # the names of its convolutions, but for the shortcut's
    recompute: bool = False
    fused_training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.computed(x)
        if y is not None:
            return y if is_channels_last(x) or self.turns_channels_last() else contiguous(y)
        if _is_traced_by_fx(x):
            _say_that_fx_looks_inside()
        return self._eager_class.forward(self, x)

    def computed(self, x: Tensor, place: Place = ALONE) -> Tensor | None:
        """The block's output in any memory format, or None where only the eager block is right."""
        if self._eager_class.forward is not self._eager_methods["forward"]:
            return None  # somebody replaced it, and means what he put there
        y = self._fused(x, place.internal_output)
        return self._trained(x, place) if y is None else y

    def turns_channels_last(self) -> bool:
        """Whether the eager block returns channels_last of a contiguous x, as one of its weights makes it do."""
        return any(has_channels_last_weight(self._modules.get(name)) for name in self._convs)

    def _fused(self, x: Tensor, internal: bool) -> Tensor | None:
        """The block's output where no gradient is needed, or None where this path is not right.

        ``internal``: it is for the next fused block alone.
        """
        raise NotImplementedError

    def _trained(self, x: Tensor, place: Place) -> Tensor | None:
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


def conv_add(
    x: Tensor, conv: tuple[Any, ...], shortcut: tuple[Any, ...], relu: bool, how: tuple[bool, bool], internal: bool
) -> Tensor:
    """The last convolution of a block with what ``_read.shortcut`` found for it to add."""
    if len(shortcut) == 1:
        (added,) = shortcut
        size = convolved_size(x.shape[2:], conv[0], *conv[7:10])
        if (
            type(added) not in PLAIN_TENSORS
            or added.dtype is not x.dtype
            or added.shape != (x.shape[0], conv[0].shape[0], *size)
        ):
            y = ops.conv_bn_act(x, *conv, None, False, *how, internal=internal)
            y += added  # eager broadcasts, or says why not
            return y.relu_() if relu else y
        return ops.conv_bn_act(x, *conv, shortcut[0], relu, *how, internal=internal)
    return ops.conv_bn_proj_act(x, *conv, *shortcut, relu, *how, internal=internal)
