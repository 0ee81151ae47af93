"""Creates fused classes at run time for subclasses of known classes that do not override the computation."""

import abc
import inspect
import types
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

from torch import nn

from ..chain.spec import class_name
from ..modules import FusedBlock
from ..modules._packing import OwnsPackedWeights
from ._blocks import Recogniser

# Methods involved in calling, creating, copying and deleting an instance.
_CALL = ("__call__", "_call_impl", "_wrapped_call_impl", "__getattr__", "__getattribute__")
_INSTANCE = ("__new__", "__del__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__")
_ARGUMENTS = ("__getnewargs__", "__getnewargs_ex__", "__init_subclass__")
SPECIAL = {*_CALL, *_INSTANCE, *_ARGUMENTS}
METACLASSES = (type, abc.ABCMeta)  # others may do anything when a class is made
#: Attributes of fused blocks, which a user's class must not define.
RESERVED = {"_eager_class", "_eager_methods", "_spec", "_seen", "_matches", "fused_class"}
RESERVED |= {name for kind in (FusedBlock, OwnsPackedWeights) for name in vars(kind) if not name.startswith("__")}
RESERVED = {name for name in RESERVED if not hasattr(nn.Module, name)}
# Layers are registered modules; a class attribute of the same name would shadow one.
_LAYERS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu", "act1", "downsample", "maxpool")
# Fused classes define these too, but cooperate through super() or only set a default.
_SHARED = ("_apply", "_load_from_state_dict", "recompute", "fused_training")
_ABSENT = object()


class DynamicFusedClass(nn.Module):
    """First base of the classes created here, which cannot be imported: instances are pickled by eager class."""

    _eager_class: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_by_eager_class(self, protocol)


def reduce_by_eager_class(module: Any, protocol: Any) -> Any:
    """``__reduce_ex__`` of a class that was created at run time."""
    state = nn.Module.__reduce_ex__(module, max(2, protocol))[2]  # type: ignore[index]
    return _new, (module._eager_class,), state


def overridden(kind: type[nn.Module], base: Recogniser) -> str | None:
    """Why a subclass of a known class may compute something else or cannot be fused; None if it can be fused.

    For a subclass of an already fused class only the first is checked.
    """
    computes = (*base.fused._eager_methods, *_CALL, *_LAYERS)
    if issubclass(kind, base.fused):
        return _first_override(kind, base.fused, computes)
    if type(kind) not in METACLASSES:
        return f"{class_name(kind)} has the metaclass {class_name(type(kind))}"
    reason = _first_override(kind, base.eager, (*computes, *_INSTANCE, *_ARGUMENTS, *_fusing_attributes(base)))
    if reason is not None:
        return reason
    try:
        recogniser_of(kind, base)
    except TypeError as error:  # inconsistent method resolution order
        return f"{class_name(kind)} cannot be combined with {class_name(base.fused)}: {' '.join(str(error).split())}"
    return None


def _first_override(kind: type, base: type, names: Iterable[str]) -> str | None:
    for name in names:
        if inspect.getattr_static(kind, name, _ABSENT) is not inspect.getattr_static(base, name, _ABSENT):
            return f"{class_name(kind)} overrides {name} of {class_name(base)}"
    return None


def recogniser_of(kind: type[nn.Module], base: Recogniser) -> Recogniser:
    """``base`` for its subclass ``kind``. The fused class derives from ``kind`` first, then from the fused base."""
    made = class_of(kind, DynamicFusedClass, DynamicFusedClass, kind, base.fused)
    return replace(base, eager=kind, fused=made)


def class_of(kind: Any, mark: type, *bases: Any, **attributes: Any) -> Any:
    """The fused class of ``kind`` with ``bases``, of which ``mark`` is one; created if necessary."""
    # Look in __subclasses__, which holds weak references; a cache here would keep the classes alive forever.
    made = next((each for each in kind.__subclasses__() if mark in each.__bases__), None)
    if made is None:
        attributes |= {
            "_eager_class": kind,
            "__module__": kind.__module__,
            "__doc__": f":class:`{class_name(kind)}`, converted.",
        }
        made = types.new_class(f"Fused{kind.__name__}", bases, exec_body=lambda space: space.update(attributes))
    return made


def new_instance(mark: Any, kind: Any) -> Any:
    """Called by pickle: an instance without state of the fused class of ``kind`` that ``mark`` makes."""
    made = mark.fused_class(kind)
    return made.__new__(made)


def reduced(module: Any, protocol: Any, mark: Any) -> Any:
    """``__reduce_ex__`` of a class that ``mark`` made at run time, without what is known of the module."""
    state: Any = nn.Module.__reduce_ex__(module, max(2, protocol))[2]
    return (
        new_instance,
        (mark, module._eager_class),
        {n: each for n, each in state.items() if n not in ("_seen", "_matches")},
    )


def _fusing_attributes(base: Recogniser) -> Iterator[str]:
    """Names of the attributes that the fused classes define."""
    for kind in base.fused.__mro__:
        if issubclass(kind, OwnsPackedWeights):
            yield from (name for name in vars(kind) if not name.startswith("__") and name not in _SHARED)


def _new(kind: type[nn.Module]) -> nn.Module:
    """Called by pickle: an instance without state of ``kind``'s fused class, or of ``kind`` if it cannot be fused."""
    from . import find_class  # here to avoid a circular import

    recogniser = find_class(kind)
    made = kind if recogniser is None else recogniser.fused
    return made.__new__(made)  # type: ignore[no-any-return]
