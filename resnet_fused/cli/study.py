"""``study``: runs one of the experiments of ``studies/``, on why residual networks work; writes figures and tables."""

import argparse
import importlib
import shlex
import sys
from pathlib import Path

from rich.console import Console

from ._errors import CommandError

SEEDS, QUICK_SEEDS = [0, 1, 2], [0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("name", metavar="NAME", help='a study, as listed by "study list", or "all"')
    parser.add_argument("--quick", action="store_true", help="a short form, in seconds: checks the code only")
    parser.add_argument("--seeds", type=int, nargs="+", help=f"default: {SEEDS}; {QUICK_SEEDS} with --quick")
    parser.add_argument(
        "--cifar10", type=Path, metavar="FOLDER", help="use CIFAR-10 from here; variants and teaching_errors do not"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("study-output"), metavar="FOLDER", help="output folder (default: %(default)s)"
    )
    parser.add_argument("--publish", action="store_true", help="write to studies/results and studies/NAME.md instead")


def main(args: argparse.Namespace) -> int:
    """Returns 0 if eager and fused networks agree everywhere, else 1."""
    if not Path("studies/common/runner.py").exists():
        raise CommandError("studies/ not found: `study` works only in a source checkout of resnet_fused")
    if args.publish and args.quick:
        raise CommandError("--publish needs a whole run: omit --quick")
    sys.path.insert(0, str(Path.cwd()))
    studies = importlib.import_module("studies").STUDIES
    console = Console(width=None if sys.stdout.isatty() else 140)
    if args.name == "list":
        for name, purpose in studies.items():
            console.print(f"{name:<22}{purpose}", highlight=False)
        return 0
    if args.name != "all" and args.name not in studies:
        raise CommandError(f"no study is named {args.name!r}; choose one of {', '.join(studies)}, or all")
    runner = importlib.import_module("studies.common.runner")
    command = shlex.join(["python", "-m", "resnet_fused", *sys.argv[1:]])
    seeds = args.seeds or (QUICK_SEEDS if args.quick else SEEDS)
    options = runner.Options(tuple(seeds), args.quick, args.cifar10, args.out, args.publish, command)
    failures = runner.run(list(studies) if args.name == "all" else [args.name], options, console)
    for failure in failures:
        console.print(f"[bold red]FAILED[/] {failure}", highlight=False)
    return 1 if failures else 0
