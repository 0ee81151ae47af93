"""Runs studies one after another; returns which of them failed. ``resnet_fused/cli/study.py`` is its command line."""

import importlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from resnet_fused.cli import _machine

from . import figures, publish
from .context import Context, process_pool

FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """How to run, and where to write."""

    seeds: tuple[int, ...]
    quick: bool
    cifar10: Path | None
    out: Path
    publish: bool  # write to studies/results and into the pages instead of ``out``
    command: str


def run(names: list[str], options: Options, console: Console) -> list[str]:
    """Runs the studies; returns one sentence for each disagreement between eager and fused networks."""
    failures = []
    columns = (TextColumn("{task.description:<44}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with process_pool() as pool:
        for name in names:
            study = importlib.import_module(f"studies.{name}")
            record = _machine.record(torch.device("cpu"))  # before the study: its own load is not another process
            start = time.monotonic()
            with figures.style(), Progress(*columns, console=console) as progress:
                report = study.run(Context(options.seeds, options.quick, options.cifar10, pool, progress))
            record |= {"seeds": options.seeds, "quick": options.quick, "command": options.command}
            record["minutes"] = round((time.monotonic() - start) / 60, 1)
            folder = (FOLDER / "results" if options.publish else options.out) / name
            with figures.style():
                publish.write(report, record, folder)
            text = publish.measured(report, record, f"results/{name}/" if options.publish else "")
            if options.publish:
                publish.update_page(FOLDER / f"{name}.md", text)
            else:
                (folder / "table.md").write_text(text, encoding="utf-8")
            console.print(f"\n{study.TITLE}\n")
            console.print(text, markup=False, highlight=False)
            console.print(f"Wrote {', '.join(report.figures)} (svg), results.json and the tables; see {folder}\n")
            failures += [f"{name}: {failure}" for failure in report.failures()]
    return failures
