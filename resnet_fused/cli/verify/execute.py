"""Work functions of the ``verify`` processes: compute truths, run and judge cases on a backend, or time them."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ... import reference
from ...first_use import SUMS_FIRST, results_of_first
from . import truth as truths
from .cases import problem_of
from .problems import Problem
from .processes import sentence

Case = dict[str, Any]
Result = dict[str, Any]

ROUNDS = 20  # samples per contender
MAX_SAVED_BYTES = 8 << 20  # of mismatching outputs
SAVED_RADIUS = (1, 32, 8, 8)  # elements in N, C, H, W saved on either side of the first wrong element
BACK_TO_BACK_CALLS = 3  # calls without synchronisation: from sm_90 on their kernels overlap


class Backend(Protocol):
    """A device and the ops on it."""

    device: torch.device

    def call(self, op: str, *args: Any) -> Any:
        """The op's result; its kernels may still be running."""

    def synchronize(self) -> None:
        """Waits until all calls have finished; raises their errors."""

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        """Captures ``call`` in a graph; returns a function that replays it into the same outputs, or None."""

    def poisoned(self) -> AbstractContextManager[None]:
        """Fills new memory with NaN, as far as the backend can."""

    def healthy(self) -> bool:
        """Whether the device still works in this process: after a CUDA error it does not."""

    def facts(self) -> dict[str, Any]:
        """The device's name and the properties that a plan needs."""


def backend_of(options: dict[str, Any]) -> Backend:
    """The backend that ``options["backend"]`` names as "module:class"."""
    module, _, name = options["backend"].partition(":")
    return getattr(importlib.import_module(module), name)()


def facts(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Work of a unit with one case: describes the backend. Nothing else may use the device before."""

    def run(case: Case) -> Result:
        backend = backend_of(options)
        return {"status": "pass" if backend.healthy() else "error", "facts": backend.facts()}

    return run


def compute_truths(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Work of a unit of problems: saves each problem's truth to ``options["truths"]``."""
    device, folder = backend_of(options).device, Path(options["truths"])

    def run(case: Case) -> Result:
        problem = problem_of(case)
        with torch.no_grad():
            truths.save(truths.compute(problem, device), folder, problem)
        return {"status": "pass"}

    return run


def run_cases(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Work of a unit of cases: runs each with the process's environment and compares it with its truth."""
    runner = _Runner(backend_of(options), Path(options["truths"]), options.get("mismatches"))
    torch.backends.cudnn.deterministic = True  # the same algorithm inside and outside of graphs

    def run(case: Case) -> Result:
        with torch.no_grad():
            return runner.run(case)

    return run


def time_cases(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Work of a unit of cases that passed: median times of the op and of eager PyTorch, interleaved."""
    backend = backend_of(options)

    def run(case: Case) -> Result:
        problem = problem_of(case)
        args = truths.on(backend.device, problem.arguments())
        contenders: dict[str, Callable[[], Any]] = {
            "ours": lambda: backend.call(problem.op, *args, *problem.options()),
            "torch": lambda: getattr(reference, problem.op)(*args),
        }
        torch.backends.cudnn.allow_tf32 = problem.kind.tf32
        torch.backends.cudnn.benchmark = True
        with torch.no_grad():
            samples: dict[str, list[float]] = {name: [] for name in contenders}
            for call in contenders.values():
                call(), call()
            for _ in range(ROUNDS):
                for name, call in contenders.items():
                    samples[name].append(_seconds(backend, call))
        return {"status": "pass", **{f"{name}_us": statistics.median(s) * 1e6 for name, s in samples.items()}}

    return run


def _seconds(backend: Backend, call: Callable[[], Any]) -> float:
    if backend.device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class _Runner:
    def __init__(self, backend: Backend, folder: Path, mismatches: str | None) -> None:
        self.backend, self.folder = backend, folder
        self.mismatches = Path(mismatches) if mismatches else None
        self.problem: Problem | None = None

    def run(self, case: Case) -> Result:
        problem = problem_of(case)
        known = truths.load(self.folder, problem)
        if known is None:
            return {"status": "not run", "why": "its truth could not be computed"}
        args = truths.on(self.backend.device, problem.arguments())
        known = truths.Truth([t.to(self.backend.device) for t in known.outputs], known.allowed)

        def call() -> list[Tensor]:
            return truths.outputs_of(self.backend.call(problem.op, *args, *problem.options()))

        try:
            with truths.torch_convolves(problem):  # for convolutions that fall back to torch
                return self._judge(case, problem, args, known, call)
        except torch.OutOfMemoryError as error:
            return {"status": "refused", "why": sentence(error)}
        except Exception as error:
            return {"status": "error", "why": sentence(error), "fatal": not self.backend.healthy()}

    def _judge(
        self, case: Case, problem: Problem, args: list[Any], known: truths.Truth, call: Callable[[], list[Tensor]]
    ) -> Result:
        with self.backend.poisoned():
            first = call()
            self.backend.synchronize()
        wrong = self._compare(problem, args, first, known)
        if wrong:
            self._save_mismatch(case, wrong, first, known)
            return {"status": "wrong", **wrong}
        for run_kind, again in self._repetitions(call):
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                return {"status": "wrong", "why": f"other bits {run_kind}"}
        errors = self._errors(problem, args, first, known)
        return {"status": "pass", "of_allowed": round(max(errors), 3)}

    def _repetitions(self, call: Callable[[], list[Tensor]]) -> Any:
        """Repeats the call without other kernels in between, so that consecutive launches overlap where they can."""

        def several() -> list[list[Tensor]]:
            return [call() for _ in range(BACK_TO_BACK_CALLS)]

        found = several()
        self.backend.synchronize()
        yield from ((f"in call {i + 2}", outputs) for i, outputs in enumerate(found))
        replay = self.backend.capture(several)
        if replay is not None:
            for _ in range(2):
                found = replay()
                self.backend.synchronize()
                yield from (("from a graph", outputs) for outputs in found)
                for y in (y for outputs in found for y in outputs):
                    y.zero_()

    def _outputs(self, problem: Problem, args: list[Any], got: list[Tensor], known: truths.Truth) -> Any:
        """Yields each output with its truth and the allowed error."""
        yield got[0], known.outputs[0], known.allowed[0]
        if problem.op not in SUMS_FIRST:
            yield from zip(got[1:], known.outputs[1:], known.allowed[1:], strict=True)
            return
        eagers = results_of_first(problem.op, args, got[0])
        exact = results_of_first(problem.op, truths.as64(args), got[0].double())
        for y, eager, t in zip(got[1:], eagers, exact, strict=True):
            yield y, t, truths.allowed(eager, t)

    def _errors(self, problem: Problem, args: list[Any], got: list[Tensor], known: truths.Truth) -> list[float]:
        """Each output's largest error relative to the allowed error."""
        return [
            (y.double() - t).abs().max().item() / allowed if allowed else 0.0
            for y, t, allowed in self._outputs(problem, args, got, known)
        ]

    def _compare(self, problem: Problem, args: list[Any], got: list[Tensor], known: truths.Truth) -> Result | None:
        """Describes the first output that is wrong, or None."""
        for i, (y, t, allowed) in enumerate(self._outputs(problem, args, got, known)):
            if y.shape != t.shape:
                return {"why": f"output {i} has shape {list(y.shape)}, not {list(t.shape)}"}
            sums = problem.op in ("bn_stats", "bn_act_backward_reduce")  # in float32
            if i == 0 and not sums and y.dtype != problem.kind.dtype:
                return {"why": f"output 0 has dtype {y.dtype}, not {problem.kind.dtype}"}
            error = (y.double() - t).abs()
            bad = ~(error <= allowed)  # NaN counts as bad
            if not bad.any():
                continue
            at = tuple(int(v) for v in bad.nonzero()[0])
            count, nans = int(bad.sum()), int(torch.isnan(y).sum())
            largest = torch.where(torch.isfinite(error), error, 0).max().item()
            return {
                "why": f"output {i}: {count} of {y.numel()} elements are wrong, the first at {list(at)}: "
                f"{y[at].item():.6g} instead of {t[at].item():.6g}; {nans} are NaN, {int((y == 0).sum())} are 0; the "
                f"largest error is {largest:.3g}, {allowed:.3g} is allowed",
                "error": largest,
                "allowed": allowed,
                "first": list(at),
                "output": i,
            }
        return None

    def _save_mismatch(self, case: Case, wrong: Result, got: list[Tensor], known: truths.Truth) -> None:
        """Saves the neighbourhood of the first wrong element, up to :data:`MAX_SAVED_BYTES` in total."""
        if self.mismatches is None or "first" not in wrong:
            return
        self.mismatches.mkdir(parents=True, exist_ok=True)
        if sum(file.stat().st_size for file in self.mismatches.iterdir()) > MAX_SAVED_BYTES:
            return
        y, t, at = got[wrong["output"]], known.outputs[wrong["output"]], wrong["first"]
        near = tuple(slice(max(0, i - reach), i + reach) for i, reach in zip(at, SAVED_RADIUS[-len(at) :], strict=True))
        file = self.mismatches / f"{case['case'].replace(' ', '_').replace(':', '-')}.pt"
        torch.save({"case": case, **wrong, "got": y[near].clone().cpu(), "truth": t[near].clone().cpu()}, file)
