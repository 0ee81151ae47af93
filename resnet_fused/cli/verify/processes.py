"""Runs cases in processes of their own, so that a hang, a crash or a broken CUDA context costs one case and no more.

A :class:`Unit` is what one process does: cases, one after another. Its process writes a JSON line before each case and
another after it. The parent reads them, kills a process whose case takes too long, and starts another one for the cases
that are left. The parent itself never touches the device: a hung kernel can be killed only from outside.
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

#: How a case can end. ``hang``: killed after its time; ``died``: the process ended by itself, as by a signal.
STATUSES = ("pass", "wrong", "refused", "error", "hang", "died", "not run")

DONE, FATAL = 0, 70  # a process's exit status: all cases ran; the device is of no more use to this process
SECONDS_TO_DIE = 5.0
POLL_S = 0.02


@dataclass(frozen=True)
class Unit:
    """The cases of one process.

    ``work`` names a function as "package.module:function". The process calls it once with ``options``; it returns a
    function that takes a case (a JSON object with a unique "case") and returns its result: a JSON object with one of
    :data:`STATUSES` as "status". ``"fatal": true`` in a result ends the process, and another one takes what is left.
    Where one call runs all cases, the function has an attribute ``run_all`` that takes them and a function that writes:
    ``{"started": name}`` before each, its result after it, or with "case" for one that never started.
    """

    name: str
    work: str
    cases: tuple[dict[str, Any], ...]
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    most_failures: int = 2  # hangs and crashes after which the rest does not run
    fork: bool = True  # False where the environment changes what is imported


@dataclass(frozen=True)
class Limits:
    """Seconds. ``start``: until a process begins its first case; ``case``: of each; ``total``: of all units."""

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
    """Every case's result, in the order of the units; ``emit`` gets each as soon as it is known.

    ``folder`` receives what the processes write: ``<unit>.jsonl``, and ``<unit>.txt`` with their output. ``fork``
    starts processes without importing torch again, in a second rather than in ten; it needs a parent that has neither
    used the device nor run anything in parallel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + limits.total
    results: dict[str, Result] = {}
    waiting, running = list(reversed(units)), list[_Running]()

    def know(unit: Unit, case: dict[str, Any], result: Result) -> None:
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
                for case, result in process.news(out_of_time=time.monotonic() >= end):
                    know(process.unit, case, result)
                if process.ended:
                    running.remove(process)
    finally:
        for process in running:
            process.kill()
    for unit in waiting:
        for case in unit.cases:
            know(unit, case, {"status": "not run", "why": "no time was left"})
    return [results[_key(unit, case)] for unit in units for case in unit.cases]


def _stem(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def printed(folder: Path, unit: str, beginning: str) -> list[str]:
    """The lines that a unit's processes printed and that begin so."""
    text = (folder / f"{_stem(unit)}.txt").read_text(errors="replace")
    return [line for line in text.splitlines() if line.startswith(beginning)]


def _key(unit: Unit, case: dict[str, Any]) -> str:
    return f"{unit.name}\0{case['case']}"


class _Running:
    """A unit, and the process that runs what is left of it."""

    def __init__(self, unit: Unit, folder: Path, limits: Limits, fork: bool) -> None:
        self.unit, self.limits, self.fork = unit, limits, fork
        self.log, self.output = (folder / f"{_stem(unit.name)}.{kind}" for kind in ("jsonl", "txt"))
        self.log.write_bytes(b"")
        self.output.write_bytes(b"")
        self.left = list(unit.cases)
        self.read = self.failures = 0
        self.ended = False
        self._start()

    def _start(self) -> None:
        self.started: str | None = None
        self.deadline = time.monotonic() + self.limits.start
        job = {**asdict(self.unit), "cases": self.left, "log": str(self.log)}
        self.process = (_Forked if self.fork and self.unit.fork else _Spawned)(job, self.output)

    def news(self, out_of_time: bool) -> Iterator[tuple[dict[str, Any], Result]]:
        """What is known since the last call; ends or replaces the process where it has come to that."""
        status = self.process.poll()  # before the log is read, which is then complete
        yield from self._read()
        if status is None and time.monotonic() < self.deadline and not out_of_time:
            return
        if status is None:
            self.kill()
        if not self.left:
            self.ended = True
            return
        if status != FATAL or self.started is not None:
            yield self._failed(status, out_of_time)
        if self.failures >= self.unit.most_failures or out_of_time:
            why = "no time was left" if out_of_time else f"{self.failures} cases before it hung or crashed"
            yield from ((case, {"status": "not run", "why": why}) for case in self.left)
            self.left.clear()
        if self.left:
            self._start()
        else:
            self.ended = True

    def _failed(self, status: int | None, out_of_time: bool) -> tuple[dict[str, Any], Result]:
        """The case that the process was at, or was about to begin, when it ended."""
        begun, case = self.started is not None, self._take(self.started)
        self.failures += 1
        if status is None and out_of_time:
            return case, {"status": "not run", "why": "the time ended while it ran" if begun else "no time was left"}
        if status is None:
            seconds = self.limits.case if begun else self.limits.start
            return case, {"status": "hang", "why": f"nothing after {seconds:g} s{'' if begun else ' of starting'}"}
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        last = self.output.read_text(errors="replace").strip().splitlines()[-1:]
        return case, {"status": "died", "why": ": ".join([how, *last])}

    def _read(self) -> Iterator[tuple[dict[str, Any], Result]]:
        with self.log.open("rb") as file:
            file.seek(self.read)
            lines = file.read().split(b"\n")
        for line in lines[:-1]:  # the last one may be half written
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
        """The case of that name, the next one without, which is no longer left."""
        case = next((case for case in self.left if case["case"] == name), self.left[0])
        self.left.remove(case)
        return case

    def kill(self) -> None:
        self.process.kill()
        end = time.monotonic() + SECONDS_TO_DIE  # never longer: a process in the driver may not die at all
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
        except (ProcessLookupError, PermissionError):  # it has ended, or has not made its group yet
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
    """The process of a unit; it does not return."""
    os.environ.update(job["environment"])
    log = os.open(job["log"], os.O_WRONLY | os.O_APPEND)

    def write(event: dict[str, Any]) -> None:
        os.write(log, json.dumps(event).encode() + b"\n")  # one write: complete, whatever comes next

    def leave(status: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # nothing here is worth finalising, and a broken device may hang there

    module, _, name = job["work"].partition(":")
    run_case = getattr(importlib.import_module(module), name)(job["options"])
    if hasattr(run_case, "run_all"):
        run_case.run_all(job["cases"], write)
        leave(DONE)
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
            leave(FATAL)
    leave(DONE)


def sentence(error: BaseException) -> str:
    """An exception in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
