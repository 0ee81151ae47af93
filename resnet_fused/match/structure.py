"""What a trace of a block depends on: classes, attributes and the tree of its modules, but no values of tensors.

Whatever may change without :func:`structure` noticing is a reason not to trust a trace (:func:`unseen`).
"""

import enum
import functools
import itertools
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..chain import layers
from ..chain.layers import is_library_code, own_classes
from ..chain.spec import Reason

#: Attributes that are no part of a structure.
IGNORED = {*vars(nn.Module()), "_seen", "_matches"} - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_FIXED = (
    *_PLAIN,
    Number,  # numpy's too
    torch.dtype,
    torch.device,
    torch.Size,
    torch.memory_format,
    types.BuiltinFunctionType,
    types.ModuleType,
)


class Same:
    """An object that is compared by identity, also after ``copy.deepcopy``."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Unique, unlike the object's address, which another one may get later."""
        key = id(self.value)
        if key not in _numbers:
            _numbers[key] = _weakly(self.value, lambda _: _numbers.pop(key, None)), next(_counter)
        return f"{type(self.value).__name__} {_numbers[key][1]}"

    def __deepcopy__(self, memo: Any) -> "Same":
        return self


class Partial(NamedTuple):
    """A ``functools.partial`` and what it holds, which may change."""

    itself: Same
    function: Same  # without the object of a bound method
    args: Any
    keywords: Any


class Part(NamedTuple):
    """One module of a block: its own attributes, and the names of its submodules and tensors."""

    path: str
    kind: type
    version: tuple[int, ...]  # of the code of its classes
    attributes: dict[str, Any]
    modules: dict[str, Any]  # name -> whether it is a module
    tensors: dict[str, Any]  # name -> whether it is a tensor
    first: str  # the first path of this module, which differs if it is registered twice


Structure = tuple[Part, ...]


def structure(block: nn.Module, kind: type) -> Structure:
    """The structure of ``block``, whose eager class is ``kind``."""
    first: dict[int, str] = {}
    return tuple(
        Part(
            path,
            kind if part is block else type(part),
            code_version(kind if part is block else type(part)),
            {name: frozen(value) for name, value in vars(part).items() if name not in IGNORED and _counts(value)},
            {name: each is not None for name, each in part._modules.items()},
            {name: each is not None for name, each in (*part._parameters.items(), *part._buffers.items())},
            first.setdefault(id(part), path),
        )
        for path, part in block.named_modules(remove_duplicate=False)
    )


def _counts(value: Any) -> bool:
    return not issubclass(type(value), Tensor)  # such as an output that a hook stores: see unseen()


def frozen(value: Any, depth: int = 0) -> Any:
    """A copy of an attribute that later changes of the attribute do not reach."""
    if type(value) in _PLAIN or isinstance(value, Number):
        return value
    if type(value) in (list, tuple) and depth <= 4:
        return type(value)(frozen(each, depth + 1) for each in value)
    if type(value) is dict and depth <= 4:
        return {key: frozen(each, depth + 1) for key, each in value.items()}
    if type(value) is functools.partial and depth <= 4:
        function = getattr(value.func, "__func__", value.func)
        held = (frozen(each, depth + 1) for each in (value.args, value.keywords))
        return Partial(Same(value), Same(function), *held)
    return frozenset(map(repr, value)) if type(value) is set else Same(value)


def code(structure: Structure) -> Any:
    """What of a structure decides which code ``forward`` runs; equal for blocks that differ in sizes only.

    Settings of torch's layers do not count: they are read where they are used.
    """
    found = []
    for part in structure:
        own = () if is_library_code(part.kind) else _reachable(part.kind).names
        read = tuple(sorted((name, repr(value)) for name, value in part.attributes.items() if name in own))
        kind = part.kind if is_library_code(part.kind) else part.kind.__qualname__
        found.append((part.path, kind, part.version, read, tuple(part.modules.items()), tuple(part.tensors.items())))
    return tuple(found)


def unseen(block: nn.Module, kind: type, compared: bool = True) -> Reason | None:
    """Why a change of something that ``forward`` may read could not be seen.

    ``compared``: whether the trace is compared with ``forward``, which shows what a proxy hides.
    """
    inside = set(map(id, block.modules()))
    for path, part in block.named_modules():
        cls = kind if part is block else type(part)
        for name, value in vars(part).items():
            if name in IGNORED or _is_seen(value, inside) or is_opaque(value):
                continue
            if issubclass(type(value), Tensor) and not (not is_library_code(cls) and name in _reachable(cls).names):
                continue
            where = f"{path}.{name}" if path else name
            return Reason("{name} is a {}, whose changes would not be seen", where, type(value))
        if is_library_code(cls):
            continue
        reached = _reachable(cls)
        for name in _UNSAFE if compared else (*_UNSAFE, "isinstance"):
            if name in reached.names:
                return Reason("the code of {} uses {}", "", cls, name)
        for name, value in reached.globals.items():
            is_logger = isinstance(value, logging.Logger)
            if not (is_logger or _is_constant(value)) or _read_variables(value, reached.names):
                return Reason("the code of {} uses the global variable {}", "", cls, name)
        for owner in own_classes(cls):
            for name, value in vars(owner).items():
                if not (name.startswith(("__", "_abc_")) or _is_constant(value)):
                    return Reason("{}.{} is a {}, whose changes would not be seen", "", owner, name, type(value))
    return None


def _read_variables(space: Any, names: frozenset[str]) -> list[str]:
    """The variables that code may read of a user's class or module, such as a namespace of settings."""
    if isinstance(space, type):
        if is_library_code(space) or issubclass(space, (nn.Module, enum.Enum)):
            return []
    elif not isinstance(space, types.ModuleType) or _root(space.__name__) in _STABLE:
        return []
    return [name for name in names if type(vars(space).get(name)) in (*_PLAIN, list, dict, set) and name in vars(space)]


def _root(name: str) -> str:
    return name.partition(".")[0]


_STABLE = {"torch", "torchvision", "resnet_fused", *sys.stdlib_module_names}


#: What code sees of itself, of the world, or of tensors without their being traced.
_UNSAFE: tuple[str, ...] = (
    "type",
    "__class__",
    "print",
    "_parameters",
    "_buffers",
    "parameters",
    "named_parameters",
    "buffers",
)
_UNSAFE += ("random", "numpy", "np", "time", "environ")
_CLOCKS = ("random", "numpy.random", "time")


def _is_constant(value: Any, depth: int = 0) -> bool:
    """Whether nothing that code reads of a value can change: a number, a function, a class, a module of functions."""
    if depth > 4:
        return False
    if type(value) in (tuple, frozenset):
        return all(_is_constant(each, depth + 1) for each in value)
    if isinstance(value, staticmethod | classmethod):
        return _is_constant(value.__func__, depth + 1)
    if isinstance(value, functools.cached_property):
        return True
    if isinstance(value, property):
        return all(each is None or _is_constant(each, depth + 1) for each in (value.fget, value.fset, value.fdel))
    if isinstance(value, types.FunctionType):
        cells = (cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell))
        return all(_is_constant(each, depth + 1) for each in cells)
    return isinstance(value, (*_FIXED, type)) and getattr(value, "__name__", "") not in _CLOCKS


def _is_seen(value: Any, inside: set[int], depth: int = 0) -> bool:
    """Whether a change of the value is a change of an attribute. ``inside``: the ids of modules that are watched."""
    if depth > 4:  # such as a list that contains itself
        return False
    if type(value) in (list, tuple, set):
        return all(_is_seen(each, inside, depth + 1) for each in value)
    if type(value) is dict:
        return all(_is_seen(each, inside, depth + 1) for each in value.values())
    if type(value) is functools.partial:
        held = (value.func, *value.args, *value.keywords.values())
        return all(_is_constant(each) and _is_seen(each, set(), depth + 1) for each in held)
    if layers.is_users_function(value):
        return False
    if isinstance(type(value), type) and issubclass(type(value), type):
        return is_library_code(value) or issubclass(value, nn.Module)
    return id(value) in inside or _is_constant(value)


def is_opaque(value: Any) -> bool:
    """Whether an attribute is a function or partial whose changes nothing shows: a shortcut may call it untraced."""
    return isinstance(value, functools.partial | types.FunctionType) and not _is_seen(value, set())


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


class _Reached(NamedTuple):
    """What the functions mention that ``forward`` of a class may call on the module, directly or not."""

    names: frozenset[str]
    globals: dict[str, Any]


_reached: "weakref.WeakKeyDictionary[type, tuple[tuple[int, ...], _Reached]]" = weakref.WeakKeyDictionary()


def _reachable(cls: type) -> _Reached:
    version = code_version(cls)
    known = _reached.get(cls)
    if known is None or known[0] != version:
        known = _reached[cls] = version, _reach(cls)
    return known[1]


def _reach(cls: type) -> _Reached:
    names: set[str] = set()
    variables: dict[str, Any] = {}
    methods, done = ["forward"], {"__init__"}
    functions: list[types.FunctionType] = []
    seen: set[int] = set()
    while methods or functions:
        if not functions:
            name = methods.pop()
            if name not in done:
                done.add(name)
                functions += [each for owner in own_classes(cls) for each in _functions(vars(owner).get(name))]
            continue
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        found = set(_names(function.__code__))
        names |= found
        methods += found
        read = layers.global_names(function.__code__)
        held = {name: function.__globals__[name] for name in read if name in function.__globals__}
        variables |= held
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        functions += [each for each in (*held.values(), *cells) if layers.is_users_function(each)]
    return _Reached(frozenset(names), variables)


def _functions(value: Any) -> Iterator[types.FunctionType]:
    """The Python functions behind a class attribute: a method, a property, what a decorator wraps."""
    for each in (
        value,
        getattr(value, "fget", None),
        getattr(value, "__func__", None),
        getattr(value, "__wrapped__", None),
    ):
        if isinstance(each, types.FunctionType):
            yield each
            inner = getattr(each, "__wrapped__", None)
            if isinstance(inner, types.FunctionType):
                yield inner


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    yield from (const for const in code.co_consts if isinstance(const, str))  # getattr(self, "name")
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _names(const)


# Weak: the caches must not keep anything alive. Numbers are unique.
_numbers: dict[int, tuple[Callable[[], Any], int]] = {}  # of objects that are compared by identity, by address
_versions: "weakref.WeakKeyDictionary[type, list[tuple[dict[str, Any], int]]]" = weakref.WeakKeyDictionary()
_counter = itertools.count()


def code_version(cls: type) -> tuple[int, ...]:
    """Numbers that change when a function or attribute of the class or its bases is replaced."""
    return (*map(_version, own_classes(cls)), _globals_version(cls))


def _globals_version(cls: type) -> int:
    """A number that changes when a global variable that the class's code uses is rebound, such as a helper."""
    own = tuple(map(_version, own_classes(cls)))
    for version, classes, held in _global_versions.setdefault(cls, []):
        if classes == own and all(space.get(name, layers.ABSENT) is value for space, name, value in held):
            return version
    version = next(_counter)
    held = (
        []
        if is_library_code(cls)
        else layers.globals_of(
            f for owner in own_classes(cls) for value in vars(owner).values() for f in _functions(value)
        )
    )
    _global_versions[cls].append((version, own, held))
    return version


_global_versions: "weakref.WeakKeyDictionary[type, list[Any]]" = weakref.WeakKeyDictionary()


def _version(cls: type) -> int:
    content = {name: value for name, value in vars(cls).items() if not _is_bookkeeping(name)}
    known = _versions.setdefault(cls, [])
    for held, version in known:
        if held.keys() == content.keys() and all(_is_same(held[name], value) for name, value in content.items()):
            return version
    version = next(_counter)
    known.append(({name: _held(value) for name, value in content.items()}, version))
    return version


def _held(value: Any) -> tuple[Callable[[], Any], Any]:
    return _weakly(value), _code(value)


def _is_same(held: tuple[Callable[[], Any], Any], value: Any) -> bool:
    return held[0]() is value and held[1] == _code(value)


def _code(value: Any) -> Any:
    """What of a function can be replaced in place."""
    return (value.__code__, value.__defaults__, value.__kwdefaults__) if isinstance(value, types.FunctionType) else None


def _weakly(value: Any, died: Callable[[Any], Any] | None = None) -> Callable[[], Any]:
    try:
        return weakref.ref(value, died)
    except TypeError:  # such as a number
        return lambda: value


def _is_bookkeeping(name: str) -> bool:
    return name.startswith("_abc_") or name in (
        "__slotnames__",
        "__doc__",
        "__annotations__",
        "__weakref__",
        "__dict__",
    )
