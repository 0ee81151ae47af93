"""Maps module classes, by exact type or by equivalent subclass, to a recogniser: how to fuse, or why not.

There is one file per library.
"""

import sys
from collections.abc import Iterator

from torch import nn

from ..chain.spec import class_name
from ..modules import FusedBlock, FusedStage, stem
from ..modules.stem import RunsStages
from . import matched, own, registered, transformers
from ._blocks import Recogniser
from ._subclasses import DynamicFusedClass, overridden, recogniser_of
from ._unknown import looks_like_a_block, parts_of
from .chains import FusedChains, has_chains, modules_with_chains, why_eager
from .matched import Matched, MatchedBlock, blocks_in, is_residual, kind_of, revert_outdated
from .registered import register_block

__all__ = [
    "FusedChains",
    "Matched",
    "MatchedBlock",
    "Recogniser",
    "blocks_in",
    "by_fused_class",
    "class_name",
    "find",
    "find_base",
    "find_class",
    "has_chains",
    "is_residual",
    "kind_of",
    "looks_like_a_block",
    "modules_with_chains",
    "overridden",
    "parts_of",
    "parts_of_stem",
    "register_block",
    "revert_outdated",
    "stages_in",
    "why_eager",
]


def find(module: nn.Module) -> Recogniser | None:
    """The recogniser of the module's class, eager or fused, or None."""
    return find_class(type(module))


def find_class(kind: type[nn.Module]) -> Recogniser | None:
    """The recogniser of a class: known exactly, or through a base class whose computation it does not override."""
    exact = next((r for r in _recognisers() if kind in (r.eager, r.fused)), None) or matched.recogniser(kind)
    if exact is None and issubclass(kind, FusedChains):
        return Recogniser("chains", kind._eager_class, kind)
    if exact is not None:
        return exact
    base = _nearest(kind)
    if base is not None and issubclass(kind, DynamicFusedClass) and DynamicFusedClass in kind.__bases__:
        return recogniser_of(kind._eager_class, base)
    if base is None or not issubclass(kind, base.eager) or issubclass(kind, base.fused):
        return None
    return recogniser_of(kind, base) if overridden(kind, base) is None else None


def find_base(module: nn.Module) -> Recogniser | None:
    """The recogniser of the nearest known base class; the subclass itself may compute something else."""
    return _nearest(type(module))


def by_fused_class(module: nn.Module) -> Recogniser | None:
    """The recogniser that converted this module, or None for an eager module."""
    kind = type(module)
    if DynamicFusedClass in kind.__bases__:
        return find_class(kind)
    if kind is FusedStage:
        return Recogniser("stage", nn.Sequential, FusedStage)
    if matched.MatchedBlock in kind.__bases__ or FusedChains in kind.__bases__:
        return find_class(kind)
    return next((r for r in _recognisers() if kind is r.fused), None)


def parts_of_stem(network: nn.Module) -> Iterator[nn.Module]:
    """The submodules of a network whose stem is known that contain the stem's convolutions."""
    recogniser = find(network)
    return iter(()) if recogniser is None else stem.parts_of_stem(network, recogniser.fused._spec)


def stages_in(model: nn.Module) -> list[nn.Module]:
    """The ``nn.Sequential`` modules with at least two fused blocks, apart from those of networks with a fused stem."""
    handled = {part for network in model.modules() if isinstance(network, RunsStages) for part in network.modules()}
    return [
        module
        for module in model.modules()
        if type(module) is nn.Sequential
        and module not in handled
        and sum(isinstance(child, FusedBlock) for child in module) > 1
    ]


def _nearest(kind: type[nn.Module]) -> Recogniser | None:
    known = {each: r for r in _recognisers() for each in (r.eager, r.fused)}
    return next((known[each] for each in kind.__mro__[1:] if each in known), None)


def _recognisers() -> tuple[Recogniser, ...]:
    # A model of a library has already imported the library; do not import it for other models.
    found: tuple[Recogniser, ...] = own.RECOGNISERS
    if "torchvision.models.resnet" in sys.modules:
        from . import torchvision

        found += torchvision.RECOGNISERS
    if "timm.models.resnet" in sys.modules:
        from . import timm

        found += timm.RECOGNISERS
    return (*found, *transformers.recognisers(), *registered.recognisers())
