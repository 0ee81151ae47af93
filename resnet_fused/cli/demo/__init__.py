"""``demo``: trains and converts a small network, then compares the speed of ResNets.

Writes demo.md, demo.json and demo.png. Exits with status 1 if accuracy, predictions or errors are out of bounds.
"""

import argparse
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from .. import _machine
from .._errors import CommandError
from . import chart, digits, photos, report, speed
from .settings import Settings, full, quick

DTYPES = (torch.float32, torch.bfloat16)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``[--quick] [--out DIR] [--device DEVICE]``."""
    parser.add_argument("--quick", action="store_true", help="about 30 s: ResNet-18 only, without torch.compile")
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="output folder (default: %(default)s)")
    parser.add_argument("--device", default=None, help="cpu, cuda, cuda:1, ... (default: a GPU if available)")


def main(args: argparse.Namespace) -> int:
    """Runs the demo and writes its files."""
    device = _device(args.device)
    return run(quick(device) if args.quick else full(device), args.out)


def run(settings: Settings, out: Path) -> int:
    """Returns 0 if every check passes, else 1."""
    try:
        out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    except OSError as error:
        raise CommandError(f"cannot write to {out}: {error.strerror}") from error
    machine = _machine.record(settings.device)
    console = Console()
    console.print(
        f"[bold]{escape(str(machine['device']))}[/], torch {machine['torch']}, load average {machine['load_average']}"
    )
    with Progress(
        TextColumn("{task.description:<42}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    ) as progress:
        trained = _digits(settings, progress)
        rows = _photos(settings, progress)

    failures = trained.failures() + [failure for row in rows for failure in row.failures()]
    report.write(out, machine, settings, trained, rows, failures)
    chart.draw(out / "demo.png", machine, settings, rows)

    console.print(f"\nDigits: {report.digits_sentence(trained)}\n")
    console.print(report.table(rows, settings.batch))
    for note in report.notes(rows):
        console.print(escape(note))
    if settings.omitted:
        console.print(f"Omitted from this short run: {'; '.join(settings.omitted)}.")
    for failure in failures:
        console.print(f"[bold red]FAILED[/] {escape(failure)}")
    console.print(f"Wrote demo.md, demo.json and demo.png to {escape(str(out))}", soft_wrap=True)
    return 1 if failures else 0


def _digits(settings: Settings, progress: Progress) -> digits.DigitsResult:
    task = progress.add_task("Digits: training", total=settings.epochs)
    return digits.run(settings.device, settings.epochs, lambda: progress.advance(task))


def _photos(settings: Settings, progress: Progress) -> list[speed.Row]:
    x = photos.crops(settings.batch, settings.size).to(settings.device)
    rows, start = [], time.perf_counter()
    for name in settings.models:
        for dtype in DTYPES:
            label = f"{name} {str(dtype).removeprefix('torch.')}"
            task = progress.add_task(f"{label}: preparing", total=4 + settings.rounds - (not settings.compile))

            def advance(done: str, task: TaskID = task) -> None:
                progress.update(task, advance=1, description=done)

            model = photos.network(name, x).to(dtype)
            elapsed = time.perf_counter() - start
            rows += speed.compare(name, model, x.to(dtype), settings, advance, elapsed)
            progress.update(task, description=label, total=progress.tasks[task].completed)
    return rows


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
