"""A recogniser: how to fuse an eager class, and why one of its modules is not fused."""

from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..chain import layers
from ..chain.spec import Reason, class_name
from ..modules._eager import first_replaced_method
from . import _probe, _reasons


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
        if converted:
            chain = layers.described(module, self.fused._spec)
            return chain.at(path) if isinstance(chain, Reason) else None
        if not self.probed:
            return self._refusal(module, path)
        try:
            return self._refusal(module, path) or self._mismatch(module)
        except Exception as error:  # of the user's spec
            return f"reading its spec raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def _mismatch(self, module: nn.Module) -> str | None:
        chain = layers.described(module, self.fused._spec)
        return str(chain) if isinstance(chain, Reason) else _probe.mismatch(module, self.fused, chain)

    def _refusal(self, module: nn.Module, path: str) -> str | None:
        spec = layers.resolve(module, self.fused._spec)
        pool = "maxpool" if getattr(self.fused, "_pools", False) else spec.pool
        return _reasons.first(
            (
                _reasons.parametrised(module),
                *(_reasons.conv(module, name, path) for name in spec.convs),
                *(_reasons.batch_norm(module, name, path) for name in spec.norms if name is not None),
                *(_reasons.relu(module, name, path) for name in spec.relus),
                _reasons.shortcut(module, spec.shortcut, path) if spec.shortcut else None,
                _reasons.pool(module, pool, path) if pool is not None else None,
            )
        )
