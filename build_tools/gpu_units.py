"""The functions that run in the processes of ``build_tools/gpu.py``; see resnet_fused/cli/verify/processes.py."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

Case = dict[str, Any]
Result = dict[str, Any]
Work = Callable[[Case], Result]

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ("-q", "-p", "no:cacheprovider", "-p", "no:terminalreporter", f"--rootdir={ROOT}")
FOUND_SOMETHING = 9  # exit status of a sanitizer that found errors
TAIL = 1000  # last characters of an error kept in a result; the unit's text file has all


def commands(options: dict[str, Any]) -> Work:
    """Cases are commands of tools. Their output goes to the unit's text file."""

    def run(case: Case) -> Result:
        print("$", *case["command"], flush=True)
        status = subprocess.run(case["command"], cwd=ROOT, stdin=subprocess.DEVNULL).returncode
        if status == 0:
            return {"status": "pass"}
        found = status == FOUND_SOMETHING
        return {"status": "wrong" if found else "not run", "why": f"exit status {status}; logs.tar.gz has its words"}

    return run


def calls(options: dict[str, Any]) -> Work:
    """Cases are the ``run`` of benchmarks, with arguments. They write their results themselves."""

    def run(case: Case) -> Result:
        module, _, name = case["call"].partition(":")
        arguments = {**case["arguments"], "out": Path(case["arguments"]["out"])}
        arguments["out"].mkdir(parents=True, exist_ok=True)
        if measured := sorted(arguments["out"].parent.rglob("kernels-*.json")) if "gpu_kernels" in module else []:
            arguments["peak"] = json.loads(measured[0].read_text())["roofline"]  # measured once per run
        report = getattr(importlib.import_module(module), name)(**arguments) or {}
        if wrong := list(_wrong(report)):
            return {"status": "wrong", "why": "; ".join(wrong)[:TAIL]}
        left_out = report.get("left_out") or []
        return {"status": "pass", **({"left_out": left_out} if left_out else {})}

    return run


def _wrong(report: Any, where: str = "") -> Iterator[str]:
    """Cases that a benchmark did not time because ours was wrong or failed."""
    if isinstance(report, dict):
        if "unavailable" in report and str(report.get("contender")).startswith("ours"):
            yield f"{report.get('workload')} {report['contender']}: {report['unavailable']}"
        for name, why in (report.get("failed") or {}).items():
            if name == "resnet_fused":
                yield f"{where}: {why}"
        for name, value in report.items():
            yield from _wrong(value, name)
    elif isinstance(report, list):
        for value in report:
            yield from _wrong(value, where)


def verified_once(case: str) -> None:
    """Runs one case of ``verify`` on the GPU, for a tool that watches this process."""
    import torch

    from resnet_fused.cli.verify import truth
    from resnet_fused.cli.verify.backends import Cuda
    from resnet_fused.cli.verify.cases import problem_of

    problem, backend = problem_of(json.loads(case)), Cuda()
    with torch.no_grad():
        backend.call(problem.op, *truth.on(backend.device, problem.arguments()), *problem.options())
        backend.synchronize()


def tests(options: dict[str, Any]) -> Any:
    """Cases are pytest's node ids; one session runs them all, and a test after a CUDA error gets a new process."""
    return _Tests(options)


class _Tests:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def run_all(self, cases: Sequence[Case], write: Callable[[Result], None]) -> None:
        import pytest

        wanted = [case["case"] for case in cases]
        events = _Events(write, wanted)
        status = pytest.main([*PYTEST, *wanted], plugins=[events])
        for node in events.left:  # pytest rejected it, or it does not exist
            write({"case": node, "status": "error", "why": f"pytest did not run it; its exit status is {int(status)}"})

    def __call__(self, case: Case) -> Result:
        raise NotImplementedError("run_all runs the cases")


class _Events:
    """A pytest plugin: an event before each test, another after it."""

    def __init__(self, write: Callable[[Result], None], wanted: Sequence[str]) -> None:
        self.write, self.left = write, list(wanted)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.begin, self.result = time.monotonic(), {"status": "pass"}
        self.write({"started": nodeid})

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            text = str(report.longrepr)
            self.result = {"status": "error" if report.when != "call" else "wrong", "why": text[-TAIL:]}
            if "CUDA error" in text or "cudaError" in text:
                self.result |= {"status": "error", "fatal": True}
            print(report.nodeid, text, sep="\n", flush=True)
        elif report.skipped:
            self.result = {"status": "refused", "why": str(report.longrepr)[-TAIL:]}

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.left.remove(nodeid)
        self.write({**self.result, "seconds": round(time.monotonic() - self.begin, 3)})
        if self.result.get("fatal"):
            sys.stdout.flush()
            os._exit(70)


def collect(options: dict[str, Any]) -> Work:
    """Returns the node ids of the tests in some files; collecting them may use the device."""

    def run(case: Case) -> Result:
        import pytest

        found = _Found()
        status = pytest.main([*PYTEST, "--collect-only", *case["files"]], plugins=[found])
        Path(options["out"]).write_text(json.dumps(found.nodes))
        if int(status) not in (0, 5):
            errors = "; ".join(found.errors)[:TAIL]
            return {"status": "error", "why": f"pytest's exit status is {int(status)}: {errors}"}
        return {"status": "pass", "count": len(found.nodes)}

    return run


class _Found:
    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.errors: list[str] = []

    def pytest_collection_finish(self, session: Any) -> None:
        self.nodes = [item.nodeid for item in session.items]

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors.append(f"{report.nodeid}: {str(report.longrepr)[-200:]}")
