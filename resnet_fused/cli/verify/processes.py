"""Runs cases in separate processes, so that a hang, a crash or a broken CUDA context costs one case only.

A :class:`Unit` is a list of cases that one process runs in order. The process writes a JSON line before and after each
case. The parent reads the lines, kills a process whose case takes too long, and starts another one for the remaining
cases. The parent never uses the device: a hung kernel can only be killed from another process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

Result = dict[str, Any]

#: Outcomes of a case. ``hang``: killed after its time limit; ``died``: the process exited or crashed.
STATUSES = ("pass", "wrong", "refused", "error", "hang", "died", "not run")

DONE, FATAL = 0, 70  # exit statuses of a process: all cases ran; the device is unusable in this process
KILL_TIMEOUT_S = 5.0
POLL_S = 0.02


@dataclass(frozen=True)
class Unit:
    """The cases of one process.

    ``work`` names a function as "package.module:function". The process calls it once with ``options``, and it returns
    ``run_case``. ``run_case`` takes a case (a JSON object with a unique "case") and returns its result: a JSON object
    whose "status" is one of :data:`STATUSES`. ``"fatal": true`` in a result ends the process, and a new process runs
    the remaining cases.

    If one call runs all cases, ``run_case`` has an attribute ``run_all(cases, write)`` instead. It writes ``{"started":
    name}`` before each case and its result after it, or a result with "case" for a case that never started.
    """

    name: str
    work: str
    cases: tuple[dict[str, Any], ...]
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    max_failures: int = 2  # number of hangs and crashes after which the remaining cases are skipped
    fork: bool = True  # False if the environment changes what is imported


@dataclass(frozen=True)
class Limits:
    """Time limits in seconds. ``start``: until a process starts its first case; ``case``: per case; ``total``: all."""

    start: float = 60.0
    case: float = 20.0
    total: float = 600.0


def run(
    units: Sequence[Unit],
    folder: Path,
    limits: Limits = Limits(),
    jobs: int = 1,
    fork: bool = True,
    emit: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Runs all cases and returns their results in the order of the units; ``emit`` gets each result at once.

    ``folder`` receives ``<unit>.jsonl`` with the results and ``<unit>.txt`` with the output of the processes. ``fork``
    starts processes without importing torch again (about 1 s instead of 10 s). It requires a parent that has neither
    used the device nor started parallel work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limits.total
    results: dict[str, Result] = {}
    waiting, running = list(reversed(units)), list[_Running]()

    def record(unit: Unit, case: dict[str, Any], result: Result) -> None:
        results[_key(unit, case)] = full = {"unit": unit.name, **case, **result}
        emit(full)

    try:
        while waiting or running:
            while waiting and len(running) < jobs and time.monotonic() < end:
                running.append(_Running(waiting.pop(), folder, limits, fork))
            if not running:
                break
            time.sleep(POLL_S)
            for process in list(running):
                for case, result in process.poll_results(out_of_time=time.monotonic() >= end):
                    record(process.unit, case, result)
                if process.ended:
                    running.remove(process)
    finally:
        for process in running:
            process.kill()
    for unit in waiting:
        for case in unit.cases:
            record(unit, case, {"status": "not run", "why": "out of time"})
    return [results[_key(unit, case)] for unit in units for case in unit.cases]


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def printed(folder: Path, unit: str, beginning: str) -> list[str]:
    """The lines of a unit's output that start with ``beginning``."""
    text = (folder / f"{_stem(unit)}.txt").read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith(beginning)]


def _key(unit: Unit, case: dict[str, Any]) -> str:
    return f"{unit.name}\0{case['case']}"


class _Running:
    """A unit and the process that runs its remaining cases."""

    def __init__(self, unit: Unit, folder: Path, limits: Limits, fork: bool) -> None:
        self.unit, self.limits, self.fork = unit, limits, fork
        self.log, self.output = (folder / f"{_stem(unit.name)}.{kind}" for kind in ("jsonl", "txt"))
        self.log.write_bytes(b"")
        self.output.write_bytes(b"")
        self.remaining = list(unit.cases)
        self.read = self.failures = 0
        self.ended = False
        self._start()

    def _start(self) -> None:
        self.started: str | None = None
        self.deadline = time.monotonic() + self.limits.start
        job = {**asdict(self.unit), "cases": self.remaining, "log": str(self.log)}
        self.process = (_Forked if self.fork and self.unit.fork else _Spawned)(job, self.output)

    def poll_results(self, out_of_time: bool) -> Iterator[tuple[dict[str, Any], Result]]:
        """Yields results since the last call; kills or replaces the process if needed."""
        status = self.process.poll()  # before the log is read, which is then complete
        yield from self._read()
        if status is None and time.monotonic() < self.deadline and not out_of_time:
            return
        if status is None:
            self.kill()
        if not self.remaining:
            self.ended = True
            return
        if status != FATAL or self.started is not None:
            yield self._failed(status, out_of_time)
        if self.failures >= self.unit.max_failures or out_of_time:
            why = "out of time" if out_of_time else f"{self.failures} cases before it hung or crashed"
            yield from ((case, {"status": "not run", "why": why}) for case in self.remaining)
            self.remaining.clear()
        if self.remaining:
            self._start()
        else:
            self.ended = True

    def _failed(self, status: int | None, out_of_time: bool) -> tuple[dict[str, Any], Result]:
        """The case that the process was running, or was about to start, when it ended."""
        started, case = self.started is not None, self._take(self.started)
        self.failures += 1
        if status is None and out_of_time:
            return case, {
                "status": "not run",
                "why": "out of time while it ran" if started else "out of time",
            }
        if status is None:
            seconds = self.limits.case if started else self.limits.start
            return case, {"status": "hang", "why": f"no result after {seconds:g} s{'' if started else ' of start-up'}"}
        cause = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last = self.output.read_text(errors="replace").strip().splitlines()[-1:]
        return case, {"status": "died", "why": ": ".join([cause, *last])}

    def _read(self) -> Iterator[tuple[dict[str, Any], Result]]:
        with self.log.open("rb") as file:
            file.seek(self.read)
            lines = file.read().split(b"\n")
        for line in lines[:-1]:  # the last one may be incomplete
            self.read += len(line) + 1
            event = json.loads(line)
            self.deadline = time.monotonic() + self.limits.case
            if "started" in event:
                self.started = event["started"]
                continue
            case = self._take(event.pop("case", self.started))
            self.started = None
            yield case, event

    def _take(self, name: str | None) -> dict[str, Any]:
        """Removes and returns the remaining case of that name, or the next one if there is none."""
        case = next((case for case in self.remaining if case["case"] == name), self.remaining[0])
        self.remaining.remove(case)
        return case

    def kill(self) -> None:
        self.process.kill()
        end = time.monotonic() + KILL_TIMEOUT_S  # bounded: a process stuck in the driver may never die
        while self.process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_S)


class _Forked:
    def __init__(self, job: dict[str, Any], output: Path) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setpgid(0, 0)
                to = os.open(output, os.O_WRONLY | os.O_APPEND)
                os.dup2(to, 1)
                os.dup2(to, 2)
                _work(job)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # it has ended, or has not created its process group yet
            os.kill(self.pid, signal.SIGKILL)


class _Spawned:
    def __init__(self, job: dict[str, Any], output: Path) -> None:
        code = f"import json, sys; from {__name__} import _work; _work(json.loads(sys.stdin.read()))"
        environment = {**os.environ, **job["environment"], "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with output.open("ab") as to:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=to, stderr=to, text=True,
                start_new_session=True, env=environment,
            )  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()

    def poll(self) -> int | None:
        return self._process.poll()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.killpg(self._process.pid, signal.SIGKILL)


def _work(job: dict[str, Any]) -> None:
    """Main function of a unit's process; does not return."""
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND)

    def write(event: dict[str, Any]) -> None:
        os.write(log, json.dumps(event).encode() + b"\n")  # a single write, so that a crash cannot leave a partial line

    def exit_with(status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # skip finalisation, which may hang on a broken device

    module, _, name = job["work"].partition(":")
    run_case = getattr(importlib.import_module(module), name)(job["options"])
    if hasattr(run_case, "run_all"):
        run_case.run_all(job["cases"], write)
        exit_with(DONE)
    for case in job["cases"]:
        write({"started": case["case"]})
        begin = time.monotonic()
        try:
            result = run_case(case)
        except Exception as error:
            traceback.print_exc()
            result = {"status": "error", "why": sentence(error)}
        write({**result, "seconds": round(time.monotonic() - begin, 3)})
        if result.get("fatal"):
            exit_with(FATAL)
    exit_with(DONE)


def sentence(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
