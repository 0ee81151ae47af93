"""The cases that reach every kernel: a problem, the requested engine, and the kernel that the plan selects for it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ... import ops, plans
from . import problems
from .problems import CONV_MODES, PASSES, Problem, Shape

Case = dict[str, Any]

CUDA_ENGINE, CPU_ENGINE, CPU_ISA = "RESNET_FUSED_CUDA_ENGINE", "RESNET_FUSED_CPU_ENGINE", "RESNET_FUSED_CPU_ISA"
TENSOR_CORE_KINDS = ("float16", "bfloat16", "tf32")
SCALAR_KINDS = ("float32", "float16", "bfloat16", "float64")
CPU_TIMED = ("float32",)
#: Maximum number of small and large shapes for each kernel and engine.
MAX_SMALL, MAX_LARGE = 3, 3
PASS_FAMILIES = tuple(dict.fromkeys(file for _, file in PASSES.values()))
TORCH = "torch + passes"


def case_of(problem: Problem, engine: str, kernel: str, family: str) -> Case:
    """A JSON object: what a process needs to run the problem, and its names in the report."""
    return {
        "case": f"{engine or 'planned'} {problem.name}",
        "op": problem.op,
        "mode": problem.mode,
        "kind": problem.kind_name,
        "shape": list(problem.shape),
        "engine": engine,
        "kernel": kernel,
        "family": family,
    }


def problem_of(case: Case) -> Problem:
    """The problem of a case."""
    op, mode, shape, kind = case["op"], case["mode"], Shape(*case["shape"]), case["kind"]
    if (op, mode) in CONV_MODES:
        return Problem(op, mode, shape, kind, CONV_MODES[op, mode])
    if (op, mode) in PASSES:
        return Problem(op, mode, shape, kind, PASSES[op, mode][0])
    return next(Problem(op, mode, shape, kind, p.draw_arguments) for p in problems.blocks(kind, large=False))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def environment(case: Case, device: str) -> dict[str, str]:
    """The environment variables for running the case."""
    if device == "cuda":
        return {CUDA_ENGINE: case["engine"], "RESNET_FUSED_CUDA_CHECK": "0"}
    engine, _, isa = case["engine"].partition("-")
    return {CPU_ENGINE: engine, CPU_ISA: isa}


# CUDA


def engine_names() -> list[str]:
    """The names of all engines, including torch."""
    return [name for name in ops.cuda_engines().split(", ") if name != "all"]


def cuda_engines() -> list[str]:
    """:func:`engine_names`, with each tile both unsplit (":1") and with its depth split in three (":3")."""
    engines = []
    for name in engine_names():
        tile = re.fullmatch(r"sm\d+:\d+x\d+", name)
        engines += [f"{name}:1", f"{name}:3"] if tile else [name]
    return engines


def cuda_cases(numbers: list[int], large: bool = True) -> list[Case]:
    """All cases for a GPU. ``numbers``: compute capability, SMs, shared memory per block and per SM."""
    found: list[Case] = []
    for engine in cuda_engines():
        with _environment({CUDA_ENGINE: engine}):
            found += _of_engine(engine, numbers, large)
    found += [
        case_of(p, "", f"{file} {kind}{' ' + mode if mode else ''}", file)
        for (op, mode), (_, file) in PASSES.items()
        for kind in SCALAR_KINDS
        for size in ((False, True) if large else (False,))
        for p in problems.passes(op, mode, kind, size)
    ]
    return found


def _of_engine(engine: str, numbers: list[int], large: bool) -> Iterator[Case]:
    for (op, mode), kind in ((m, k) for m in CONV_MODES for k in _kinds(engine)):
        for size, limit in ((False, MAX_SMALL), (True, MAX_LARGE if large else 0)):
            yield from _limit_per_kernel(engine, limit, numbers, problems.convolutions(op, mode, kind, size))
    for kind in ("float16", "bfloat16"):
        for size in (False, True) if large else (False,):
            yield from _limit_per_kernel(engine, MAX_SMALL, numbers, problems.blocks(kind, size))


def _kinds(engine: str) -> tuple[str, ...]:
    return tuple(problems.KINDS) if engine == "torch" else TENSOR_CORE_KINDS


def _limit_per_kernel(engine: str, limit: int, numbers: list[int], candidates: Iterable[Problem]) -> Iterator[Case]:
    """Cases for which the plan selects a kernel of the engine, at most ``limit`` for each kernel."""
    count: dict[str, int] = {}
    for problem in candidates:
        plan = plan_of(problem, numbers)
        kernel, family = cuda_kernel(problem, plan)
        if not _names(engine, "torch" if family == TORCH else plan.fields["engine"]):
            continue
        count[kernel] = count.get(kernel, 0) + 1
        if count[kernel] <= limit:
            yield case_of(problem, engine, kernel, family)


def _names(engine: str, planned: str) -> bool:
    """Whether an engine's name, with a tile and a number of parts perhaps, is that of a planned kernel."""
    return re.sub(r"(:\d+x\d+(:\d+)?)?$", "", engine) == planned


def plan_of(problem: Problem, numbers: list[int]) -> plans.Plan:
    """The plan for a problem on that GPU, with the reasons against other kernels."""
    s = problem.shape
    dtype, tf32 = str(problem.kind.dtype).removeprefix("torch."), problem.kind.tf32
    if problem.op == "basic_block":
        return plans.read(ops.explain_cuda_block([s.n, s.c, s.h, s.w], dtype, True, tf32, numbers))
    mode = "plain" if problem.mode == "residual" else problem.mode
    projection = (problems.projected(s), [problems.PROJECTED_STRIDE] * 2) if "projection" in mode else ([], [1, 1])
    residual = problem.mode in ("residual", "prologue", "gradient sums")
    geometry = ([s.n, s.c, s.h, s.w], [s.k, s.c, s.r, s.r], *s.pairs(), 1)
    return plans.read(ops.explain_cuda(*geometry, dtype, mode, *projection, residual, True, tf32, numbers))


def cuda_kernel(problem: Problem, plan: plans.Plan) -> tuple[str, str]:
    """The kernel that the plan selects, as named in the report, and its family."""
    kind = problem.kind_name
    if plan.kernel == "sm90/block_fwd":
        return f"{plan.kernel} {problem.shape.c} {kind}", plan.kernel
    if "/" not in plan.kernel:
        return f"{TORCH} {kind} {problem.mode}", TORCH
    fields = plan.fields
    split = " split" if fields["workspace"] else ""
    return f"{plan.kernel} {fields['tile_m']}x{fields['tile_n']} {kind} {fields['mode']}{split}", plan.kernel


def refused(numbers: list[int], found: Iterable[Case]) -> dict[str, str]:
    """The families that no case reaches on that GPU, with the plan's reason."""
    reached = {case["family"] for case in found}
    tried = [problems.convolutions(op, mode, "bfloat16", large=False)[0] for op, mode in CONV_MODES]
    reasons: dict[str, str] = {}
    for engine in cuda_engines():
        for problem in [*tried, problems.blocks("bfloat16", large=False)[0]]:
            with _environment({CUDA_ENGINE: engine}):
                rejected = plan_of(problem, numbers).rejected
            for each in rejected:
                if each.kernel not in reached and _names(engine, each.fields["engine"]):
                    reasons.setdefault(each.kernel, each.reason)
    return reasons


# CPU


def cpu_cases(large: bool = True) -> list[Case]:
    """All cases for this CPU. Engines are named as in RESNET_FUSED_CPU_ENGINE."""
    found: dict[tuple[str, str], Case] = {}
    for engine in ("", "direct", "onednn", "composed"):
        with _environment({CPU_ENGINE: engine}):
            for p in _cpu_convolutions(large):
                name = cpu_engine(p)
                kernel = f"cpu/{name} {p.kind_name} {p.mode}"
                found.setdefault((name, p.name), case_of(p, engine, kernel, f"cpu/{name}"))
    return [*found.values(), *_cpu_passes(large)]


def _cpu_convolutions(large: bool) -> Iterator[Problem]:
    """Small convolutions of all dtypes, and one large one for timing: large float64 ones take minutes on a CPU."""
    for (op, mode), kind in ((m, k) for m in CONV_MODES for k in SCALAR_KINDS):
        yield from problems.convolutions(op, mode, kind, large=False)
        if large and mode == "residual" and kind in CPU_TIMED:
            yield problems.convolutions(op, mode, kind, large=True)[0]


def _cpu_passes(large: bool) -> Iterator[Case]:
    for kind in SCALAR_KINDS:
        sizes = (False, True) if large and kind in CPU_TIMED else (False,)
        found = problems.blocks(kind, large=False)
        found += [p for size in sizes for op, mode in PASSES for p in problems.passes(op, mode, kind, size)]
        yield from (case_of(p, "", f"cpu/{p.op} {kind}", f"cpu/{p.op}") for p in found)


def cpu_engine(problem: Problem) -> str:
    """The engine that the plan selects for a convolution."""
    s = problem.shape
    dtype = str(problem.kind.dtype).removeprefix("torch.")
    return plans.read(ops.explain_cpu([s.n, s.c, s.h, s.w], [s.k, s.c, s.r, s.r], *s.pairs(), 1, dtype)).kernel
