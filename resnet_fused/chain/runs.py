"""Convolutions with BatchNorm and ReLU inside a module that is no residual block: each runs as one op in inference."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import infer, layers
from .memory_format import has_channels_last_weight, is_channels_last, nhwc
from .policy import module_setting
from .read import Memory, Seen
from .spec import BlockSpec, Reason


class Rewrite(NamedTuple):
    """The ``forward`` of a module with its runs of convolution, BatchNorm and ReLU as calls.

    ``function(scope, x)``: ``scope`` has the module's attributes and :meth:`Scope.run`. ``specs``: the runs.
    """

    function: Callable[[Any, Tensor], Any]
    specs: tuple[BlockSpec, ...]


_PART = "runs"
_ALL = BlockSpec((), (None,), (), relu=False, part=_PART, derived=True)  # compares everything in the module


class Scope:
    """A module during one call of its rewritten ``forward``."""

    def __init__(self, module: nn.Module, runs: list[Seen]) -> None:
        self._module, self._runs = module, runs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def run(self, index: int, x: Tensor) -> Tensor:
        """The output of a run: fused, or layer by layer where a kernel would compute something else."""
        seen = self._runs[index]
        how = module_setting(x)
        last = (
            isinstance(how, Reason) or is_channels_last(x) or has_channels_last_weight(self._layer(seen.spec.convs[0]))
        )
        if isinstance(how, Reason) or isinstance(seen.chain, Reason) or not last:
            return self._eager(seen.spec, x)
        checked = seen.check(x, how, trains=False)
        if isinstance(checked, Reason):
            return self._eager(seen.spec, x)
        return infer.run(nhwc(x), checked, how, keep_packed=True)

    def _layer(self, path: str) -> Any:
        return layers.find(self._module, path)

    def _eager(self, spec: BlockSpec, x: Tensor) -> Tensor:
        y = self._layer(spec.convs[0])(x)
        norm = self._layer(spec.norms[-1] or "")
        y = norm(y)
        return F.relu(y) if spec.relu and layers.norms.activation(norm) is None else y


def scope(module: nn.Module, rewrite: Callable[[Any], Rewrite | Reason], x: Tensor) -> tuple[Any, Scope] | Reason:
    """The rewritten ``forward`` for the module as it is now, or why eager runs."""
    if torch.compiler.is_compiling() or type(x) is not Tensor:
        return Reason("the input is a {}, not a plain tensor, or a compiler is tracing", "", type(x))
    if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters())):
        return Reason("gradients are enabled; chains are fused in inference only")
    how = module_setting(x)
    if isinstance(how, Reason):
        return how
    memory = module.__dict__.setdefault("_seen", Memory())
    seen = memory.get(_PART)
    if seen is None or not seen.is_current(module, _ALL):
        memory.pop(_PART, None)
        found = rewrite(module)
        seen = Seen(module, _ALL)
        seen.runs = (
            found if isinstance(found, Reason) else (found.function, [Seen(module, each) for each in found.specs])
        )
        if isinstance(seen.chain, Reason):
            return seen.chain
        if not isinstance(found, Reason) and all(each.is_reusable() for each in seen.runs[1]):
            memory[_PART] = seen
    if isinstance(seen.runs, Reason):
        return seen.runs
    function, runs = seen.runs
    return function, Scope(module, runs)
