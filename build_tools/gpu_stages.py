"""The stages of ``build_tools/gpu.py`` after its setup.

Each takes the run and a time limit in seconds and returns a status: "right"; "wrong"
if a result was wrong; "incomplete" if time, memory or a tool was missing.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import toolchain
from .gpu_setup import (
    INCOMPLETE,
    PRIMITIVES,
    RIGHT,
    WRONG,
    library,
    machine,
    of_these_sources,
)

if TYPE_CHECKING:
    from .gpu import Run

__all__ = ["compiled", "kernels", "layers", "library", "machine", "networks", "peers", "primitives", "profile"]
__all__ += ["sanitizer", "tests", "training"]

#: What a run leaves beside the folder "keep": archives of folders.
ARCHIVES = {"benchmarks": "benchmarks.tar.gz", "mismatches": "mismatches.tar.gz", "processes": "logs.tar.gz"}
FILES = {"summary.txt", "results.jsonl", "report.json", *ARCHIVES.values()}

UNITS = "build_tools.gpu_units"
UNCHECKED = {"RESNET_FUSED_CUDA_CHECK": "0"}  # otherwise eager's result would replace a wrong kernel's
TESTED = ("ops", "blocks", "training", "graphs")  # tests/test_cuda_<name>.py
TESTED_ON_CUDA = ("blocks", "functional", "convert", "lifecycle", "torchvision")  # tests/test_<name>.py, -k cuda
NEEDED = ("pytest", "hypothesis")  # imported by tests/conftest.py
TEST_SECONDS = 70.0  # longer than tests/gpu_guard.py's limit per test
NETWORKS = ["ResNet-50", "ResNet-18"]
STARTING_S = 4.0  # start-up of a benchmark process
ROWS_COST = 0.6  # relative cost of an engine that supports one of the four layers
SANITIZED = 4  # cases for the sanitizer: the first of each family
MOST_SAID = 20
OURS = "regex:conv_|block_fwd|bn_|pool_"  # kernel names for ncu
NCU = ["ncu", "--clock-control", "none", "--set", "detailed", "--page", "details", "--kernel-name", OURS]
NCU += ["--filter-mode", "per-launch-config", "--launch-count", "1"]


def primitives(run: Run, seconds: float) -> str:
    """Every PTX primitive alone; the outputs become golden data for the emulator."""
    from resnet_fused.cli.verify.processes import Limits
    from tests.cuda_primitives import gpu

    folder = run.folder("primitives")
    units = _stand_in(run, "primitives", lambda folder: _primitives_of_gpu(run, folder))(folder)
    if not units:
        return INCOMPLETE
    found = run.verification.run_units("primitives", units, Limits(60, 10, seconds))
    file = gpu.save_golden(folder, run.folder("keep"), run.facts["name"], f"capability {run.facts['capability']}")
    run.say(f"golden data: {file.name}")
    return _end_of(run, found)


def _primitives_of_gpu(run: Run, folder: Path) -> list[Any]:
    from tests.cuda_primitives import gpu

    major, minor = (int(part) for part in run.facts["capability"].split("."))
    built = PRIMITIVES
    if not of_these_sources(built):
        toolkit, why = toolchain.find_toolkit(os.environ)
        if toolkit is None:
            run.say(f"no primitives: {why}")
            return []
        built = gpu.compile_library(toolkit.nvcc, (major, minor), folder)
    return gpu.units(built, folder, (major, minor))


def kernels(run: Run, seconds: float) -> str:
    """Every kernel, as in ``python -m resnet_fused verify``; failed cases are rerun under other conditions."""
    from resnet_fused.cli.verify import cases, report

    verification = run.verification
    found = cases.cuda_cases(run.facts["numbers"], verification.large)
    found = _stand_in(run, "chosen", lambda all_of_them: all_of_them)(found)
    results = verification.run(found, bisect=True)
    refused = cases.refused(run.facts["numbers"], found)
    verdict: str = report.verdict(results)
    rows = report.families(results, refused)
    full = {"verdict": verdict, "environment": report.environment(run.facts), "families": rows, "results": results}
    (run.folder("keep") / "report.json").write_text(json.dumps(full, indent=1))
    for cells in report.table(rows):
        run.say("  " + "  ".join(f"{cell:<12.70}" for cell in cells))
    for line in report.failures(results):
        run.say(f"  {line}")
    return verdict


def tests(run: Run, seconds: float) -> str:
    """The project's own tests of CUDA: ops, blocks, training, graphs, models."""
    from resnet_fused.cli.verify.processes import Limits, Unit

    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        run.say(f"  not run: {', '.join(missing)} not installed")
        return INCOMPLETE
    on_cuda = [*(f"tests/test_{name}.py" for name in TESTED_ON_CUDA), "-k", "cuda"]
    files = _stand_in(run, "TESTED", [[f"tests/test_cuda_{name}.py" for name in TESTED], on_cuda])
    listing, nodes, begin, uncollected = run.work / "nodes.json", [], time.monotonic(), False
    for i, of in enumerate(files):
        case = {"case": f"collect {i}", "files": of}
        unit = Unit(f"collect {i}", f"{UNITS}:collect", (case,), {"out": str(listing)}, UNCHECKED)
        [found] = run.verification.run_units("collecting tests", [unit], Limits(60, 60, seconds))
        if found["status"] == "pass":
            nodes += json.loads(listing.read_text())
        else:
            run.say(f"  {found.get('why')}")
            uncollected = True
    jobs = run.args.jobs
    units = [
        Unit(f"tests {i + 1}", f"{UNITS}:tests", tuple({"case": node} for node in part), {}, UNCHECKED, max_failures=8)
        for i in range(jobs)
        if (part := nodes[i::jobs])
    ]
    left = seconds - (time.monotonic() - begin)
    limits = Limits(60, _stand_in(run, "TEST_SECONDS", TEST_SECONDS), left)
    end = _end_of(run, run.verification.run_units("tests", units, limits))
    return INCOMPLETE if uncollected and end == RIGHT else end


# Timing stages: one process at a time.


def layers(run: Run, seconds: float) -> str:
    """Every engine's kernels on the 3x3 layers of ResNets; the roofline."""
    from resnet_fused.cli.verify import cases

    arguments = {"contenders": ["ours"], "budget": 0.05, "dtypes": ["bfloat16"]}
    names = ["", *(name for name in cases.engine_names() if name != "sm90:block")]  # it needs a whole block
    rows = [name for name in names if name.startswith("sm90:rows")]
    rest = [name for name in names if name not in rows]
    share = seconds * len(rest) / (len(rest) + ROWS_COST * len(rows))
    ends = [
        _benchmarks(run, "layers", share, "gpu_kernels", rest, [arguments]),
        _benchmarks(run, "layers", seconds - share, "gpu_kernels", rows, [{**arguments, "layers": ["64@56"]}]),
    ]
    return _worst(ends)


def peers(run: Run, seconds: float) -> str:
    """Times cuDNN's fused convolution, eager PyTorch and ours on these and all other layers."""
    from benchmarks.gpu_kernels import LAYERS

    arguments = {"contenders": ["ours", "cudnn", "eager"], "budget": 0.2, "dtypes": ["bfloat16"]}
    return _benchmarks(run, "peers", seconds, "gpu_kernels", ["all"], [{**arguments, "layers": list(LAYERS)}])


def networks(run: Run, seconds: float) -> str:
    """Whole networks."""
    arguments = {"contenders": ["resnet_fused", "eager channels_last"], "networks": NETWORKS, "budget": 1.0}
    return _benchmarks(run, "networks", seconds, "gpu_models", [""], [{**arguments, "batches": [256, 32, 1]}])


def training(run: Run, seconds: float) -> str:
    """A training step in bfloat16, and which kernels it runs."""
    contenders = ["eager_cl", "eager_cl_graph", "ours", "ours_graph", "ours_recompute"]
    arguments = {"contenders": contenders, "titles": NETWORKS, "dtypes": ["bf16"]}
    of_kernels = {"contenders": ["eager_cl", "ours"], "titles": NETWORKS}
    ends = [
        _benchmarks(run, "training", seconds * 0.6, "training", [""], [{**arguments, "batches": [256], "budget": 2.0}]),
        _benchmarks(run, "kernels of training", seconds * 0.4, "training", [""], [of_kernels], "kernels"),
    ]
    return _worst(ends)


def compiled(run: Run, seconds: float) -> str:
    """Times torch.compile on the networks, one process each, mostly spent compiling."""
    arguments = {"contenders": ["torch.compile"], "budget": 1.0}
    of = [{**arguments, "networks": [n], "batches": [batch]} for batch in (256, 32) for n in NETWORKS]
    return _benchmarks(run, "compiled", seconds, "gpu_models", [""], of)


def _benchmarks(
    run: Run,
    stage: str,
    seconds: float,
    module: str,
    engines: list[str],
    of: list[dict[str, Any]],
    function: str = "run",
) -> str:
    """Runs the module's function in one process per engine and per entry of ``of``.

    Each ends before its share of the time has passed and lists in its file what it left out.
    """
    from resnet_fused.cli.verify.processes import Limits, Unit

    calls = [(engine, arguments) for engine in engines for arguments in of]
    share = seconds / len(calls)
    units = []
    for i, (engine, arguments) in enumerate(calls):
        name = f"{stage} {engine or 'planned'}" + (f" {i + 1}" if len(of) > 1 else "")
        out = run.folder("benchmarks") / name.replace(" ", "-").replace(":", "-")
        call = _stand_in(run, "BENCHMARK", f"benchmarks.{module}:{function}")
        full = {**arguments, "engine": engine or "planned", "seconds": max(1.0, share - STARTING_S), "out": str(out)}
        environment = {**UNCHECKED, "RESNET_FUSED_CUDA_ENGINE": engine}
        units.append(Unit(name, f"{UNITS}:calls", ({"case": name, "call": call, "arguments": full},), {}, environment))
    found = run.verification.run_units(stage, units, Limits(60, seconds, seconds), jobs=1)
    return _end_of(run, found)


def profile(run: Run, seconds: float) -> str:
    """Profiles some of our kernels with Nsight Compute, at the clocks of the timing stages."""
    out = str(run.folder("scratch"))  # times under a profiler are not measurements
    script = [sys.executable, "-m", "benchmarks.gpu_kernels", out, "--contenders", "ours", "--budget", "0"]
    command = [*NCU, *script, "--batches", "256", "--dtypes", "bfloat16"]
    of = [(f"profile {e}", command, {**UNCHECKED, "RESNET_FUSED_CUDA_ENGINE": e}) for e in ("all", "sm80")]
    return _tools(run, "profile", seconds, of)


def sanitizer(run: Run, seconds: float) -> str:
    """Runs compute-sanitizer (memory accesses and races) on one case of some families."""
    from resnet_fused.cli.verify import cases

    found = [case for case in cases.cuda_cases(run.facts["numbers"], large=False) if case["family"].startswith("sm")]
    firsts = list({case["family"]: case for case in reversed(found)}.values())[::-1][:SANITIZED]
    of = []
    for tool in ("memcheck", "racecheck"):
        for case in firsts:
            code = f"from build_tools.gpu_units import verified_once; verified_once({json.dumps(case)!r})"
            command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, "-c", code]
            environment = {**UNCHECKED, "RESNET_FUSED_CUDA_ENGINE": case["engine"]}
            of.append((f"{tool} {case['family']}", command, environment))
    return _tools(run, "sanitizer", seconds, of)


def _tools(run: Run, stage: str, seconds: float, of: list[tuple[str, list[str], dict[str, str]]]) -> str:
    """Runs tools. A missing or unprivileged tool is not a failure; status 9 of the sanitizer is."""
    from resnet_fused.cli.verify.processes import Limits, Unit

    if shutil.which(of[0][1][0]) is None:
        run.say(f"  {of[0][1][0]} is not installed here")
        return RIGHT
    units = [
        Unit(name, f"{UNITS}:commands", ({"case": name, "command": command},), {}, environment)
        for name, command, environment in of
    ]
    found = run.verification.run_units(stage, units, Limits(60, seconds, seconds), jobs=1)
    return _end_of(run, found)


def _stand_in(run: Run, name: str, usual: Any) -> Any:
    """A stand-in's replacement for ``usual``, if it has one."""
    return getattr(importlib.import_module(run.args.backend.partition(":")[0]), name, usual)


def _worst(ends: list[str]) -> str:
    return next((end for end in (WRONG, INCOMPLETE) if end in ends), RIGHT)


def _end_of(run: Run, found: list[dict[str, Any]]) -> str:
    rest = [r for r in found if r["status"] not in ("pass", "refused")]
    for r in rest[:MOST_SAID]:
        run.say(f"  {r['status']}: {r['case']}: {r.get('why', '')[:300]}")
    if len(rest) > MOST_SAID:
        run.say(f"  and {len(rest) - MOST_SAID} more")
    if any(r["status"] != "not run" for r in rest):
        return WRONG
    return INCOMPLETE if rest else RIGHT
