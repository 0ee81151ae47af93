"""Detects methods of an eager class that were monkey-patched: the replacement must run instead of the fused code."""

import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from torch import nn

Methods = Mapping[str, Callable[..., Any] | None]


def original_methods(eager: type[nn.Module], *names: str) -> Methods:
    """The named methods of ``eager``, which its fused class reimplements; None for a method that is already patched.

    This runs when the fused class is created, which may be after a method was monkey-patched. ``functools.wraps``
    copies ``__name__`` and ``__qualname__`` to a replacement but not ``__globals__``, so the globals are compared too.
    """
    methods: dict[str, Callable[..., Any] | None] = {}
    for name in names:
        function = getattr(eager, name)
        owner = next(kind for kind in eager.__mro__ if name in vars(kind))
        is_original = (
            isinstance(function, FunctionType)
            and _defined_in(function, owner.__module__)
            and function.__qualname__ == f"{owner.__qualname__}.{name}"
        )
        methods[name] = function if is_original else None
    return methods


def _defined_in(function: FunctionType, module: str) -> bool:
    known = sys.modules.get(module)  # None for a class of code that was passed to exec
    return function.__globals__.get("__name__") == module if known is None else function.__globals__ is vars(known)


def replacement(module: Any, name: str) -> Callable[..., Any] | None:
    """The function that replaces method ``name`` of the eager class, or None if the method is the original."""
    current = getattr(module._eager_class, name)
    return None if current is module._eager_methods[name] else current


def first_replaced_method(eager: type[nn.Module], known: Methods) -> str | None:
    """The name of the first method in ``known`` that ``eager`` now implements by another function, or None."""
    return next((name for name, function in known.items() if getattr(eager, name) is not function), None)
