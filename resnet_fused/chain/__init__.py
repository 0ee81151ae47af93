"""Blocks as chains: :mod:`.spec` describes them, :mod:`.read` reads modules or tensors, and one of two ways runs them.

:mod:`.infer` runs a chain with constant statistics, :mod:`.train` with gradients or batch statistics, :mod:`.eager` in
plain torch ops. docs/training.md derives the gradients.
"""

from torch import Tensor

from . import infer, train
from .read import Read
from .spec import ALL_VISIBLE, Visibility


def run(x: Tensor, how: Read, keep_packed: bool = False, visibility: Visibility = ALL_VISIBLE) -> Tensor:
    """The output of a chain, in any memory format."""
    if how.trains:
        return train.run(x, how.chain, how.setting.dtype, how.recompute, visibility)
    return infer.run(x, how.chain, how.setting, keep_packed, visibility.internal_output)
