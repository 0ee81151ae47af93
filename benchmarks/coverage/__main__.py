"""``python -m benchmarks.coverage [--write] [--family NAME] [--models N]``: which residual blocks convert.

Prints the page, then where the matcher and the hand-written criterion of :mod:`.exact` disagree. ``--write`` writes
docs/coverage.md. Libraries that are not installed are listed as such.
"""

import argparse
import datetime
import importlib.metadata
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from .blocks import LEFT_OUT
from .families import FAMILIES
from .models import load_torchvision
from .survey import Result, survey

FILE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
DISTRIBUTIONS = ("torch", "torchvision", "timm", "transformers", "pytorchcv", "monai", "segmentation-models-pytorch")
COMMAND = "python -m benchmarks.coverage --write"
COMMONEST = 12


def page(results: list[Result]) -> str:
    """The page in Markdown."""
    return f"""<!-- Written by {COMMAND} -->
# Coverage
Residual blocks of public libraries, built without weights. *Exact*: a fused chain computes the same, judged by hand for
each class ([exact.py](../benchmarks/coverage/exact.py), [blocks.py](../benchmarks/coverage/blocks.py)), in eval mode,
where drop path computes nothing. *Converted*: `resnet_fused.convert` fused it. Models repeat blocks, so a share weighs
deep models more.

{chr(10).join(table(results))}

## Why the others are not exact
{chr(10).join(reasons(results))}

## Not counted
{chr(10).join(f"- {classes}: {why}" for classes, why in LEFT_OUT.items())}

{textwrap.fill(versions(), 118, break_on_hyphens=False)}.
{datetime.date.today().isoformat()}, `{COMMAND}`.
"""


def table(results: list[Result]) -> Iterator[str]:
    yield "| family | models | blocks | exact | converted | converted of exact |"
    yield "|---|---:|---:|---:|---:|---:|"
    for each in results:
        if each.missing:
            yield f"| {each.family} | not installed: {', '.join(each.missing)} | | | | |"
        else:
            yield row(each.family, each.models, len(each.found), each.exact, each.converted, right(each))
    total = [sum(column) for column in zip(*(numbers(each) for each in results), strict=True)]
    yield row("**all**", *total)


def numbers(result: Result) -> tuple[int, ...]:
    return result.models, len(result.found), result.exact, result.converted, right(result)


def right(result: Result) -> int:
    """The number of exact blocks that are converted."""
    return sum(each.converted and each.block.exact for each in result.found)


def row(name: str, models: int, blocks: int, exact: int, converted: int, both: int) -> str:
    parts = (f"{models}", f"{blocks}", share(exact, blocks), share(converted, blocks), percent(both, exact))
    return f"| {name} | {' | '.join(parts)} |"


def share(part: int, whole: int) -> str:
    return f"{part} ({percent(part, whole)})"


def percent(part: int, whole: int) -> str:
    """Rounded down, so that 100 % means all."""
    return f"{100 * part // whole} %" if whole else "-"


def reasons(results: list[Result]) -> Iterator[str]:
    counts = sum((each.reasons() for each in results), Counter())
    commonest = counts.most_common(COMMONEST)
    yield "| blocks | reason |"
    yield "|---:|---|"
    yield from (f"| {count} | {reason} |" for reason, count in commonest)
    rest = counts.total() - sum(count for _, count in commonest)
    if rest:
        yield f"| {rest} | other |"


def versions() -> str:
    return ", ".join(filter(None, map(version, (*DISTRIBUTIONS, "open_clip_torch"))))


def version(distribution: str) -> str:
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def discrepancies(results: list[Result]) -> Iterator[str]:
    """Where matcher and criterion disagree, most frequent first."""
    titles = ("Exact but not converted", "Converted but not exact")
    for title, counts in zip(
        titles, (merged(r.missed() for r in results), merged(r.overdone() for r in results)), strict=True
    ):
        yield f"{title}: {counts.total()}"
        yield from (f"  {count:6} {kind}: {reason}" for (kind, reason), count in counts.most_common())
    unlisted = merged(r.unlisted for r in results)
    yield f"Converted, but not listed as residual blocks: {unlisted.total()}"
    yield from (f"  {count:6} {kind}" for kind, count in unlisted.most_common())
    yield from (f"Not built: {failure}" for each in results for failure in each.failed)


def merged(counters: Iterable[Counter]) -> Counter:
    return sum(counters, Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--family", default="", help="only families whose name contains this")
    parser.add_argument("--models", type=int, help="at most this many models of each family")
    options = parser.parse_args()
    if options.write and (options.family or options.models):
        parser.error("--write needs the whole survey")
    load_torchvision()
    results = []
    for family in FAMILIES:
        if options.family.lower() in family.name.lower():
            start = time.perf_counter()
            results.append(survey(family, options.models))
            print(f"{family.name}: {time.perf_counter() - start:.0f} s", flush=True)
    text = page(results)
    print(text)
    print("\n".join(discrepancies(results)))
    if options.write:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
