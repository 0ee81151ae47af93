"""Base class of the fused blocks: takes the fused path if it is equivalent, else runs the eager block."""

import functools
import warnings
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.fx import Proxy

from .. import ops
from .._policy import PLAIN_TENSORS, ConvOptions
from ..autograd import ALL_VISIBLE, Visibility, is_channels_last
from ._eager import Methods
from ._format import contiguous, has_channels_last_weight
from ._geometry import convolved_size
from ._packing import OwnsPackedWeights


class FusedBlock(OwnsPackedWeights):
    """A fused block. ``_eager_class`` is its specification, its fallback, and the class that ``revert`` restores.

    The inference path runs if no gradient is needed and every BatchNorm of the block uses its running statistics
    (``bn.training`` decides, not ``self.training``). Otherwise the training path runs: one op with one autograd formula
    (docs/training.md). The eager block runs under ``torch.func`` transforms, with tensor subclasses, and if a submodule
    has hooks or was replaced by another type.

    Attributes that can be set on a block:

    - ``recompute = True`` recomputes the outputs of 1x1 convolutions in backward (bit-identical, slower, less memory).
    - ``fused_training = False`` trains with the eager code. Set on a network, it applies to its fused stem.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    _convs: ClassVar[tuple[str, ...]]  # names of the convolutions, except the shortcut's
    recompute: bool = False
    fused_training: bool = True

    def forward(self, x: Tensor) -> Tensor:
        y = self.fused_forward(x)
        if y is not None:
            return y if is_channels_last(x) or self.outputs_channels_last() else contiguous(y)
        if _is_traced_by_fx(x):
            _warn_about_fx_tracing()
        return self._eager_class.forward(self, x)

    def fused_forward(self, x: Tensor, visibility: Visibility = ALL_VISIBLE) -> Tensor | None:
        """The output of a fused path in any memory format, or None if the eager block must run."""
        if self._eager_class.forward is not self._eager_methods["forward"]:
            return None  # the eager class's forward was monkey-patched: run the replacement
        y = self._fused_inference(x, visibility.internal_output)
        return self._fused_train(x, visibility) if y is None else y

    def outputs_channels_last(self) -> bool:
        """Whether a channels_last weight makes the eager block return channels_last for a contiguous x."""
        return any(has_channels_last_weight(self._modules.get(name)) for name in self._convs)

    def _fused_inference(self, x: Tensor, internal: bool) -> Tensor | None:
        """The block's output without gradients, or None if this path does not apply.

        ``internal``: only the next fused block reads the output.
        """
        raise NotImplementedError

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        """The block's output with batch statistics or gradients, or None if the eager block must run."""
        raise NotImplementedError


def _is_traced_by_fx(x: Any) -> bool:
    return isinstance(x, Proxy)


@functools.cache  # warn once: a network has many blocks, and torchvision traces it twice
def _warn_about_fx_tracing() -> None:
    warnings.warn(
        "torch.fx traces through fused blocks, so its graph contains their eager layers. To keep blocks fused, make "
        "them leaf modules: create_feature_extractor(model, ..., tracer_kwargs={'leaf_modules': "
        "[resnet_fused.modules.FusedBlock]}), or override is_leaf_module in your own torch.fx.Tracer.",
        stacklevel=3,
    )


def conv_add(
    x: Tensor, conv: tuple[Any, ...], shortcut: tuple[Any, ...], relu: bool, options: ConvOptions, internal: bool
) -> Tensor:
    """The last convolution of a block plus the shortcut, as returned by ``_read.shortcut_args``."""
    if len(shortcut) == 1:
        (added,) = shortcut
        size = convolved_size(x.shape[2:], conv[0], *conv[7:10])
        if (
            type(added) not in PLAIN_TENSORS
            or added.dtype is not x.dtype
            or added.shape != (x.shape[0], conv[0].shape[0], *size)
        ):
            y = ops.conv_bn_act(x, *conv, None, False, *options, internal=internal)
            y += added  # broadcasts or raises, as in eager
            return y.relu_() if relu else y
        return ops.conv_bn_act(x, *conv, shortcut[0], relu, *options, internal=internal)
    return ops.conv_bn_proj_act(x, *conv, *shortcut, relu, *options, internal=internal)
