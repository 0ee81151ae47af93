"""What a process of ``verify`` does: computes truths, or runs a unit's cases on a backend and judges the results."""

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
from ...first_use import SUMS_FIRST, held_by
from . import truth as truths
from .cases import problem_of
from .problems import Problem
from .processes import sentence

Case = dict[str, Any]
Result = dict[str, Any]

ROUNDS = 20  # samples of each contender
MOST_KEPT = 8 << 20  # bytes of wrong outputs
NEAR = (1, 32, 8, 8)  # elements of N, C, H, W that are kept on either side of the first wrong one
BEHIND_EACH_OTHER = 3  # calls without a pause: from sm_90 on their kernels overlap


class Backend(Protocol):
    """A device, and the ops on it."""

    device: torch.device

    def call(self, op: str, *args: Any) -> Any:
        """The op's result; of kernels that may still run."""

    def synchronize(self) -> None:
        """Until all calls have ended; raises what went wrong in one."""

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        """Replays the call from a graph, and returns the same output tensors each time; None without graphs."""

    def poisoned(self) -> AbstractContextManager[None]:
        """New memory is filled with NaN, as far as the backend can."""

    def healthy(self) -> bool:
        """Whether the device still computes for this process: after a CUDA error it does not."""

    def facts(self) -> dict[str, Any]:
        """What the device is called, and what a plan reads of it."""


def backend_of(options: dict[str, Any]) -> Backend:
    """The one that ``options`` names as "module:class"."""
    module, _, name = options["backend"].partition(":")
    return getattr(importlib.import_module(module), name)()


def facts(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Unit of one case: what the backend is; nothing else may touch the device before."""

    def run(case: Case) -> Result:
        backend = backend_of(options)
        return {"status": "pass" if backend.healthy() else "error", "facts": backend.facts()}

    return run


def compute_truths(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Unit of problems: leaves each one's truth in ``options["truths"]``."""
    device, folder = backend_of(options).device, Path(options["truths"])

    def run(case: Case) -> Result:
        problem = problem_of(case)
        with torch.no_grad():
            truths.save(truths.compute(problem, device), folder, problem)
        return {"status": "pass"}

    return run


def run_cases(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Unit of cases: each runs as its engine says (the process's environment) and is compared with its truth."""
    runner = _Runner(backend_of(options), Path(options["truths"]), options.get("mismatches"))
    torch.backends.cudnn.deterministic = True  # the same algorithm in a graph as before it

    def run(case: Case) -> Result:
        with torch.no_grad():
            return runner.run(case)

    return run


def time_cases(options: dict[str, Any]) -> Callable[[Case], Result]:
    """Unit of cases that passed: the op's time and eager PyTorch's, in turn; medians."""
    backend = backend_of(options)

    def run(case: Case) -> Result:
        problem = problem_of(case)
        args = truths.on(backend.device, problem.arguments())
        contenders: dict[str, Callable[[], Any]] = {
            "ours": lambda: backend.call(problem.op, *args, *problem.how()),
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
            return truths.outputs_of(self.backend.call(problem.op, *args, *problem.how()))

        try:
            with truths.torch_convolves(problem):  # those that are left to it
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
            self._keep(case, wrong, first, known)
            return {"status": "wrong", **wrong}
        for how, again in self._repetitions(call):
            if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                return {"status": "wrong", "why": f"other bits {how}"}
        errors = self._errors(problem, args, first, known)
        return {"status": "pass", "of_allowed": round(max(errors), 3)}

    def _repetitions(self, call: Callable[[], list[Tensor]]) -> Any:
        """Nothing but our kernels runs between these calls, so that they overlap where they can."""

        def several() -> list[list[Tensor]]:
            return [call() for _ in range(BEHIND_EACH_OTHER)]

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
        """Each output with its truth and the error that is allowed."""
        yield got[0], known.outputs[0], known.allowed[0]
        if problem.op not in SUMS_FIRST:
            yield from zip(got[1:], known.outputs[1:], known.allowed[1:], strict=True)
            return
        eagers = held_by(problem.op, args, got[0])
        exact = held_by(problem.op, truths.as64(args), got[0].double())
        for y, eager, t in zip(got[1:], eagers, exact, strict=True):
            yield y, t, truths.allowed(eager, t)

    def _errors(self, problem: Problem, args: list[Any], got: list[Tensor], known: truths.Truth) -> list[float]:
        """Each output's largest error as a share of what is allowed."""
        return [
            (y.double() - t).abs().max().item() / allowed if allowed else 0.0
            for y, t, allowed in self._outputs(problem, args, got, known)
        ]

    def _compare(self, problem: Problem, args: list[Any], got: list[Tensor], known: truths.Truth) -> Result | None:
        """Where the first output that is wrong is so, and by how much; None if none is."""
        for i, (y, t, allowed) in enumerate(self._outputs(problem, args, got, known)):
            if y.shape != t.shape:
                return {"why": f"output {i} has shape {list(y.shape)}, not {list(t.shape)}"}
            sums = problem.op in ("bn_stats", "bn_act_backward_reduce")  # in float32
            if i == 0 and not sums and y.dtype != problem.kind.dtype:
                return {"why": f"output 0 is of {y.dtype}, not of {problem.kind.dtype}"}
            off = (y.double() - t).abs()
            bad = ~(off <= allowed)  # NaN is bad
            if not bad.any():
                continue
            at = tuple(int(v) for v in bad.nonzero()[0])
            count, nans = int(bad.sum()), int(torch.isnan(y).sum())
            largest = torch.where(torch.isfinite(off), off, 0).max().item()
            return {
                "why": f"output {i}: {count} of {y.numel()} elements are wrong, the first at {list(at)}: "
                f"{y[at].item():.6g} and not {t[at].item():.6g}; {nans} are NaN, {int((y == 0).sum())} are 0; the "
                f"largest error is {largest:.3g}, {allowed:.3g} is allowed",
                "error": largest,
                "allowed": allowed,
                "first": list(at),
                "output": i,
            }
        return None

    def _keep(self, case: Case, wrong: Result, got: list[Tensor], known: truths.Truth) -> None:
        """What lies around the first wrong element: a run with everything wrong must not fill a disk."""
        if self.mismatches is None or "first" not in wrong:
            return
        self.mismatches.mkdir(parents=True, exist_ok=True)
        if sum(file.stat().st_size for file in self.mismatches.iterdir()) > MOST_KEPT:
            return
        y, t, at = got[wrong["output"]], known.outputs[wrong["output"]], wrong["first"]
        near = tuple(slice(max(0, i - reach), i + reach) for i, reach in zip(at, NEAR[-len(at) :], strict=True))
        file = self.mismatches / f"{case['case'].replace(' ', '_').replace(':', '-')}.pt"
        torch.save({"case": case, **wrong, "got": y[near].clone().cpu(), "truth": t[near].clone().cpu()}, file)
