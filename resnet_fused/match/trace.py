"""Traces ``forward`` of one block with ``torch.fx``, without running or changing the block."""

import inspect
import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from ..chain.layers import is_library_code
from ..chain.norms import is_norm
from ..chain.spec import Reason
from ..modules._packing import OwnsPackedWeights
from .randomness import States
from .structure import structure

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Trace:
    """The graph of a block's ``forward``. ``modules``: copies of the block's modules, with its own tensors, by path."""

    def __init__(self, graph: fx.Graph, root: nn.Module) -> None:
        self.graph, self.modules = graph, dict(root.named_modules(remove_duplicate=False))


def copy_of(block: nn.Module, kind: type[nn.Module], mode: bool | None = None) -> nn.Module:
    """A copy of the block and its modules that has the same tensors, and the class ``kind``.

    ``mode``: as after ``block.train(mode)``; None leaves the modes of the modules as they are.
    """
    root = _copy(block, {}, kind)
    if mode is not None:
        for part in root.modules():
            part.training = mode
    return root  # type: ignore[no-any-return]


def trace(root: nn.Module, argument: str = "") -> Trace | Reason:
    """The trace of ``forward(root, x)``; other arguments except ``argument`` have their defaults.

    ``root``: a :func:`copy_of` a block.
    """
    kind = type(root)
    before, states = structure(root, kind), States.now()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            tracer = _Tracer()
            graph = tracer.trace(root, {k: v for k, v in defaults(kind).items() if k != argument})
    except Exception as error:  # the user's code may raise anything
        return Reason("its forward cannot be traced: {}: {}", "", type(error), " ".join(str(error).split())[:160])
    finally:
        draws = States.now() != states
        if draws:
            states.restore()
    if draws:
        return Reason("its forward draws random numbers")
    after = structure(root, kind)
    changed = next((b for a, b in zip(before, after, strict=False) if a != b), None)
    if changed is not None or len(before) != len(after):
        return Reason("its forward sets an attribute of {}", "", (changed and changed.path) or "the block")
    if tracer.context:
        return Reason("its forward calls a module or function in a context of {}", "", tracer.context)
    return Trace(graph, root)


def defaults(kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments of ``forward`` after the first, apart from those without default."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    return {each.name: each.default for each in parameters[1:] if each.default is not inspect.Parameter.empty}


def _copy(value: Any, memo: dict[int, Any], kind: type[nn.Module] | None = None) -> Any:
    """A copy of a module of class ``kind`` and of all its modules, or of a list that may contain modules."""
    if type(value) in (list, tuple):
        return type(value)(_copy(each, memo) for each in value)
    if type(value) is dict:
        return {key: _copy(each, memo) for key, each in value.items()}
    if not isinstance(value, nn.Module):
        return value
    if id(value) not in memo:
        kind = kind or type(value)
        memo[id(value)] = made = kind.__new__(kind)
        own = {name: each for name, each in vars(value).items() if name not in ("_seen", "_matches")}
        made.__dict__.update({name: _copy(each, memo) for name, each in own.items()})
    return memo[id(value)]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.settings, self.context = threading.get_ident(), _settings(), ""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, OwnsPackedWeights):  # already fused
            return True
        return is_norm(m) or (is_library_code(type(m)) and not isinstance(m, _CONTAINERS))

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # fx patches nn.Module for the whole process: other threads call their modules as usual.
        if threading.get_ident() != self.thread or m not in self.submodule_paths:  # type: ignore[operator]
            return forward(*args, **kwargs)  # or a module that forward creates, such as nn.ReLU()
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _settings() != self.settings:
            self.context = "torch.no_grad, torch.autocast or the like"
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_image(self, node: fx.Node) -> bool:
        """Whether a node is known to have four dimensions."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), nn.Conv2d | nn.BatchNorm2d | nn.SyncBatchNorm)
        return node.op == "placeholder"


def _settings() -> tuple[bool, ...]:
    """What context managers change, of which a graph has no record."""
    autocast = (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


#: Augmented assignments, which ``fx.Proxy`` would record as if they made new tensors.
IN_PLACE = tuple(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod"))


class _Proxy(fx.Proxy):
    """A proxy that records augmented assignments, and knows the number of dimensions, so that it may be checked."""

    def dim(self) -> Any:
        return 4 if self.tracer.is_image(self.node) else fx.Proxy.__getattr__(self, "dim")()  # type: ignore[attr-defined]

    @property
    def ndim(self) -> Any:
        return 4 if self.tracer.is_image(self.node) else fx.Proxy.__getattr__(self, "ndim")  # type: ignore[attr-defined]

    def numel(self) -> Any:
        return _Count()


def _in_place(function: Any) -> Any:
    def method(self: Any, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for each in IN_PLACE:
    setattr(_Proxy, f"__{each.__name__}__", _in_place(each))


class _Count:
    """The number of elements of a tensor. ``forward`` may only ask whether it is zero; empty tensors have no values."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if other != 0:
            raise TypeError(f"the number of elements is compared with {other}")
        return False

    def __gt__(self, other: object) -> bool:
        return not self == other
