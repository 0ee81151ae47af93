"""Traces ``forward`` of one block with ``torch.fx``, without running or changing the block.

``torch.fx.Tracer.trace`` patches ``nn.Module`` for the whole process, which other threads would see. Here copies of the
block's modules get traced subclasses instead, and only the thread that traces calls them.
"""

import functools
import inspect
import operator
import threading
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.overrides import TorchFunctionMode

from ..chain.layers import is_library_code
from ..chain.norms import is_norm
from ..chain.spec import Reason
from ..modules import FusedStage
from ..modules._packing import OwnsPackedWeights
from .structure import is_opaque, structure

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


def _copy(value: Any, memo: dict[int, Any], kind: type[nn.Module] | None = None, depth: int = 0) -> Any:
    """A copy of a module of class ``kind`` and of all its modules, or of a list that may contain modules."""
    if depth > 4:  # such as a list that contains itself, which unseen() refuses
        return value
    if type(value) in (list, tuple):
        return type(value)(_copy(each, memo, depth=depth + 1) for each in value)
    if type(value) is dict:
        return {key: _copy(each, memo, depth=depth + 1) for key, each in value.items()}
    if not issubclass(type(value), nn.Module):
        return value
    if id(value) not in memo:
        memo[id(value)] = made = object.__new__(kind or type(value))
        own = {name: each for name, each in vars(value).items() if name not in ("_seen", "_matches")}
        made.__dict__.update({name: _copy(each, memo) for name, each in own.items()})
    return memo[id(value)]


def trace(root: nn.Module, argument: str = "") -> Trace | Reason:
    """The trace of ``forward(root, x)``; other arguments except ``argument`` have their defaults.

    ``root``: a :func:`copy_of` a block. It is traced with gradients, then without gradients and under autocast: a
    ``forward`` that does something else then, or that changes these settings, cannot be described by one graph.
    """
    kind = type(root)
    before = structure(root, kind)
    graphs = []
    for grad, autocast in ((True, False), (False, True)):
        try:
            with torch.inference_mode(False), torch.set_grad_enabled(grad), _Autocast(autocast):
                tracer = _Tracer(root)
                graphs.append(tracer.graph_of(kind, argument))
        except Exception as error:  # the user's code may raise anything
            return Reason("its forward cannot be traced: {}: {}", "", type(error), " ".join(str(error).split())[:160])
        if tracer.context:
            return Reason("its forward calls a module or function inside {}", "", tracer.context)
    if str(graphs[0]) != str(graphs[1]):
        return Reason("its forward depends on whether gradients or autocast are enabled")
    after = structure(root, kind)
    changed = next((b for a, b in zip(before, after, strict=False) if a != b), None)
    if changed is not None or len(before) != len(after):
        return Reason("its forward sets an attribute of {}", "", (changed and changed.path) or "the block")
    return Trace(graphs[0], root)


def defaults(kind: type[nn.Module]) -> dict[str, Any]:
    """The arguments of ``forward`` after the first, apart from those without default."""
    _, *parameters = inspect.signature(kind.forward).parameters.values()
    return {each.name: each.default for each in parameters[1:] if each.default is not inspect.Parameter.empty}


class _Autocast:
    """Autocast on or off for all devices, without the warnings of ``torch.autocast``."""

    _DEVICES = ("cpu", "cuda")

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        self.before = [torch.is_autocast_enabled(device) for device in self._DEVICES]
        for device in self._DEVICES:
            torch.set_autocast_enabled(device, self.enabled)

    def __exit__(self, *_: Any) -> None:
        for device, before in zip(self._DEVICES, self.before, strict=True):
            torch.set_autocast_enabled(device, before)


def _settings() -> tuple[Any, ...]:
    """What context managers change, of which a graph has no record."""
    autocast = [(torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _Autocast._DEVICES]
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast, hooks


class _Active(threading.local):
    tracer: "_Tracer | None" = None


_active = _Active()


class _Traced:
    """Base of the classes of copies while they are traced."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert _active.tracer is not None
        return _active.tracer.call(self, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)  # type: ignore[misc]
        return _active.tracer.attribute(value) if isinstance(value, Tensor) and _active.tracer else value


def _traced_class(kind: Any) -> Any:
    # In __subclasses__, which holds weak references: a cache would keep the classes alive forever.
    made = next((each for each in type.__subclasses__(kind) if _Traced in each.__bases__), None)
    return made or type(kind)(kind.__name__, (_Traced, kind), {"__module__": kind.__module__})


class _Tracer(fx.Tracer):
    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root, self.graph, self.tensor_attrs = root, fx.Graph(), {}
        self.submodule_paths = {module: name for name, module in root.named_modules()}
        self.kinds = {module: type(module) for module in self.submodule_paths}
        self.tensors = {id(t): name for name, t in [*root.named_parameters(), *root.named_buffers()]}
        self.proxies: dict[str, fx.Proxy] = {}
        self.settings, self.context = _settings(), ""

    def graph_of(self, kind: type[nn.Module], argument: str) -> fx.Graph:
        """The graph of ``kind.forward(root, x)``."""
        values = defaults(kind)
        args: list[Any] = []
        keywords: dict[str, Any] = {}
        _, *parameters = inspect.signature(kind.forward).parameters.values()
        for i, each in enumerate(parameters):
            if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                continue
            is_input = i == 0 or each.name == argument or each.name not in values
            value = self.create_proxy("placeholder", each.name, (), {}) if is_input else values[each.name]
            if each.kind is each.KEYWORD_ONLY:
                keywords[each.name] = value
            else:
                args.append(value)
        _active.tracer = self
        untraced = [
            (vars(module), name, value, f"{path}.{name}" if path else name)
            for module, path in self.submodule_paths.items()  # type: ignore[union-attr]
            for name, value in vars(module).items()
            if is_opaque(value)
        ]
        stand_ins: dict[int, Any] = {}
        try:
            for module, own in self.kinds.items():
                module.__class__ = _traced_class(own)
            for attributes, name, value, path in untraced:
                attributes[name] = stand_ins.setdefault(id(value), _Untraced(self, path))
            with _OnlyProxies():
                found = kind.forward(self.root, *args, **keywords)
        finally:
            _active.tracer = None
            for module, own in self.kinds.items():
                module.__class__ = own
            for attributes, name, value, _ in untraced:
                attributes[name] = value
        self.create_node("output", "output", (self.create_arg(found),), {})
        return self.graph

    def call(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of one of the root's modules."""
        kind = self.kinds.get(module)
        if kind is None:  # made by forward, such as a slice of an nn.Sequential
            return module.forward(*args, **kwargs)
        module.__class__ = kind  # create_proxy and is_norm look at the class
        try:
            if self._is_leaf(module):
                self.module_stack[self.submodule_paths[module]] = (self.submodule_paths[module], kind)  # type: ignore[index]
                proxy = self.create_proxy("call_module", self.submodule_paths[module], args, kwargs)  # type: ignore[index]
                self.module_stack.popitem()
                return proxy
        finally:
            module.__class__ = _traced_class(kind)
        self.module_stack[self.submodule_paths[module]] = (self.submodule_paths[module], kind)  # type: ignore[index]
        try:
            return module.forward(*args, **kwargs)
        finally:
            self.module_stack.popitem()

    def _is_leaf(self, module: nn.Module) -> bool:
        if isinstance(module, OwnsPackedWeights | FusedStage):
            return True
        return is_norm(module) or (is_library_code(type(module)) and not isinstance(module, _CONTAINERS))

    def attribute(self, tensor: Tensor) -> Any:
        """A parameter or buffer as ``forward`` sees it."""
        name = self.tensors.get(id(tensor))
        if name is None:
            return tensor
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {})
        return self.proxies[name]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _settings() != self.settings:
            self.context = "torch.no_grad, torch.autocast, a checkpoint or the like"
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_image(self, node: fx.Node) -> bool:
        """Whether a node is known to have four dimensions."""
        if node.op == "call_module":
            return isinstance(self.root.get_submodule(str(node.target)), nn.Conv2d | nn.BatchNorm2d | nn.SyncBatchNorm)
        return node.op == "placeholder"


class _Untraced(functools.partial):  # type: ignore[type-arg]
    """Stands for a function that a module has as attribute: a call is recorded, and nothing else may be asked."""

    def __new__(cls, tracer: _Tracer, path: str) -> "_Untraced":
        self = super().__new__(cls, call_attribute)
        object.__getattribute__(self, "__dict__").update(tracer=tracer, path=path)
        return self

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        for each in (*args, *kwargs.values()):
            if not isinstance(each, (fx.Proxy, *_CONSTANTS)):  # the graph would hold a copy
                raise TraceError(f"it passes a {type(each).__name__} to a function that is an attribute")
        own = object.__getattribute__(self, "__dict__")
        function = own["tracer"].create_proxy("get_attr", own["path"], (), {})
        return own["tracer"].create_proxy("call_function", call_attribute, (function, *args), kwargs)

    def _refuse(self, *_: Any) -> Any:
        raise TraceError("it looks at a function that is an attribute")

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__(name) if name == "__class__" else _Untraced._refuse(self)

    __repr__ = __str__ = __eq__ = __hash__ = __setattr__ = _refuse  # type: ignore[assignment]


_CONSTANTS = (bool, int, float, str, type(None), torch.dtype, torch.memory_format)


def call_attribute(function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Calls an attribute of a module as it is when the module runs."""
    return function(*args, **kwargs)


class _OnlyProxies(TorchFunctionMode):
    """Refuses to compute without a proxy: random numbers would be drawn, and constants could change."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.as_tensor and len(args) == 1 and not kwargs and isinstance(args[0], fx.Proxy):
            return args[0].tracer.create_proxy("call_function", func, args, {})  # it does not know proxies
        flat = [*args, *kwargs.values()]
        flat += [each for value in flat if isinstance(value, list | tuple) for each in value]
        if not any(isinstance(each, fx.Proxy) for each in flat):
            raise TraceError(f"it calls {getattr(func, '__name__', func)} without its input")
        return func(*args, **kwargs)


#: Augmented assignments, which ``fx.Proxy`` would record as if they made new tensors.
IN_PLACE = tuple(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod"))
#: What a graph cannot depend on.
_PROPERTIES = ("dtype", "device", "requires_grad", "grad_fn", "grad", "is_leaf", "layout", "is_cuda", "data", "names")


class _Proxy(fx.Proxy):
    """A proxy that records augmented assignments, and knows the number of dimensions, so that it may be checked."""

    def __getattr__(self, name: str) -> Any:
        if name in _PROPERTIES:
            raise TraceError(f"it reads {name} of a tensor")
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute '{name}'")
        return super().__getattr__(name)

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
    """The number of elements of a tensor. ``forward`` may only ask whether it is zero; then eager runs."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        if other != 0:
            raise TypeError(f"the number of elements is compared with {other}")
        return False

    def __gt__(self, other: object) -> bool:
        return not self == other
