"""Verifies and times everything on a GPU in ten minutes.

    python build_tools/gpu.py --prepare --arch 9.0            # anywhere with nvcc: builds ahead of time
    python build_tools/gpu.py --stage all --seconds 540 --out results
    python build_tools/gpu.py --stage correctness --out results        # or time

Needs Python with torch (CUDA) and numpy; no make, git or network. Uses the libraries of --prepare if they load and
match the sources, else builds with nvcc. Everything runs in separate processes with time limits, so a hang, a crash or
a CUDA error fails only one case. Each result is written immediately. After every stage the results are packed into at
most eight files; summary.txt has the status of each stage. docs/gpu.md explains how to use them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from build_tools import gpu_setup, gpu_stages, sources  # noqa: E402

CUDA = "resnet_fused.cli.verify.backends:Cuda"
#: Stages by name, each with its share of the time that is left when it begins.
SETUP = {"machine": 10, "library": 90}
CORRECTNESS = {"primitives": 40, "kernels": 140, "tests": 70}
TIME = {"training": 70, "networks": 60, "peers": 60, "layers": 130, "compiled": 90, "profile": 40, "sanitizer": 40}
DEFAULT_SECONDS, LEAST_SECONDS = 540, 30
KEPT_S = 20  # reserved at the end for packing results


def main(argv: list[str] | None = None) -> int:
    """Returns status 0 if everything that ran is right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("correctness", "time", "all"), default="all")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="for everything (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu-out"), help="folder (%(default)s)")
    parser.add_argument("--prepare", action="store_true", help="build libraries for a GPU machine, and run nothing")
    parser.add_argument("--arch", default="9.0", help="with --prepare: the GPU's compute capability (%(default)s)")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time that test (%(default)s)")
    parser.add_argument("--case-seconds", type=float, default=20, help="a case that takes longer hangs (%(default)s)")
    parser.add_argument("--backend", default=CUDA, help="module:class of a stand-in, to rehearse without a GPU")
    args = parser.parse_args(argv)
    if args.prepare:
        return gpu_setup.prepare(args.arch)
    if args.seconds < LEAST_SECONDS:
        parser.error(f"--seconds is {args.seconds:g}; {LEAST_SECONDS} at least, and {DEFAULT_SECONDS} for everything")
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _stop)
    with tempfile.TemporaryDirectory(prefix="resnet_fused-gpu-") as work:
        return Run(args, Path(work)).run()


def _stop(*_: object) -> None:
    """Ends the run on SIGTERM, which time limits send: stops processes and packs results."""
    signal.setitimer(signal.ITIMER_REAL, 1)  # raise again, in case a fork callback swallows this exception
    sys.exit(143)


class Run:
    """One run: folders, clock, failures."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.work = args, work
        self.out = args.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)
        for file in self.out.iterdir():  # from an earlier run
            if file.is_file() and file.name in gpu_stages.FILES:
                file.unlink()
        self.end = time.monotonic() + args.seconds
        self.ends: dict[str, str] = {}  # how each stage ended
        self.facts: dict[str, Any] = {}
        self.verification: Any = None  # once the library has loaded

    def folder(self, name: str) -> Path:
        """A temporary folder of the run."""
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def say(self, line: str) -> None:
        print(line, flush=True)
        with (self.out / "summary.txt").open("a") as summary:
            summary.write(line + "\n")

    def run(self) -> int:
        chosen = {"correctness": CORRECTNESS, "time": TIME, "all": {**CORRECTNESS, **TIME}}[self.args.stage]
        shares = {**SETUP, **chosen}
        commit = sources.git_commit() or sources.built()[1] or "of an unknown commit"
        self.say(f"resnet_fused {commit}, sources {sources.digest()[:12]}")
        try:
            while shares:
                name = next(iter(shares))
                wrong = [n for n, how in self.ends.items() if how == "wrong" and n in CORRECTNESS]
                if name in TIME and wrong:
                    self.say(f"not timed, as this is wrong: {', '.join(wrong)}; --stage time does it anyway")
                    break
                left = self.end - KEPT_S - time.monotonic()
                self.ends[name] = self._stage(name, max(0.0, left * shares[name] / sum(shares.values())))
                if name in SETUP and self.ends[name] != "right":
                    break
                del shares[name]
        finally:  # even after an error
            signal.setitimer(signal.ITIMER_REAL, 0)
            bad = {name: how for name, how in self.ends.items() if how != "right"}
            words = ", ".join(f"{name} {how}" for name, how in bad.items())
            self.say("passed" if not bad and not shares else f"FAILED: {words or 'interrupted'}")
            self._pack()
        return 1 if bad or shares else 0

    def _stage(self, name: str, seconds: float) -> str:
        """ "right", "wrong", or "incomplete"."""
        begin = time.monotonic()
        self.say(f"-- {name}, {seconds:.0f} s")
        if self.verification is not None:
            self.verification.end = begin + seconds
        stage: Callable[[Run, float], str] = getattr(gpu_stages, name)
        try:
            how = stage(self, seconds)
        except Exception as error:  # a bug in one stage must not prevent the next
            self.say(f"{name}: {type(error).__name__}: {error}")
            how = "incomplete"
        self.say(f"{name}: {how} after {time.monotonic() - begin:.0f} s")
        self._pack()
        return how

    def _pack(self) -> None:
        """Packs the results so far into a few files, atomically."""
        for file in self.work.glob("keep/*"):
            shutil.copy2(file, self.out / f"{file.name}.part")
            os.replace(self.out / f"{file.name}.part", self.out / file.name)
        for folder, name in gpu_stages.ARCHIVES.items():
            if any((self.work / folder).rglob("*")):
                part = self.out / f"{name}.part"
                with tarfile.open(part, "w:gz", compresslevel=1) as archive:
                    archive.add(self.work / folder, arcname=folder)
                os.replace(part, self.out / name)


if __name__ == "__main__":
    sys.exit(main())
