"""What the fused blocks share: the fused path where it computes the eager block's function, else the eager block."""

from typing import Any, ClassVar

from torch import Tensor, nn

from .. import ops
from ._packing import OwnsPackedWeights


class FusedBlock(OwnsPackedWeights):
    """A block whose ``_eager_class`` is its specification, its fallback, and what ``revert`` makes of it again.

    The fused path runs where no gradient is needed and every BatchNorm of the block uses its running
    statistics (``bn.training`` is read, never ``self.training``). Under ``torch.func`` transforms, with
    tensor subclasses, hooks on inner modules or exchanged inner modules, the eager block runs.
    """

    _eager_class: ClassVar[type[nn.Module]]

    def forward(self, x: Tensor) -> Tensor:
        y = self._fused(x)
        return self._eager_class.forward(self, x) if y is None else y

    def _fused(self, x: Tensor) -> Tensor | None:
        """The block's output, or None where only the eager block is right."""
        raise NotImplementedError


def conv_add(x: Tensor, conv: tuple[Any, ...], shortcut: tuple[Any, ...], relu: bool, keep_packed: bool) -> Tensor:
    """The last convolution of a block with what ``_read.shortcut`` found for it to add."""
    if len(shortcut) == 1:
        return ops.conv_bn_act(x, *conv, shortcut[0], relu, keep_packed)
    return ops.conv_bn_proj_act(x, *conv, *shortcut, relu, keep_packed)
