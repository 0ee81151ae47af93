"""What a trace of a block depends on: classes, attributes and the tree of its modules, but no values of tensors."""

import functools
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..chain.layers import is_library_code, own_classes
from ..chain.spec import Reason

_INTERNAL = {*vars(nn.Module()), "_seen", "_matches"} - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Compared by identity: nothing that a forward reads of these changes unseen.
_FIXED = (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType, functools.partial)


class Same:
    """An object that is compared by identity, also after ``copy.deepcopy``."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: Any) -> "Same":
        return self


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
            {name: frozen(value) for name, value in vars(part).items() if name not in _INTERNAL},
            {name: each is not None for name, each in part._modules.items()},
            {name: each is not None for name, each in (*part._parameters.items(), *part._buffers.items())},
            first.setdefault(id(part), path),
        )
        for path, part in block.named_modules(remove_duplicate=False)
    )


def frozen(value: Any) -> Any:
    """A copy of an attribute that later changes of the attribute do not reach."""
    if isinstance(value, _PLAIN):
        return value
    if type(value) in (list, tuple, set):
        return type(value)(map(frozen, value)) if type(value) is not set else ("set", *map(repr, value))
    if type(value) is dict:
        return {key: frozen(each) for key, each in value.items()}
    return Same(value)


def unseen(block: nn.Module, kind: type) -> Reason | None:
    """Why a change of something that ``forward`` may read could not be seen."""
    for path, part in block.named_modules():
        cls = kind if part is block else type(part)
        if is_library_code(cls):
            continue
        names = _names_in_code(cls)
        switch = next((name for name in _SWITCHES if name in names), None)
        if switch is not None:
            return Reason("{name} ({}) calls torch.{}", path, cls, switch)
        for name, value in vars(part).items():
            if name not in _INTERNAL and name in names and not _is_seen(value):
                where = f"{path}.{name}" if path else name
                return Reason("{name} is a {}, whose changes would not be seen", where, type(value))
    return None


_SWITCHES = ("is_grad_enabled", "is_autocast_enabled", "is_autocast_cpu_enabled", "is_inference_mode_enabled")


def _is_seen(value: Any) -> bool:
    if type(value) in (list, tuple, set):
        return all(map(_is_seen, value))
    if type(value) is dict:
        return all(map(_is_seen, value.values()))
    hidden = getattr(value, "__closure__", None) or ()
    if any(type(cell.cell_contents) in (list, dict, set) for cell in hidden if _is_filled(cell)):
        return False
    return isinstance(value, (*_PLAIN, *_FIXED, Tensor, nn.Module)) or type(value).__module__.startswith("torch")


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names_in_code(cls: type) -> set[str]:
    """All names that the functions of a class mention."""
    return {name for owner in own_classes(cls) for value in vars(owner).values() for name in _names(value)}


def _names(value: Any) -> Iterator[str]:
    value = getattr(value, "fget", value)  # a property
    value = getattr(value, "__func__", value)  # a static or class method
    code = getattr(value, "__code__", value)
    if isinstance(code, types.CodeType):
        yield from code.co_names
        yield from (const for const in code.co_consts if isinstance(const, str))  # getattr(self, "name")
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                yield from _names(const)


# Weak: the cache must not keep classes alive.
_versions: "weakref.WeakKeyDictionary[type, tuple[dict[str, Any], int]]" = weakref.WeakKeyDictionary()


def code_version(cls: type) -> tuple[int, ...]:
    """Numbers that change when a function or attribute of the class or its bases is replaced."""
    return tuple(map(_version, own_classes(cls)))


def _version(cls: type) -> int:
    content = {name: value for name, value in vars(cls).items() if not _is_bookkeeping(name)}
    known, version = _versions.get(cls, ({}, -1))
    same = known.keys() == content.keys() and all(known[name]() is value for name, value in content.items())
    if not same:
        version += 1
        _versions[cls] = {name: _weakly(value) for name, value in content.items()}, version
    return version


def _weakly(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # such as a number
        return lambda: value


def _is_bookkeeping(name: str) -> bool:
    return name.startswith("_abc_") or (name.startswith("__") and name not in ("__call__", "__getattr__"))
