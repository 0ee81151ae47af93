"""``verify``: runs every CUDA kernel, or every CPU engine, on this machine and compares it with PyTorch in float64."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .processes import Limits

DEVICES = ("auto", "cuda", "cpu")
STATUS = {"right": 0, "wrong": 1, "incomplete": 1}
#: Concurrent processes: the GPU time-slices their kernels, and their contexts are isolated.
MAX_JOBS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options; all are optional."""
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: the GPU, or the CPU without one")
    parser.add_argument("--quick", action="store_true", help="small shapes only, without timing")
    parser.add_argument("--only", default="", help='kernels whose name contains this, e.g. "sm90/conv_rows 4x56"')
    parser.add_argument("--seconds", type=float, default=240.0, help="time limit of the run (default: %(default)g)")
    parser.add_argument(
        "--case-seconds",
        type=float,
        default=20.0,
        help="a case counts as hanging after this time (default: %(default)g)",
    )
    parser.add_argument("--out", type=Path, help="folder for report.json and the output of the processes")
    parser.add_argument("--backend", help=argparse.SUPPRESS)  # "module:class" of a replacement for the device


def main(args: argparse.Namespace) -> int:
    """Prints a table; returns 0 if every result is right, else 1."""
    if args.out is not None:
        return _verify(args, args.out)
    with tempfile.TemporaryDirectory(prefix="resnet_fused-verify-") as folder:
        return _verify(args, Path(folder))


def _verify(args: argparse.Namespace, folder: Path) -> int:
    from .._errors import CommandError
    from .stages import Verification  # imported here to keep --help fast

    limits = Limits(case=args.case_seconds, total=args.seconds)
    jobs = max(1, min(MAX_JOBS, (os.cpu_count() or 1) // 2))
    for backend in [args.backend] if args.backend else _backends(args.device):
        run = Verification(backend, folder, args.seconds, jobs, not args.quick, limits=limits, say=_say)
        device = run.device()
        if device["status"] == "pass":
            break
        _say(f"{backend.rpartition(':')[2]}: {device.get('why', device['status'])}")
    else:
        return 1
    found, refused = _cases(device["facts"], run.large)
    found = [case for case in found if args.only in case["kernel"]]
    if not found:
        raise CommandError(f"--only {args.only!r} matches no kernel; run without --only to list the kernels")
    results = run.run(found)
    if not args.quick:
        run.time()
    return _report(run, device["facts"], results, refused, keep=args.out is not None)


def _backends(device: str) -> list[str]:
    """The backends to try in order. A separate process checks whether the GPU works."""
    from ... import _library
    from .._errors import CommandError
    from .stages import CPU, CUDA

    if device == "cuda" and not _library.CUDA_LOADED:
        raise CommandError(f"--device cuda: the CUDA kernels did not load: {_library.CUDA_LOAD_ERROR}")
    if device == "auto" and not _library.CUDA_LOADED:
        _say(f"The CUDA kernels are not loaded ({_library.CUDA_LOAD_ERROR}); verifying the CPU.")
    return {"cpu": [CPU], "cuda": [CUDA], "auto": [CUDA, CPU] if _library.CUDA_LOADED else [CPU]}[device]


def _cases(facts: dict[str, Any], large: bool) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from . import cases

    if facts["device"] == "cpu":
        return cases.cpu_cases(large), {}
    found = cases.cuda_cases(facts["numbers"], large)
    return found, cases.refused(facts["numbers"], found)


def _report(run: Any, facts: dict[str, Any], results: list[dict[str, Any]], refused: dict[str, str], keep: bool) -> int:
    from . import report

    verdict = report.verdict(r for r in results if "ours_us" not in r)
    rows = report.families(run.results, refused)
    full = {
        "verdict": verdict,
        "environment": report.environment(facts),
        "families": rows,
        "results": run.results,
    }
    path = run.folder / "report.json"
    path.write_text(json.dumps(full, indent=1))
    _print_table(facts["name"], report.table(rows))
    for line in report.failures(results):
        _say(line)
    if verdict == "incomplete":
        _say(f"some cases did not run; give more time than --seconds {run.seconds:g}")
    _say(f"{facts['name']}: {verdict}" + (f"; {path} has every case" if keep else "; --out FOLDER keeps the report"))
    return STATUS[verdict]


def _print_table(title: str, cells: list[tuple[str, ...]]) -> None:
    import rich
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=None, pad_edge=False)
    for i, name in enumerate(cells[0]):
        table.add_column(name, justify="left" if i in (0, len(cells[0]) - 1) else "right", no_wrap=i == 0)
    for row in cells[1:]:
        table.add_row(*map(escape, row))
    rich.print(table)


def _say(line: str) -> None:
    print(line, flush=True)
