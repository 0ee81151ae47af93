"""Derives the spec of a block from its ``forward``, and remembers specs for the structures that the block had."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..chain.spec import BlockSpec, Branch, Reason
from .block import Mismatch, match
from .structure import Partial, Same, Structure, code, structure, unseen
from .trace import copy_of, defaults, trace

_CONVERTED, _REMEMBERED = 4, 4  # structures of a block, at conversion and later


class Match(NamedTuple):
    """The spec of a block, or why it has none, while it has this structure.

    ``argument``: the name of an optional argument of ``forward`` that is given and is the shortcut; "" if none is.
    """

    structure: Structure
    found: BlockSpec | Mismatch
    argument: str = ""

    def code(self) -> Any:
        """Equal for blocks that run the same code and have the same chain."""
        return self.found if isinstance(self.found, BlockSpec) else str(self.found.reason), code(self.structure)


class Matches(tuple[Match, ...]):
    """The matches of a block. ``call_user_code``: whether a shortcut calls code that was not traced."""

    call_user_code: bool

    def __new__(cls, matches: Iterable[Match]) -> "Matches":
        self = super().__new__(cls, matches)
        self.call_user_code = any(map(calls_user_code, self))
        return self


def calls_user_code(match: Match) -> bool:
    """Whether the shortcut calls code that was not traced."""
    shortcut = match.found.shortcut if isinstance(match.found, BlockSpec) else None
    return isinstance(shortcut, Branch) and shortcut.calls_user_code


def in_modes(block: nn.Module, kind: type[nn.Module]) -> tuple[Match, ...]:
    """The matches of a block of class ``kind`` in eval and in training mode, then those with a given shortcut."""
    roots = [copy_of(block, kind, mode) for mode in (False, True)]
    matches = [Match(structure(root, kind), _match(root)) for root in roots]
    argument = shortcut_argument(kind)
    if argument and any(isinstance(each.found, BlockSpec) for each in matches):
        matches += [Match(structure(root, kind), _match(root, argument), argument) for root in roots]
    return tuple(matches)


def of_copy(block: nn.Module, kind: type[nn.Module], matches: tuple[Match, ...]) -> tuple[Match, ...]:
    """The matches of a deep copy of a block with these matches: others only if the copy holds other objects."""
    root = copy_of(block, kind, mode=False)
    return matches if structure(root, kind) == matches[0].structure else in_modes(block, kind)


def shortcut_argument(kind: type[nn.Module]) -> str:
    """The name of the optional argument of ``forward`` after x that may be the shortcut, "" if there is none."""
    name, default = next(iter(defaults(kind).items()), ("", None))
    return name if default is None else ""


def remember(block: nn.Module, matches: tuple[Match, ...]) -> None:
    """Stores matches of a block on the block."""
    block.__dict__["_matches"] = Matches(matches[:_CONVERTED] + matches[_CONVERTED:][-_REMEMBERED:])


def spec_of(block: Any) -> BlockSpec | Reason:
    """The spec of a converted block as it is now, or why it has none."""
    found = _remembered(block, "")
    return found.reason if isinstance(found, Mismatch) else found


def is_outdated(block: Any) -> bool:
    """Whether a converted block runs code that was not compared at conversion."""
    return _remembered(block, "") is _CHANGED


def spec_with_shortcut(block: Any) -> BlockSpec | Reason:
    """The same if the caller gives the shortcut."""
    found = _remembered(block, shortcut_argument(block._eager_class))
    return found.reason if isinstance(found, Mismatch) else found


def _remembered(block: Any, argument: str) -> BlockSpec | Mismatch:
    kind = block._eager_class
    known = [each for each in block.__dict__.get("_matches", ()) if each.argument == argument]
    if torch.compiler.is_dynamo_compiling():
        return next((each.found for each in known if _holds(block, each.structure)), _UNKNOWN)
    current = structure(block, kind)
    found = next((each.found for each in known if each.structure == current), None)
    if found is None:
        made = Match(current, _match(copy_of(block, kind), argument), argument)
        if isinstance(made.found, BlockSpec) and all(made.code() != each.code() for each in known):
            made = made._replace(found=_CHANGED)  # unlike what convert() compared
        remember(block, (*block.__dict__.get("_matches", ()), made))
        found = made.found
    return found


_CHANGED = Mismatch(Reason("it changed since it was converted; convert it again"))
_UNKNOWN = Mismatch(Reason("it changed since its last call; torch.compile cannot trace it again"))


def _holds(block: Any, known: Structure) -> bool:
    """Whether the block has this structure, in operations that torch.compile guards."""
    for part in known:
        module = block
        for step in part.path.split(".") if part.path else ():
            module = module._modules.get(step)
            if module is None:
                return False
        if part.path and type(module) is not part.kind:
            return False
        if [*module._modules.keys()] != [*part.modules.keys()]:
            return False
        for name, value in part.attributes.items():
            held = getattr(module, name, _UNKNOWN)
            if isinstance(value, Same):
                if held is not value.value:
                    return False
            elif isinstance(value, Partial):
                # torch.compile guards its arguments, and cannot compare partials
                if not isinstance(held, functools.partial):
                    return False
                if getattr(held.func, "__func__", held.func) is not value.function.value:
                    return False
            elif held != value:
                return False
    return True


def _match(root: nn.Module, argument: str = "") -> BlockSpec | Mismatch:
    reason = unseen(root, type(root))
    if reason is not None:
        return Mismatch(reason)
    traced = trace(root, argument)
    return Mismatch(traced) if isinstance(traced, Reason) else match(traced, argument)
