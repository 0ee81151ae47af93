"""A recogniser: how to fuse an eager class, and why one of its modules is not fused."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.nn.utils import parametrize

from ..chain import layers
from ..chain.spec import Chain, Reason, class_name
from ..modules._block import changed_attribute
from ..modules._eager import first_replaced_method
from . import _probe


@dataclass(frozen=True)
class Recogniser:
    """``eager`` (by exact type) becomes ``fused`` unless :meth:`reason` gives a reason. ``kind`` is for the report."""

    kind: str
    eager: type[nn.Module]
    fused: Any  # a FusedBlock, FusedStem or FusedPreActEnds
    probed: bool = False  # whether blocks are compared with their spec first

    def reason(self, module: nn.Module, path: str, converted: bool = False) -> str | None:
        """Why the module at ``path`` cannot be fused or, if ``converted``, why it runs eagerly; else None."""
        method = first_replaced_method(self.eager, self.fused._eager_methods)
        if method is not None:
            return f"{class_name(self.eager)}.{method} was replaced by another function"
        if converted and _has_any_global_hook():
            return "a global module hook is registered (torch.nn.modules.module.register_module_...)"
        replaced = next((name for name in self.fused._eager_methods if name in module.__dict__), None)
        if replaced is not None:
            return f"its {replaced} was replaced on this instance"
        changed = changed_attribute(self.fused) if self.probed else ""
        if changed:
            return f"{class_name(self.eager)}.{changed} was changed"
        spec = self.fused._spec
        if not converted and getattr(self.fused, "_pools", False):  # converted, it calls its pooling
            spec = self.fused._pooled_spec
        chain = layers.described(module, spec)
        if converted or isinstance(chain, Reason):
            return chain.at(path) if isinstance(chain, Reason) else None
        return _refusal(module, path, chain) or (_probe.mismatch(module, self.fused, chain) if self.probed else None)


def _refusal(module: nn.Module, path: str, chain: Chain) -> str | None:
    """Why a module that could run fused is not converted."""
    if parametrize.is_parametrized(module):
        return "it is parametrised (torch.nn.utils.parametrize)"
    norms: list[Any] = [norm.module for norm in chain.all_norms() if norm is not None and norm.module is not None]
    for layer in norms:
        name = next(".".join(filter(None, (path, name))) for name, each in module.named_modules() if each is layer)
        if layer.running_mean is None or layer.running_var is None:
            return f"{name} has no running statistics (track_running_stats=False), so eval mode uses batch statistics"
    return None
