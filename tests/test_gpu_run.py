"""``build_tools/gpu.py`` end to end on a stand-in for a GPU, without faults and with every kind of fault."""

from __future__ import annotations

import collections
import glob
import importlib
import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import cuda_on_cpu
import pytest
import stand_in
import torch

from build_tools import gpu, gpu_setup, gpu_stages, sources
from resnet_fused import first_use
from resnet_fused.cli._gpus import GPUS
from resnet_fused.cli.verify import cases

if reason := cuda_on_cpu.missing():
    pytest.skip(f"the stand-in for a GPU needs a compiler: {reason}", allow_module_level=True)

from cuda_on_cpu import op_layer
from cuda_primitives import emulator

ROOT = Path(__file__).parents[1]
SECONDS = 900  # the limit for a hung run, far more than a run takes


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    op_layer.load()
    emulator.load()


def rehearse(out, *arguments, **environment):
    """Returns the exit status, the output, and the result of each case."""
    command = [sys.executable, "build_tools/gpu.py", "--out", out, "--backend", "stand_in:Hopper", "--jobs", "2"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **environment}
    done = subprocess.run(
        [*command, "--seconds", "600", "--case-seconds", "30", *arguments],
        cwd=ROOT, env=variables, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    lines = (out / "results.jsonl").read_text().splitlines()
    return done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines]


def test_run_without_faults_passes(tmp_path):
    status, text, results = rehearse(tmp_path, STAND_IN_TESTS="tests/rehearsal.py::test_right")
    assert status == 0, text
    assert {r["status"] for r in results} == {"pass"}
    stages = collections.Counter(r["stage"] for r in results)
    for stage in ("primitives", "truths", "first cases", "every case", "tests", "layers", "peers", "training"):
        assert stages[stage], stage
    families = {r["family"] for r in results if r["stage"] == "first cases"}
    assert {"sm80/conv_fwd", "sm90/conv_sm90", "sm90/conv_rows", "sm90/block_fwd", "pool/bn_pool"} < families
    files = sorted(path.name for path in (tmp_path).iterdir())
    assert len(files) <= 8
    assert {"summary.txt", "results.jsonl", "report.json", "benchmarks.tar.gz", "logs.tar.gz"} < set(files)
    assert any(name.startswith("primitives-") for name in files)
    assert (tmp_path / "summary.txt").read_text().splitlines()[-1] == "passed"
    with tarfile.open(tmp_path / "benchmarks.tar.gz") as archive:
        assert any(name.endswith(".json") for name in archive.getnames())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "right"
    assert report["environment"]["device"]["capability"] == "9.0"


FAULTS = {
    "sm80 conv_bn_act": "wrong",
    "sm80 conv_stats": "unwritten",
    "sm90 conv_bn_act": "hang",
    "sm90:rows conv_bn_act": "crash",
    "sm90:block basic_block": "sticky",
    " bn_act_backward": "unsteady",
}
ENDS = {"wrong": "wrong", "unwritten": "wrong", "hang": "hang", "crash": "died", "sticky": "error", "unsteady": "wrong"}


def test_run_with_every_fault_reports_each(tmp_path):
    """Each fault fails its own cases and is reported and bisected. All other cases run, and nothing is timed."""
    environment = {"STAND_IN_FAULTS": json.dumps(FAULTS)}
    status, text, results = rehearse(tmp_path, "--case-seconds", "15", **environment)
    assert status == 1, text
    first = {f"{r['engine']} {r['op']}": r for r in results if r["stage"] == "first cases"}
    for call, r in first.items():
        assert r["status"] == ENDS.get(FAULTS.get(call), "pass"), (call, r)
    assert "1 are NaN" in first["sm80 conv_stats"]["why"]
    assert "signal SIGSEGV" in first["sm90:rows conv_bn_act"]["why"]
    assert "illegal memory access" in first["sm90:block basic_block"]["why"]
    assert "other bits in call" in first[" bn_act_backward"]["why"]
    report = json.loads((tmp_path / "report.json").read_text())
    rest = [r for r in report["results"] if r["family"] == "sm90/conv_sm90" and r["status"] != "hang"]
    assert {r["why"] for r in rest} == {"the first case of this family and tile hung or crashed"}
    bisected = [r["case"] for r in results if r["stage"] == "bisect"]
    assert any(name.startswith("without overlap: sm90 conv_bn_act") for name in bisected)
    assert report["verdict"] == "wrong"
    with tarfile.open(tmp_path / "mismatches.tar.gz") as archive:
        assert any("sm80_conv_bn_act" in name for name in archive.getnames())
    tests = {r["case"].partition("::")[2]: r["status"] for r in results if r["stage"] == "tests"}
    assert tests == {
        "test_right": "pass",
        "test_wrong": "wrong",
        "test_hang": "hang",
        "test_after_a_hang[morning]": "pass",
        "test_after_a_hang[evening]": "pass",
        "test_sticky": "error",
        "test_after_a_cuda_error": "pass",
        "test_crash": "died",
        "test_skipped": "refused",
        "test_last": "pass",
    }
    assert not any(r["stage"] == "layers" for r in results)
    assert "not timed, as this is wrong: kernels, tests" in text
    assert text.splitlines()[-1] == "FAILED: kernels wrong, tests wrong"


def test_failing_benchmark_leaves_the_others(tmp_path):
    faults = {"sm80:64x64 benchmark": "hang", "sm80:128x64 benchmark": "wrong"}
    environment = {"STAND_IN_FAULTS": json.dumps(faults)}
    status, text, results = rehearse(tmp_path, "--stage", "time", "--seconds", "100", **environment)
    assert status == 1, text
    ends = {r["case"]: r for r in results if r["stage"] in ("layers", "peers", "networks", "compiled")}
    assert ends["layers sm80:64x64"]["status"] in ("hang", "not run")
    assert ends["layers sm80:128x64"]["why"] == "a layer: wrong: by far"
    for name in ("layers planned", "peers all", "networks planned", "compiled planned 4"):
        assert ends[name]["status"] == "pass", name
    with tarfile.open(tmp_path / "benchmarks.tar.gz") as archive:
        files = [name for name in archive.getnames() if name.endswith(".json")]
    assert len(files) == len(set(files)) > 12  # each call has its own folder


def test_stopped_run_keeps_its_results(tmp_path):
    """SIGTERM, as from a time limit, leaves no process behind and keeps the results so far."""
    command = [sys.executable, "build_tools/gpu.py", "--out", tmp_path, "--backend", "stand_in:Hopper"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    variables["STAND_IN_FAULTS"] = json.dumps({"sm80 conv_bn_act": "hang"})
    process = subprocess.Popen([*command, "--seconds", "600", "--case-seconds", "300"], cwd=ROOT, env=variables)
    results, end = tmp_path / "results.jsonl", time.monotonic() + SECONDS
    while not (results.exists() and '"stage": "first cases"' in results.read_text()) and time.monotonic() < end:
        time.sleep(0.5)
    process.terminate()
    assert process.wait(SECONDS) == 143
    assert (tmp_path / "summary.txt").read_text().splitlines()[-1] == "FAILED: interrupted"
    assert (tmp_path / "logs.tar.gz").exists()
    names = [Path(p).read_bytes() for p in glob.glob("/proc/[0-9]*/cmdline") if os.access(p, os.R_OK)]
    assert not any(str(tmp_path).encode() in name for name in names)


def test_too_short_time_limit_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "build_tools/gpu.py", "--seconds", "5", "--out", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 2
    assert "--seconds is 5; 30 at least" in done.stderr


def test_stages_call_benchmarks_with_valid_arguments(tmp_path):
    """The stand-in skips the benchmarks, so this checks that they accept the arguments and names."""
    asked = []
    verification = SimpleNamespace(run_units=lambda stage, units, limits, jobs: asked.extend(units) or [])
    args = SimpleNamespace(backend=gpu.CUDA)
    run = SimpleNamespace(args=args, verification=verification, folder=lambda name: tmp_path / name, say=print)
    for stage in (gpu_stages.layers, gpu_stages.peers, gpu_stages.networks, gpu_stages.training, gpu_stages.compiled):
        assert stage(run, 100.0) == "right"
    assert len(asked) > 20
    for unit in asked:
        [case] = unit.cases
        module, _, function = case["call"].partition(":")
        module, arguments = importlib.import_module(module), case["arguments"]
        inspect.signature(getattr(module, function)).bind(**arguments)
        assert set(arguments["contenders"]) <= set(module.CONTENDERS), unit.name
        assert set(arguments.get("layers", ())) <= set(getattr(module, "LAYERS", ())), unit.name
        assert unit.environment["RESNET_FUSED_CUDA_ENGINE"] in ("", arguments["engine"])
        assert unit.environment["RESNET_FUSED_CUDA_CHECK"] == "0"
    assert len({case["arguments"]["out"] for unit in asked for case in unit.cases}) == len(asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_run_without_a_gpu_builds_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "build_tools/gpu.py", "--seconds", "300", "--out", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 1
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert any(line.startswith("no GPU that torch can use: ") for line in lines), lines
    assert lines[-1] == "FAILED: machine incomplete"
    assert not any("library" in line for line in lines)


def test_outdated_or_mismatched_libraries_are_not_used(monkeypatch):
    """A digest of the sources decides, because git may be absent."""
    said = []
    run = SimpleNamespace(say=said.append)
    monkeypatch.setattr(gpu_setup, "_capability", lambda: "9.0")
    monkeypatch.setattr(sources, "built", lambda: ("another digest", "a commit"))
    assert not gpu_setup._loads(run)
    monkeypatch.setattr(sources, "built", lambda: (sources.digest(), "a commit"))
    monkeypatch.setattr(sources, "archs", lambda: ("sm_80", "sm_100f"))
    assert not gpu_setup._loads(run)
    assert said == [
        "no libraries of these sources are here",
        "the libraries here are for sm_80, sm_100f, and this is sm_90",
    ]
    monkeypatch.setattr(sources, "archs", lambda: ("sm_90a",))
    if torch.version.cuda is None:
        assert not gpu_setup._loads(run)
        assert "this torch was built without CUDA" in said[-1]


def test_timed_out_command_dies_with_its_children(tmp_path):
    log = tmp_path / "log"
    sleep = "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {sleep!r}])"
    assert gpu_setup.limited([sys.executable, "-c", "print(2)"], 60, log, dict(os.environ)) == 0
    assert log.read_text() == "2\n"
    assert gpu_setup.limited([sys.executable, "-c", code], 5, log, dict(os.environ)) is None
    state, end = Path(f"/proc/{log.read_text().strip()}/stat"), time.monotonic() + 30
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end


def test_digest_covers_compiled_sources_only(tmp_path):
    (tmp_path / "csrc").mkdir()
    (tmp_path / "build_tools").mkdir()
    for name in ("csrc/a.cu", "setup.py", "build_tools/ninja_file.py"):
        (tmp_path / name).write_text("x")
    before = sources.digest(tmp_path)
    (tmp_path / "README.md").write_text("words")
    assert sources.digest(tmp_path) == before
    (tmp_path / "csrc/a.cu").write_text("y")
    changed = sources.digest(tmp_path)
    (tmp_path / "csrc/a.cu").rename(tmp_path / "csrc/b.cu")
    assert len({before, changed, sources.digest(tmp_path)}) == 3


def test_verify_reaches_every_compiled_kernel(monkeypatch):
    """Uses the trust table's names. Only merges of more parts than 132 SMs produce are not reached."""
    library = op_layer.load()
    compiled = {name for _, name in library.variants()}
    reached = {in_words_of_trust(case) for case in cases.cuda_cases(GPUS["h200"], large=False)}
    never = {name for name in compiled - reached if not name.startswith(("bn/", "pool/"))}
    assert {name for name in never if not name.endswith(", in parts")} == set()
    assert {name.split()[0] for name in never} <= {"sm80/conv_stats", "sm80/conv_gradient", "sm90/conv_sm90_stats"}

    layer = op_layer.Layer(library, stand_in.NUMBERS)
    monkeypatch.setattr(first_use, "_outcomes", {})
    library.set_check("always")
    try:
        for case in cases.cuda_cases(stand_in.NUMBERS, large=False):
            if case["family"] in cases.PASS_FAMILIES:
                problem = cases.problem_of(case)
                layer.call(layer_op(problem.op), *problem.arguments(), *problem.options())
    finally:
        library.set_check("0")
    outcomes = {name.partition(" ")[2]: how for name, how in first_use.outcomes().items()}
    assert set(outcomes.values()) == {"right"}
    never = {name for name in compiled if name.startswith(("bn/", "pool/"))} - set(outcomes)
    assert {name for name in never if not name.endswith(", in parts")} == set()


def layer_op(name):
    return getattr(getattr(torch.ops, op_layer.NAME), name).default


def in_words_of_trust(case):
    """Returns the name that csrc/cuda/plan/trust.cpp gives the kernel of a convolution's case."""
    family, *rest = case["kernel"].removesuffix(" split").split(" ")
    dtype = "float32" if case["kind"] == "tf32" else case["kind"]
    parts = ", in parts" if case["kernel"].endswith(" split") else ""
    if family == "sm90/block_fwd":
        return f"{family} {dtype} {rest[0]} channels"
    return f"{family} {dtype} {rest[0]} {' '.join(rest[2:])}{parts}"
