"""Exact types -> how to fuse them, or the reason why not. One file a library."""

import sys

from torch import nn

from . import own
from ._blocks import Recogniser

__all__ = ["Recogniser", "by_fused_class", "find", "near_miss"]


def find(module: nn.Module) -> Recogniser | None:
    """The recogniser of the module's exact class, eager or already fused."""
    return next((r for r in _recognisers() if type(module) in (r.eager, r.fused)), None)


def near_miss(module: nn.Module) -> Recogniser | None:
    """The recogniser of the nearest class that the module's class derives from: it may mean something else."""
    known = {kind: r for r in _recognisers() for kind in (r.eager, r.fused)}
    return next((known[kind] for kind in type(module).__mro__[1:] if kind in known), None)


def by_fused_class(module: nn.Module) -> Recogniser | None:
    """The recogniser that made this converted module, None for an eager one."""
    return next((r for r in _recognisers() if type(module) is r.fused), None)


def _recognisers() -> tuple[Recogniser, ...]:
    # A model that holds torchvision's blocks has imported them; nothing else should pay for it.
    if "torchvision.models.resnet" in sys.modules:
        from . import torchvision

        return (*own.RECOGNISERS, *torchvision.RECOGNISERS)
    return own.RECOGNISERS
