"""The stages of ``build_tools/gpu.py``. Each takes the run and its seconds, and says whether everything was right."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import sources, toolchain

if TYPE_CHECKING:
    from .gpu import Run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "resnet_fused"
CARRIED = ROOT / "build" / "gpu"  # what --prepare leaves beside the libraries in the package
WATCHDOG = ROOT / "build" / "watchdog" / "_C_cuda.abi3.so"

#: What a run leaves: files of the folder "keep", and archives of other folders.
ARCHIVES = {"benchmarks": "benchmarks.tar.gz", "mismatches": "mismatches.tar.gz", "processes": "logs.tar.gz"}
FILES = {"summary.txt", "results.jsonl", "report.json", *ARCHIVES.values()}

UNITS = "build_tools.gpu_units"
TESTED = ("ops", "blocks", "training", "graphs")  # tests/test_cuda_<name>.py
TESTED_ON_CUDA = ("blocks", "functional", "convert", "lifecycle", "torchvision")  # tests/test_<name>.py, -k cuda
NETWORKS = ["ResNet-50", "ResNet-18"]
SANITIZED = 6  # cases of the sanitizer, each a kernel's first
PROFILED = "regex:conv_|block_fwd|bn_|pool_"


def prepare(arch: str) -> int:
    """Builds the libraries in place for one architecture, and the primitives; prints what has to travel."""
    environment = {**os.environ, "RESNET_FUSED_CUDA": "1", "TORCH_CUDA_ARCH_LIST": arch}
    build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    for flavour in ("", "watchdog"):
        if status := subprocess.run(build, cwd=ROOT, env={**environment, "RESNET_FUSED_FLAVOUR": flavour}).returncode:
            return status
    CARRIED.mkdir(parents=True, exist_ok=True)
    from tests.cuda_primitives import gpu

    toolkit, why = toolchain.find_toolkit(os.environ)
    if toolkit is None:
        print(f"no primitives: {why}")
        return 1
    major, _, minor = arch.removesuffix("a").partition(".")
    gpu.compile_library(toolkit.nvcc, (int(major), int(minor)), CARRIED)
    for file in CARRIED.glob("*.o"):
        file.unlink()
    (CARRIED / "digest").write_text(sources.digest())
    carried = [PACKAGE / "_C.abi3.so", PACKAGE / "_C_cuda.abi3.so", PACKAGE / "_build_info.py", CARRIED, WATCHDOG]
    print("to travel with the sources:", *(path.relative_to(ROOT) for path in carried))
    return 0


def machine(run: Run, seconds: float) -> bool:
    """Who computes: the driver, the compilers, the tools; and clocks for as long as the run takes."""
    end = time.monotonic() + seconds
    if not _is_stand_in(run) and not _has_gpu(run, seconds):
        return False
    for command in (
        ["nvidia-smi", "-q", "-d", "CLOCK,POWER,ECC,PERFORMANCE,TEMPERATURE"],
        ["nvcc", "--version"],
        ["ncu", "--version"],
        ["compute-sanitizer", "--version"],
    ):
        name = command[0]
        if shutil.which(name) is None:
            run.say(f"{name}: not here")
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.say(f"{name}: no answer")
            continue
        _write(run, f"{name}.txt", done.stdout + done.stderr)
        if name != "nvidia-smi":
            run.say((done.stdout.strip().splitlines() or [f"{name}: exit status {done.returncode}"])[-1])
    run.say(f"python {sys.version.split()[0]}, {os.cpu_count()} cores")
    return True


def _is_stand_in(run: Run) -> bool:
    return not run.args.backend.startswith("resnet_fused.")


def _has_gpu(run: Run, seconds: float) -> bool:
    """In a process of its own: this one does not touch CUDA, so that it can fork."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_properties(0))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        run.say(f"torch does not answer within {seconds:.0f} s")
        return False
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    words = lines[-1] if lines else f"exit status {done.returncode}"
    run.say(words if done.returncode == 0 else f"no GPU that torch can use: {words}")
    return done.returncode == 0


def library(run: Run, seconds: float) -> bool:
    """The libraries that were carried, if they are of these sources and load; else they are built here."""
    stand_in = _is_stand_in(run)
    if not stand_in and not _loads(run):
        run.say("building for this machine's GPU")
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        environment = {**os.environ, "RESNET_FUSED_CUDA": "1"}
        environment.setdefault("TORCH_CUDA_ARCH_LIST", _capability() or "9.0")
        status = limited(command, seconds, _folder(run, "processes") / "build.txt", environment)
        if status != 0:
            run.say(
                f"the build did not end within {seconds:.0f} s" if status is None else "the build failed: logs.tar.gz"
            )
            return False
        if not _loads(run):
            return False
    from resnet_fused.cli.verify.processes import Limits
    from resnet_fused.cli.verify.stages import WATCHDOG as WATCHDOG_LIBRARY
    from resnet_fused.cli.verify.stages import Verification

    if _of_these_sources(WATCHDOG):
        os.environ[WATCHDOG_LIBRARY] = str(WATCHDOG)  # for cases that hang
    left = run.end - time.monotonic()
    run.verification = Verification(
        run.args.backend, run.work, left, run.args.jobs, large=not stand_in,
        limits=Limits(case=run.args.case_seconds, total=left), say=lambda line: run.say(f"  {line}"),
    )  # fmt: skip
    device = run.verification.device()
    if device["status"] != "pass":
        run.say(f"the device cannot be used: {device.get('why')}")
        return False
    run.facts = device["facts"]
    run.say(f"{run.facts['name']}, {json.dumps(run.facts)}")
    return True


def limited(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """The exit status; None where it took longer, when it is killed with all that it has started."""
    with log.open("w") as to:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=to, stderr=to, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _of_these_sources(library: Path) -> bool:
    """Whether --prepare built it from what lies here."""
    digest = CARRIED / "digest"
    return library.exists() and digest.exists() and digest.read_text() == sources.digest()


def _loads(run: Run) -> bool:
    """In a process of its own, as a library that does not load may end it."""
    if sources.built()[0] != sources.digest():
        run.say("no libraries of these sources are here")
        return False
    code = "from resnet_fused import _library as l; print(l.CUDA_LOADED, l.CUDA_LOAD_ERROR)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.stdout.startswith("True"):
        run.say("the libraries that were carried load, and are of these sources")
        return True
    run.say(f"the libraries do not load: {(done.stdout + done.stderr).strip()[-300:]}")
    return False


def _capability() -> str | None:
    """As the driver names it: this process does not touch CUDA."""
    try:
        query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return None


def primitives(run: Run, seconds: float) -> bool:
    """Every instruction by itself; what the GPU makes of them is golden data for the emulator."""
    from resnet_fused.cli.verify.processes import Limits
    from tests.cuda_primitives import gpu

    folder = _folder(run, "primitives")
    units = _stand_in(run, "primitives", lambda folder: _primitives_of_gpu(run, folder))(folder)
    if not units:
        return False
    found = run.verification.run_units("primitives", units, Limits(60, 10, seconds))
    file = gpu.save_golden(folder, _folder(run, "keep"), run.facts["name"], f"capability {run.facts['capability']}")
    run.say(f"golden data: {file.name}")
    return _all_right(run, found)


def _primitives_of_gpu(run: Run, folder: Path) -> list[Any]:
    from tests.cuda_primitives import gpu

    major, minor = (int(part) for part in run.facts["capability"].split("."))
    library = CARRIED / "primitives.so"
    if not _of_these_sources(library):
        toolkit, why = toolchain.find_toolkit(os.environ)
        if toolkit is None:
            run.say(f"no primitives: {why}")
            return []
        library = gpu.compile_library(toolkit.nvcc, (major, minor), folder)
    return gpu.units(library, folder, (major, minor))


def kernels(run: Run, seconds: float) -> bool:
    """Every compiled kernel, as ``python -m resnet_fused verify`` runs them; what fails is bisected."""
    from resnet_fused.cli.verify import cases, report

    verification = run.verification
    found = cases.cuda_cases(run.facts["numbers"], verification.large)
    found = _stand_in(run, "chosen", lambda all_of_them: all_of_them)(found)
    results = verification.run(found, bisect=True)
    refused = cases.refused(run.facts["numbers"], found)
    verdict = report.verdict(results)
    rows = report.families(results, refused)
    environment = report.environment(run.facts)
    full = {"verdict": verdict, "environment": environment, "families": rows, "results": results}
    _write(run, "report.json", json.dumps(full, indent=1), "keep")
    for cells in report.table(rows):
        run.say("  " + "  ".join(f"{cell:<12.70}" for cell in cells))
    for line in report.failures(results):
        run.say(f"  {line}")
    return verdict == "right"


def tests(run: Run, seconds: float) -> bool:
    """The project's own tests of CUDA: ops, blocks, training, graphs, models."""
    from resnet_fused.cli.verify.processes import Limits, Unit

    on_cuda = [*(f"tests/test_{name}.py" for name in TESTED_ON_CUDA), "-k", "cuda"]
    files = _stand_in(run, "TESTED", [[f"tests/test_cuda_{name}.py" for name in TESTED], on_cuda])
    listing, nodes, begin = run.work / "nodes.json", [], time.monotonic()
    for i, of in enumerate(files):
        unit = Unit(f"collect {i}", f"{UNITS}:collect", ({"case": f"collect {i}", "files": of},), {"out": str(listing)})
        [found] = run.verification.run_units("collecting tests", [unit], Limits(60, 60, seconds))
        if found["status"] != "pass":
            run.say(f"  {found.get('why')}")
            return False
        nodes += json.loads(listing.read_text())
    jobs = run.args.jobs
    units = [
        Unit(f"tests {i + 1}", f"{UNITS}:tests", tuple({"case": node} for node in nodes[i::jobs]), most_failures=8)
        for i in range(jobs)
        if nodes[i::jobs]
    ]
    left = seconds - (time.monotonic() - begin)
    found = run.verification.run_units("tests", units, Limits(60, run.args.case_seconds, left))
    return _all_right(run, found)


# Time. One process at a time.


def layers(run: Run, seconds: float) -> bool:
    """Every engine's kernels on the 3x3 layers of ResNets; the roofline."""
    from resnet_fused.cli.verify import cases

    engines = ["", *cases.engine_names()]
    arguments = {"contenders": ["ours"], "budget": 0.05, "dtypes": ["bfloat16"]}
    return _calls(run, "layers", seconds, [_benchmark("gpu_kernels", engine, arguments) for engine in engines])


def peers(run: Run, seconds: float) -> bool:
    """cuDNN's fused convolution and eager PyTorch on these layers and all others, and ours beside them."""
    from benchmarks.gpu_kernels import LAYERS

    arguments = {"contenders": ["ours", "cudnn", "eager"], "budget": 0.2, "dtypes": ["bfloat16"], "seconds": seconds}
    arguments["layers"] = list(LAYERS)
    return _calls(run, "peers", seconds, [_benchmark("gpu_kernels", "all", arguments)])


def networks(run: Run, seconds: float) -> bool:
    """Whole networks, with every kernel planned, and as they are planned by default."""
    arguments = {"networks": NETWORKS, "batches": [256, 32, 1], "budget": 1.0, "seconds": seconds / 2}
    arguments["contenders"] = ["resnet_fused", "eager channels_last"]
    return _calls(run, "networks", seconds, [_benchmark("gpu_models", engine, arguments) for engine in ("all", "")])


def training(run: Run, seconds: float) -> bool:
    """A training step in bfloat16."""
    arguments = {"titles": NETWORKS, "batches": [256], "dtypes": ["bf16"], "budget": 2.0, "seconds": seconds / 2}
    arguments["contenders"] = ["eager_cl", "ours", "ours_recompute"]
    return _calls(run, "training", seconds, [_benchmark("training", engine, arguments) for engine in ("all", "")])


def compiled(run: Run, seconds: float) -> bool:
    """torch.compile of the networks, a process each: compiling takes most of it."""
    arguments = {"contenders": ["torch.compile"], "budget": 1.0}
    return _calls(run, "compiled", seconds, [
        _benchmark("gpu_models", "", {**arguments, "networks": [network], "batches": [batch]}, f"{network} {batch}")
        for batch in (256, 32) for network in NETWORKS
    ])  # fmt: skip


def _benchmark(module: str, engine: str, arguments: dict[str, Any], of: str = "") -> tuple[str, str, dict, dict]:
    """A name, the function, its arguments, its environment."""
    name = f"{module} {of or engine or 'planned'}"
    environment = {"RESNET_FUSED_CUDA_ENGINE": engine}
    return name, f"benchmarks.{module}:run", {**arguments, "engine": engine or "planned"}, environment


def profile(run: Run, seconds: float) -> bool:
    """Nsight Compute's numbers for kernels of ours, at the clocks that they were timed at."""
    script = [sys.executable, "-m", "benchmarks.gpu_kernels", str(_folder(run, "benchmarks")), "--contenders", "ours"]
    ncu = ["ncu", "--clock-control", "none", "--set", "detailed", "--page", "details", "--launch-count", "6",
           "--kernel-name", PROFILED]  # fmt: skip
    return _commands(run, "profile", seconds, "ncu", [
        (f"profile {engine}", [*ncu, *script, "--budget", "0", "--batches", "256", "--dtypes", "bfloat16"],
         {"RESNET_FUSED_CUDA_ENGINE": engine})
        for engine in ("all", "sm80")
    ])  # fmt: skip


def sanitizer(run: Run, seconds: float) -> bool:
    """Out-of-bounds accesses, races and misused barriers, as compute-sanitizer sees them: one case a kernel."""
    from resnet_fused.cli.verify import cases

    code = "from build_tools.gpu_units import verified_once; verified_once({!r})"
    found = [case for case in cases.cuda_cases(run.facts["numbers"], large=False) if case["family"].startswith("sm")]
    firsts = list({case["family"]: case for case in reversed(found)}.values())
    return _commands(run, "sanitizer", seconds, "compute-sanitizer", [
        (f"{tool} {case['family']}",
         ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--kernel-name", PROFILED, sys.executable, "-c",
          code.format(json.dumps(case))],
         {"RESNET_FUSED_CUDA_ENGINE": case["engine"]})
        for tool in ("memcheck", "racecheck", "synccheck") for case in firsts[:SANITIZED]
    ])  # fmt: skip


def _calls(run: Run, stage: str, seconds: float, of: list[tuple[str, str, dict[str, Any], dict[str, str]]]) -> bool:
    from resnet_fused.cli.verify.processes import Limits, Unit

    out = str(_folder(run, "benchmarks"))
    units = [
        Unit(name, f"{UNITS}:calls",
             ({"case": name, "call": _stand_in(run, "BENCHMARK", call), "arguments": {**arguments, "out": out}},), {},
             {"RESNET_FUSED_CUDA_CHECK": "0", **environment})
        for name, call, arguments, environment in of
    ]  # fmt: skip
    found = run.verification.run_units(stage, units, Limits(60, seconds, seconds), jobs=1)
    return _all_right(run, found)


def _commands(run: Run, stage: str, seconds: float, tool: str, of: list[tuple[str, list[str], dict[str, str]]]) -> bool:
    from resnet_fused.cli.verify.processes import Limits, Unit

    if shutil.which(tool) is None:
        run.say(f"  {stage}: {tool} is not installed here")
        return True
    units = [
        Unit(name, f"{UNITS}:commands", ({"case": name, "command": command, "environment": environment},))
        for name, command, environment in of
    ]
    found = run.verification.run_units(stage, units, Limits(60, seconds, seconds), jobs=1)
    return _all_right(run, found)


def _stand_in(run: Run, name: str, usual: Any) -> Any:
    """What a stand-in for the device has to say about a stage, or what is usual."""
    return getattr(importlib.import_module(run.args.backend.partition(":")[0]), name, usual)


def _all_right(run: Run, found: list[dict[str, Any]]) -> bool:
    bad = [r for r in found if r["status"] not in ("pass", "refused")]
    for r in bad[:20]:
        run.say(f"  {r['status']}: {r['case']}: {r.get('why', '')[:300]}")
    if len(bad) > 20:
        run.say(f"  and {len(bad) - 20} more")
    return not bad


def _folder(run: Run, name: str) -> Path:
    folder = run.work / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(run: Run, name: str, text: str, folder: str = "processes") -> None:
    (_folder(run, folder) / name).write_text(text)
