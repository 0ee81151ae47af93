"""What the blocks of every library share: which children a block has, and what each must be."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..modules._eager import replaced
from . import _reasons

Refusal = Callable[[nn.Module], str | None]


@dataclass(frozen=True)
class Recogniser:
    """``eager`` (by exact type) becomes ``fused`` unless :meth:`reason` has one. kind is for the report."""

    kind: str
    eager: type[nn.Module]
    fused: Any  # a FusedBlock, FusedStem or FusedPreActEnds
    refusal: Refusal

    def reason(self, module: nn.Module) -> str | None:
        """Why this module cannot be fused, None where it can."""
        method = replaced(self.eager, self.fused._eager_methods)
        if method is not None:
            return f"{self.eager.__module__}.{self.eager.__qualname__}.{method} was replaced by another function"
        return self.refusal(module)


def _refuse_block(layers: int, has_shortcut: bool, block: nn.Module) -> str | None:
    names = range(1, layers + 1)
    return _reasons.first(
        (
            _reasons.own_forward(block),
            *(_reasons.conv(block, f"conv{i}") for i in names),
            *(_reasons.batch_norm(block, f"bn{i}") for i in names),
            _reasons.relu(block),
            _reasons.shortcut(block) if has_shortcut else None,
        )
    )


def _refuse_stem(pool: str | None, network: nn.Module) -> str | None:
    return _reasons.first(
        (
            _reasons.own_forward(network),
            _reasons.conv(network, "conv1"),
            _reasons.batch_norm(network, "bn1"),
            _reasons.relu(network),
            None if pool is None else _reasons.pool(network, pool),
        )
    )


# Pre-activation blocks have the same children as the others, in another order.
refuse_two_convs: Refusal = partial(_refuse_block, 2, True)
refuse_two_plain_convs: Refusal = partial(_refuse_block, 2, False)
refuse_three_convs: Refusal = partial(_refuse_block, 3, True)
refuse_stem: Refusal = partial(_refuse_stem, None)
refuse_pooled_stem: Refusal = partial(_refuse_stem, "maxpool")
