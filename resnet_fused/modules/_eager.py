"""Notices where somebody replaced a method of an eager class, for all of its instances: then theirs is what runs."""

import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from torch import nn

Methods = Mapping[str, Callable[..., Any] | None]


def as_defined(eager: type[nn.Module], *names: str) -> Methods:
    """The methods of an eager class that fused classes stand in for; None for one that is not its library's own.

    Called when the fused class is made, which may be after somebody replaced a method. ``functools.wraps`` copies
    names onto a replacement, but not the globals that it was defined in.
    """
    methods: dict[str, Callable[..., Any] | None] = {}
    for name in names:
        function = getattr(eager, name)
        its_own = (
            isinstance(function, FunctionType)
            and function.__globals__ is vars(sys.modules[eager.__module__])
            and function.__qualname__ == f"{eager.__qualname__}.{name}"
        )
        methods[name] = function if its_own else None
    return methods


def replacement(module: Any, name: str) -> Callable[..., Any] | None:
    """What now stands where the eager class of a fused module had the method that fusing knows; None if that does."""
    now = getattr(module._eager_class, name)
    return None if now is module._eager_methods[name] else now


def replaced(eager: type[nn.Module], known: Methods) -> str | None:
    """The first of the ``known`` methods that ``eager`` has another function for."""
    return next((name for name, function in known.items() if getattr(eager, name) is not function), None)
