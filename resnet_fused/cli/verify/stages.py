"""The stages of a verification: device, truths, first cases, all cases, timing. Each runs a set of units."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import cases, processes
from .processes import Limits, Unit
from .report import BAD

Case = dict[str, Any]
Result = dict[str, Any]

EXECUTE = f"{__package__}.execute"
CUDA, CPU = f"{__package__}.backends:Cuda", f"{__package__}.backends:Cpu"
CASE_KEYS = ("case", "op", "mode", "kind", "shape", "engine", "kernel", "family")
MAX_BISECTED, BISECT_S = 6, 60.0  # number of families, seconds in total
MAX_LINES = 5  # printed lines of one kind
MIN_FREE_BYTES = 6 << 30  # free space required in /dev/shm to store the truths there
#: Environment variable with the path of a _C_cuda whose waits time out and report (CONTRIBUTING.md, "Flavours").
WATCHDOG = "RESNET_FUSED_WATCHDOG_LIBRARY"
NO_OVERLAP = {"RESNET_FUSED_CUDA_OVERLAP": "0"}
#: Kinds of numbers to time, in order of preference.
TIMED_KINDS = ("bfloat16", "float16", "tf32", "float32")


@dataclass
class Verification:
    """Verification of one device. ``log``: one JSON line per result, at once. ``seconds``: limit for all stages."""

    backend: str
    folder: Path
    seconds: float = 240.0
    jobs: int = 1
    large: bool = True
    fork: bool = True
    limits: Limits = field(default_factory=Limits)
    say: Callable[[str], None] = lambda line: None
    results: list[Result] = field(default_factory=list)
    log: Path | None = None  # default: folder/results.jsonl

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.log or self.folder / "results.jsonl"
        self.log.write_text("")
        self.kind = "cpu"  # device type: "cpu" or "cuda"
        self.end = time.monotonic() + self.seconds  # deadline of all units

    def run_units(self, stage: str, units: list[Unit], limits: Limits | None = None, jobs: int = 0) -> list[Result]:
        """Runs units, writes their results to the log, and prints a summary of the stage."""
        limits, begin = limits or self.limits, time.monotonic()
        left = max(0.0, min(limits.total, self.end - begin))
        within = Limits(limits.start, limits.case, left)

        def emit(result: Result) -> None:
            assert self.log is not None
            with self.log.open("a") as log:
                log.write(json.dumps({"stage": stage, **result}) + "\n")

        found = processes.run(units, self.folder / "processes", within, jobs or self.jobs, self.fork, emit)
        count = {s: sum(r["status"] == s for r in found) for s in processes.STATUSES}
        words = ", ".join(f"{number} {status}" for status, number in count.items() if number)
        self.say(f"{stage}: {words or 'nothing to run'} ({time.monotonic() - begin:.0f} s)")
        return found

    def device(self) -> Result:
        """Describes the device. Switches from forked to spawned processes if forked ones cannot use it."""
        unit = Unit("device", f"{EXECUTE}:facts", ({"case": "device"},), {"backend": self.backend})
        [result] = self.run_units("device", [unit])
        if result["status"] != "pass" and self.fork:
            self.fork = False
            [result] = self.run_units("device, in a new process", [unit])
        if result["status"] == "pass":
            self.kind = result["facts"]["device"]
        return result

    def run(self, found: list[Case], bisect: bool = False) -> list[Result]:
        """Runs the cases. If the first case of a family and tile hangs or crashes, its other cases are skipped.

        ``bisect`` reruns failed cases under other conditions, to help find the cause.
        """
        device = self.kind
        with _shared_folder() as truths:
            options = {
                "backend": self.backend,
                "truths": str(truths),
                "mismatches": str(self.folder / "mismatches"),
            }
            self._compute_truths(found, options)
            first = list({_tile(case): case for case in reversed(found)}.values())
            self.results = self._first_cases(first, device, options)
            broken = {_tile(r) for r in self.results if r["status"] in ("hang", "died")}
            rest = [case for case in found if case not in first]
            units = _by_environment([c for c in rest if _tile(c) not in broken], device, options)
            self.results += self.run_units("every case", units)
            why = "the first case of this family and tile hung or crashed"
            self.results += [{**c, "status": "not run", "why": why} for c in rest if _tile(c) in broken]
            if bisect:
                self._bisect(device, options)
        return self.results

    def _bisect(self, device: str, options: dict[str, Any]) -> None:
        """Reruns the first failed case of each family under other conditions, to narrow down the cause."""
        failed = list({r["family"]: r for r in reversed(self.results) if r["status"] in BAD}.values())
        failed.sort(key=lambda r: r["family"], reverse=True)  # sm90 first: the most complex kernels
        units, alone = list[Unit](), list[Case]()
        for case in [{k: r[k] for k in CASE_KEYS} for r in failed[:MAX_BISECTED]]:
            for name, other, variables in _variants(case):
                other = {**other, "case": f"{name}: {other['case']}"}
                alone += [other] if other["shape"] != case["shape"] else []
                variables = {**cases.environment(case, device), **variables}
                fork = "RESNET_FUSED_CUDA_LIBRARY" not in variables  # read at import, so a fork would ignore it
                name = f"bisect {len(units)}"
                units.append(Unit(name, f"{EXECUTE}:run_cases", (other,), options, variables, fork=fork))
        if units:
            truths = Unit("truths of smaller cases", f"{EXECUTE}:compute_truths", tuple(alone), options)
            self.run_units(truths.name, [truths])
            for r in self.run_units("bisect", units, Limits(self.limits.start, self.limits.case, BISECT_S)):
                self.say(f"  {r['status']}: {r['case']}{': ' + r['why'] if 'why' in r else ''}")
                for line in processes.printed(self.folder / "processes", r["unit"], "watchdog:")[:MAX_LINES]:
                    self.say(f"    {line}")

    def _compute_truths(self, found: list[Case], options: dict[str, Any]) -> None:
        problems = {cases.problem_of(case).name: case for case in found}
        units = [
            Unit(f"truths {i + 1}", f"{EXECUTE}:compute_truths", tuple(part), options)
            for i in range(self.jobs)
            if (part := list(problems.values())[i :: self.jobs])
        ]
        missing = [r for r in self.run_units("truths", units) if r["status"] != "pass"]
        for result in missing[:MAX_LINES]:
            self.say(f"  no truth of {result['case']}: {result.get('why')}")

    def _first_cases(self, first: list[Case], device: str, options: dict[str, Any]) -> list[Result]:
        units = [
            Unit(f"first {' '.join(_tile(case))}", f"{EXECUTE}:run_cases", (case,), options,
                 {**cases.environment(case, device), **NO_OVERLAP})
            for case in first
        ]  # fmt: skip
        return self.run_units("first cases", units)

    def time(self, budget_s: float = 60.0) -> list[Result]:
        """Times a large case of each family without failures against eager PyTorch."""
        bad = {r["family"] for r in self.results if r["status"] != "pass"}
        chosen = {r["family"]: r for r in sorted(self.results, key=_timing_order) if r["family"] not in bad}
        device = self.kind
        units = [
            Unit(f"time {r['family']}", f"{EXECUTE}:time_cases", ({k: r[k] for k in CASE_KEYS},),
                 {"backend": self.backend}, cases.environment(r, device))
            for r in chosen.values()
        ]  # fmt: skip
        limits = Limits(self.limits.start, self.limits.case, budget_s)
        timed = self.run_units("time", units, limits, jobs=1)
        self.results += [r for r in timed if r["status"] == "pass"]
        return timed


def _tile(case: Case) -> tuple[str, str]:
    """The family and tile of a case: cases that share them are likely to hang together."""
    return case["family"], case["engine"].removesuffix(":1").removesuffix(":3")


def _variants(case: Case) -> Iterator[tuple[str, Case, dict[str, str]]]:
    """Variants of a case for bisecting: repeated, without overlap, one image, with the watchdog library."""
    yield "again", case, {}
    yield "without overlap", case, NO_OVERLAP
    if case["shape"][0] > 1:
        one = {**case, "shape": [1, *case["shape"][1:]]}
        yield "one image", cases.case_of(cases.problem_of(one), case["engine"], case["kernel"], case["family"]), {}
    if watchdog := os.environ.get(WATCHDOG):
        yield "with waits that give up", case, {"RESNET_FUSED_CUDA_LIBRARY": watchdog}


def _timing_order(result: Result) -> tuple[int, int]:
    """Sort key; the last case is timed: preferred kind of numbers first, then the largest input."""
    kind = result["kind"]
    n, c, h, w = result["shape"][:4]
    return -TIMED_KINDS.index(kind) if kind in TIMED_KINDS else -len(TIMED_KINDS), n * c * h * w


def _by_environment(found: Iterable[Case], device: str, options: dict[str, Any]) -> list[Unit]:
    """One unit per engine and kind of numbers, since a process reads its environment once."""
    units: dict[str, list[Case]] = {}
    for case in found:
        units.setdefault(f"{case['engine'] or 'planned'} {case['kind']}", []).append(case)
    return [
        Unit(name, f"{EXECUTE}:run_cases", tuple(of), options, cases.environment(of[0], device))
        for name, of in units.items()
    ]


@contextmanager
def _shared_folder() -> Iterator[Path]:
    """A temporary folder, in memory (/dev/shm) if there is space."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > MIN_FREE_BYTES
    with tempfile.TemporaryDirectory(prefix="resnet_fused-verify-", dir=memory if roomy else None) as folder:
        yield Path(folder)
