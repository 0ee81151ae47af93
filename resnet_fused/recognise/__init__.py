"""Exact types, and subclasses that compute the same -> how to fuse them, or the reason why not. One file a library."""

import sys

from torch import nn

from . import own
from ._blocks import Recogniser
from ._reasons import class_name
from ._subclasses import MadeOfSubclass, overridden, recogniser_of
from ._unknown import looks_like_a_block, parts_of

__all__ = [
    "Recogniser",
    "by_fused_class",
    "class_name",
    "find",
    "find_class",
    "looks_like_a_block",
    "near_miss",
    "overridden",
    "parts_of",
]


def find(module: nn.Module) -> Recogniser | None:
    """The recogniser of the module's class, eager or already fused."""
    return find_class(type(module))


def find_class(kind: type[nn.Module]) -> Recogniser | None:
    """The recogniser of a class, of its exact base, or of the base that it leaves alone."""
    exact = next((r for r in _recognisers() if kind in (r.eager, r.fused)), None)
    if exact is not None:
        return exact
    base = _nearest(kind)
    if base is not None and issubclass(kind, MadeOfSubclass) and MadeOfSubclass in kind.__bases__:
        return recogniser_of(kind._eager_class, base)
    if base is None or not issubclass(kind, base.eager) or issubclass(kind, base.fused):
        return None
    return recogniser_of(kind, base) if overridden(kind, base) is None else None


def near_miss(module: nn.Module) -> Recogniser | None:
    """The recogniser of the nearest class that the module's class derives from: it may mean something else."""
    return _nearest(type(module))


def by_fused_class(module: nn.Module) -> Recogniser | None:
    """The recogniser that made this converted module, None for an eager one."""
    kind = type(module)
    if MadeOfSubclass in kind.__bases__:
        return find_class(kind)
    return next((r for r in _recognisers() if kind is r.fused), None)


def _nearest(kind: type[nn.Module]) -> Recogniser | None:
    known = {each: r for r in _recognisers() for each in (r.eager, r.fused)}
    return next((known[each] for each in kind.__mro__[1:] if each in known), None)


def _recognisers() -> tuple[Recogniser, ...]:
    # A model that holds torchvision's blocks has imported them; nothing else should pay for it.
    if "torchvision.models.resnet" in sys.modules:
        from . import torchvision

        return (*own.RECOGNISERS, *torchvision.RECOGNISERS)
    return own.RECOGNISERS
