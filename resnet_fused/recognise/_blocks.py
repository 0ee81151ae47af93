"""Checks shared by all libraries' blocks: which children a block has, and what each must be."""

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..modules._eager import first_replaced_method
from . import _reasons


class Refusal(Protocol):
    def __call__(self, module: nn.Module, path: str, converted: bool) -> str | None: ...


@dataclass(frozen=True)
class Recogniser:
    """``eager`` (by exact type) becomes ``fused`` unless :meth:`reason` gives a reason. ``kind`` is for the report."""

    kind: str
    eager: type[nn.Module]
    fused: Any  # a FusedBlock, FusedStem or FusedPreActEnds
    refusal: Refusal

    def reason(self, module: nn.Module, path: str, converted: bool = False) -> str | None:
        """Why the module at ``path`` cannot be fused or, if ``converted``, why it runs eagerly; else None."""
        method = first_replaced_method(self.eager, self.fused._eager_methods)
        if method is not None:
            return f"{_reasons.class_name(self.eager)}.{method} was replaced by another function"
        if converted and _has_any_global_hook():
            return "a global module hook is registered (torch.nn.modules.module.register_module_...)"
        replaced = next((name for name in self.fused._eager_methods if name in module.__dict__), None)
        if replaced is not None:
            return f"its {replaced} was replaced on this instance"
        return self.refusal(module, path, converted)


def _refuse_block(layers: int, has_shortcut: bool, block: nn.Module, path: str, converted: bool) -> str | None:
    names = range(1, layers + 1)
    return _reasons.first(
        (
            _reasons.parametrised(block),
            *(_reasons.conv(block, f"conv{i}", path) for i in names),
            *(_reasons.batch_norm(block, f"bn{i}", path, converted) for i in names),
            _reasons.relu(block, path),
            _reasons.shortcut(block, path, converted) if has_shortcut else None,
        )
    )


def _refuse_stem(pool: str | None, network: nn.Module, path: str, converted: bool) -> str | None:
    return _reasons.first(
        (
            _reasons.parametrised(network),
            _reasons.conv(network, "conv1", path),
            _reasons.batch_norm(network, "bn1", path, converted),
            _reasons.relu(network, path),
            # A fused stem calls the pooling module if its kernel cannot pool.
            None if pool is None or converted else _reasons.pool(network, pool, path),
        )
    )


# Pre-activation blocks have the same children as post-activation blocks, in another order.
refuse_two_convs: Refusal = partial(_refuse_block, 2, True)
refuse_two_plain_convs: Refusal = partial(_refuse_block, 2, False)
refuse_three_convs: Refusal = partial(_refuse_block, 3, True)
refuse_stem: Refusal = partial(_refuse_stem, None)
refuse_pooled_stem: Refusal = partial(_refuse_stem, "maxpool")
