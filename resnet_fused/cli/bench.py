"""``bench``: turns results of ``pytest benchmarks`` into tables and charts, and optionally runs it first."""

import argparse
import datetime
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from . import _bench_tables as tables
from . import _charts
from ._bench_results import Results, load
from ._errors import CommandError

DEFAULT_OUT = Path("benchmarks/results")
AUTOSAVED = Path(".benchmarks")  # output folder of pytest-benchmark's --benchmark-autosave
REPORT, NOTES = "README.md", "notes.md"
BUSY = (
    "**The machine was busy: do not trust these numbers.** Load does not slow all contenders equally: OpenMP "
    "waits for its slowest thread, while the thread pools of some peers do not."
)
FILE_WIDTH = 140  # columns; rich's default of 80 for files would wrap every header


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "--json", nargs="+", type=Path, metavar="FILE",
        help="results of pytest --benchmark-json (default: the newest under --out or .benchmarks)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, metavar="FOLDER",
        help="write tables and charts to FOLDER/<machine> (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, metavar="OPTION",
        help="run pytest benchmarks first, with all options that follow --run: bench --run --quick",
    )  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Writes a report for each machine and shows its tables; returns pytest's exit status if it ran."""
    if args.run is not None and args.json:
        raise CommandError("--run writes its own results file: omit --json")
    status, paths = 0, args.json
    if args.run is not None:
        status, path = run(args.run, args.out)
        paths = [path]
    console = Console()
    if not console.is_terminal:
        console.width = FILE_WIDTH
    for results in load(paths or [newest(args.out)]):
        for grid in tables.speed_grids(results):
            console.print(grid.table())
        console.print(f"Wrote {write(results, args.out)}: these tables, charts, memory and accuracy.")
    return status


def run(options: list[str], out: Path) -> tuple[int, Path]:
    """Runs ``pytest benchmarks``; returns its exit status and results file."""
    if not Path("benchmarks/conftest.py").exists():
        raise CommandError("benchmarks/ not found: --run works only in a source checkout of resnet_fused")
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path = out / "runs" / f"{stamp}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    command = ["pytest", "benchmarks", "--benchmark-only", f"--benchmark-json={path}", *options]
    done = subprocess.run([sys.executable, "-m", *command], check=False)
    if not path.exists() or not path.stat().st_size:
        raise CommandError(f"`{' '.join(command)}` exited with status {done.returncode} and wrote no results")
    return done.returncode, path


def newest(out: Path) -> Path:
    """The most recently written results file."""
    found = [path for folder in (out, AUTOSAVED) if folder.is_dir() for path in folder.rglob("*.json")]
    if not found:
        raise CommandError(
            f"no results under {out} or {AUTOSAVED}; run "
            "`python -m resnet_fused bench --run`, or pass a file with --json"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def write(results: Results, out: Path) -> Path:
    """Writes the charts and the report to the machine's folder, including the hand-written ``notes.md`` there."""
    folder = out / results.slug
    folder.mkdir(parents=True, exist_ok=True)
    charts = _charts.write(results, folder)
    notes, path = folder / NOTES, folder / REPORT
    text = notes.read_text(encoding="utf-8") if notes.exists() else ""
    path.write_text(report(results, [chart.name for chart in charts], text), encoding="utf-8")
    return path


def report(results: Results, charts: list[str], notes: str = "") -> str:
    """The report in Markdown."""
    parts = [f"# Benchmarks on {results.device}", _header(results), _reading(results)]
    parts += [f"![{Path(chart).stem}]({chart})" for chart in charts]
    parts += [grid.markdown() for grid in tables.speed_grids(results)]
    parts.append(f"## Where resnet_fused loses\n\n{_losses(results)}")
    if notes:
        parts.append(notes.strip())
    if reasons := tables.not_measured(results):
        parts.append(f"## Not measured\n\n{tables.bullets(reasons)}")
    if remarks := tables.notes(results):
        parts.append(f"## How they ran\n\n{tables.bullets(remarks)}")
    if results.has_ours:
        parts.append(tables.detail_grid(results).markdown())
    return "\n\n".join(parts) + "\n"


def _header(results: Results) -> str:
    lines = [
        "Made by `python -m resnet_fused bench`; do not edit. The rules are in [benchmarks/README.md](../../README.md)."
    ]
    for r in results.runs:
        packages = ", ".join(f"{name} {version}" for name, version in r["packages"].items())
        lines.append(
            f"- {r['date']}, commit {r['commit'] or 'unknown'}: `{r['command']}`\n"
            f"  on {r['cpu']} ({r['cpu_capability']}), CUDA {r['cuda'] or 'none'}; "
            f"Python {r['python']}, torch {r['torch']}, oneDNN {r['onednn']}, {packages}; "
            f"load average before: {r['load_before']:.1f}"
        )
        if r["load_before"] > r["threads"] / 2:
            lines.append(f"  {BUSY}")
    return "\n\n".join([lines[0], "\n".join(lines[1:])])


def _reading(results: Results) -> str:
    return (
        "Medians of interleaved rounds. Bold: the fastest. ▼: resnet_fused is slower than that peer. "
        f"Half of the cells have an interquartile range below {100 * tables.spread(results):.1f} % "
        "of their median."
    )


def _losses(results: Results) -> str:
    if not results.has_ours:
        return "resnet_fused did not run; the reasons are below."
    return tables.bullets(tables.losses(results)) or "Nowhere in this run."
