"""Counts blocks, exact blocks and converted blocks of a family."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

import resnet_fused
from resnet_fused.convert import CONVERTED, STEM, Report

from .blocks import Block, blocks_of
from .exact import name_of
from .families import Family
from .models import build


class Found(NamedTuple):
    """A residual block, whether ``convert`` fused it, and what the report says if not."""

    block: Block
    converted: bool
    reason: str


class Result(NamedTuple):
    """A family's counts. ``unlisted`` counts classes that converted although they are not listed as blocks."""

    family: str
    models: int
    found: list[Found]
    unlisted: Counter[str]
    failed: list[str]
    missing: list[str]

    @property
    def exact(self) -> int:
        return sum(each.block.exact for each in self.found)

    @property
    def converted(self) -> int:
        return sum(each.converted for each in self.found)

    def reasons(self) -> Counter[str]:
        """Why blocks are not exact."""
        return Counter(each.block.why for each in self.found if not each.block.exact)

    def missed(self) -> Counter[tuple[str, str]]:
        """Class and reason of blocks that are exact but not converted."""
        wrong = (each for each in self.found if each.block.exact and not each.converted)
        return Counter((each.block.kind, each.reason) for each in wrong)

    def overdone(self) -> Counter[tuple[str, str]]:
        """Class and reason of blocks that are converted but not exact."""
        wrong = (each for each in self.found if each.converted and not each.block.exact)
        return Counter((each.block.kind, each.block.why) for each in wrong)


def survey(family: Family, limit: int | None = None) -> Result:
    """Builds the family's models, at most ``limit``, and converts them."""
    result = Result(family.name, 0, [], Counter(), [], family.missing())
    if result.missing:
        return result
    built = 0
    for name, construct in list(family.models())[:limit]:
        try:
            model = build(construct)
        except Exception as error:  # a library may fail in any way
            result.failed.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        built += 1
        blocks = list(blocks_of(model))
        try:
            result.found.extend(examine(model, blocks, result.unlisted))
        except Exception as error:  # a bug of the package, which must not hide the other models
            reason = f"convert raises {type(error).__name__}: {str(error)[:200]}"
            result.found.extend(Found(block, False, reason) for block in blocks)
    return result._replace(models=built)


def examine(model: nn.Module, blocks: list[Block], unlisted: Counter[str]) -> list[Found]:
    """Converts an eager model, looks up its blocks, and counts what else converted."""
    kinds = {name: name_of(type(module)) for name, module in model.named_modules()}
    after = resnet_fused.report(resnet_fused.convert(model))
    reasons = {name: entry.reason for name, entry in after.items()}
    fused = set(converted_names(after))
    listed = {block.name for block in blocks}
    unlisted.update(kinds[name] for name in fused - listed if after[name].kind != STEM)
    return [
        Found(each, each.name in fused, reasons.get(each.name) or reason_above(each.name, reasons)) for each in blocks
    ]


def converted_names(report: Report) -> Iterable[str]:
    return (name for name, entry in report.items() if entry.status == CONVERTED and not entry.runs_eagerly)


def reason_above(name: str, reasons: dict[str, str]) -> str:
    """The report's reason for the innermost module around a block, since a report does not list parts of a module."""
    while name:
        name = name.rpartition(".")[0]
        if name in reasons:
            return f"not listed; around it: {reasons[name]}"
    return "not listed"
