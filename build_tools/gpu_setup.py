"""The first stages of ``build_tools/gpu.py``: the machine, and libraries that load on it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import sources, toolchain

if TYPE_CHECKING:
    from .gpu import Run

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "resnet_fused"
CARRIED = ROOT / "build" / "gpu"  # what --prepare builds besides the libraries in the package
PRIMITIVES = CARRIED / "primitives.so"
WATCHDOG = ROOT / "build" / "watchdog" / "_C_cuda.abi3.so"
DIGESTED = (*sources.COMPILED, "tests/cuda_primitives")  # their sources

RIGHT, WRONG, INCOMPLETE = "right", "wrong", "incomplete"
SECONDS_TO_IMPORT = 90.0  # the first import of torch on a machine
TOOLS = (
    ["nvidia-smi", "-q", "-d", "CLOCK,POWER,ECC,PERFORMANCE,TEMPERATURE"],
    ["nvcc", "--version"],
    ["ncu", "--version"],
    ["compute-sanitizer", "--version"],
)


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
    (CARRIED / "digest").write_text(sources.digest(names=DIGESTED))
    carried = [PACKAGE / "_C.abi3.so", PACKAGE / "_C_cuda.abi3.so", PACKAGE / "_build_info.py", CARRIED, WATCHDOG]
    print("to travel with the sources:", *(path.relative_to(ROOT) for path in carried))
    return 0


def machine(run: Run, seconds: float) -> str:
    """The GPU, the driver, the compilers, the tools."""
    if not is_stand_in(run) and not _has_gpu(run):
        return INCOMPLETE
    end = time.monotonic() + max(10.0, seconds)
    for command in TOOLS:
        name = command[0]
        if shutil.which(name) is None:
            run.say(f"{name}: not here")
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            run.say(f"{name}: no answer")
            continue
        (run.folder("processes") / f"{name}.txt").write_text(done.stdout + done.stderr)
        if name != "nvidia-smi":
            run.say((done.stdout.strip().splitlines() or [f"{name}: exit status {done.returncode}"])[-1])
    run.say(f"python {sys.version.split()[0]}, {os.cpu_count()} cores")
    return RIGHT


def is_stand_in(run: Run) -> bool:
    """Whether the backend is a stand-in without a GPU."""
    return not run.args.backend.startswith("resnet_fused.")


def _has_gpu(run: Run) -> bool:
    """Checked in another process: this one must not initialise CUDA, so that it can fork."""
    code = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.get_device_properties(0))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS_TO_IMPORT)
    except subprocess.TimeoutExpired:
        run.say(f"torch does not answer within {SECONDS_TO_IMPORT:.0f} s")
        return False
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    words = lines[-1] if lines else f"exit status {done.returncode}"
    run.say(words if done.returncode == 0 else f"no GPU that torch can use: {words}")
    return done.returncode == 0


def library(run: Run, seconds: float) -> str:
    """Uses the prebuilt libraries if they match the sources and load; else builds them without a time limit."""
    if not is_stand_in(run) and not _loads(run) and not _builds(run):
        return INCOMPLETE
    import torch._dynamo  # noqa: F401  once, instead of in every process of a benchmark

    from resnet_fused.cli.verify.processes import Limits
    from resnet_fused.cli.verify.stages import WATCHDOG as WATCHDOG_LIBRARY
    from resnet_fused.cli.verify.stages import Verification

    if of_these_sources(WATCHDOG):
        os.environ[WATCHDOG_LIBRARY] = str(WATCHDOG)  # to rerun cases that hang
    left = run.end - time.monotonic()
    run.verification = Verification(
        run.args.backend, run.work, left, run.args.jobs, large=not is_stand_in(run),
        limits=Limits(case=run.args.case_seconds, total=left), say=lambda line: run.say(f"  {line}"),
        log=run.out / "results.jsonl",
    )  # fmt: skip
    device = run.verification.device()
    if device["status"] != "pass":
        run.say(f"the device cannot be used: {device.get('why')}")
        return INCOMPLETE
    run.facts = device["facts"]
    run.say(json.dumps(run.facts))
    return RIGHT


def _builds(run: Run) -> bool:
    """Builds without a time limit, since nothing runs without a library."""
    capability = _capability()
    run.say(f"building for compute capability {capability or 'as the environment says'}")
    environment = {**os.environ, "RESNET_FUSED_CUDA": "1"}
    if capability:
        environment["TORCH_CUDA_ARCH_LIST"] = capability  # container images set a long list
    log, left = run.folder("processes") / "build.txt", max(30.0, run.end - time.monotonic() - 60)
    status = limited([sys.executable, "setup.py", "build_ext", "--inplace"], left, log, environment)
    if status == 0:
        return _loads(run)
    run.say(f"the build {'failed' if status else f'did not end within {left:.0f} s'}:")
    for line in log.read_text(errors="replace").strip().splitlines()[-5:]:
        run.say(f"  {line[:300]}")
    return False


def limited(command: list[str], seconds: float, log: Path, environment: dict[str, str]) -> int | None:
    """Runs a command; returns its exit status, or None if it timed out and its process group was killed."""
    with log.open("w") as to:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=to, stderr=to, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def of_these_sources(library: Path) -> bool:
    """Whether --prepare built it from these sources for this GPU."""
    digest = CARRIED / "digest"
    return library.exists() and digest.exists() and digest.read_text() == sources.digest(names=DIGESTED)


def _loads(run: Run) -> bool:
    """Checks in another process, because a faulty library may crash it."""
    known, archs = sources.built(), sources.archs()
    if known[0] != sources.digest():
        run.say("no libraries of these sources are here")
        return False
    capability = (_capability() or "").replace(".", "")
    if capability and not any(arch.startswith((f"sm_{capability}", "ptx_")) for arch in archs):
        run.say(f"the libraries here are for {', '.join(archs) or 'no GPU'}, and this is sm_{capability}")
        return False
    code = "from resnet_fused import _library as l; print(l.CUDA_LOADED, l.CUDA_LOAD_ERROR)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS_TO_IMPORT)
    if done.stdout.startswith("True"):
        run.say(f"libraries of these sources load: {', '.join(archs)}")
        return True
    run.say(f"the libraries do not load: {(done.stdout + done.stderr).strip()[-300:]}")
    return False


def _capability() -> str | None:
    """The driver's answer: this process must not initialise CUDA."""
    return next(iter(toolchain.gpus()), None)
