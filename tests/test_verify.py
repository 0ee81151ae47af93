"""``python -m resnet_fused verify``: processes, cases, and the verdict."""

from __future__ import annotations

import collections
import json
import os
import signal
import time

import pytest
import torch
from support import ROOT, run_python

from resnet_fused import cli, ops, plans, reference
from resnet_fused.cli._gpus import GPUS
from resnet_fused.cli.verify import cases, problems, processes, report, truth
from resnet_fused.cli.verify.processes import Limits, Unit

CPU = torch.device("cpu")


# The processes


def work(options):
    """Runs in a child process; each case does what its name says."""

    def run(case):
        name = case["case"].split()[0]
        if name == "hang":
            time.sleep(3600)
        if name == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if name == "leave":
            os._exit(3)
        if name == "raise":
            raise ValueError("no such\n  thing")
        if name == "sticky":
            return {"status": "error", "why": "sticky", "fatal": True}
        return {"status": "pass", "pid": os.getpid(), "options": options, "variable": os.environ.get("VARIABLE")}

    return run


def slow_start(options):
    time.sleep(3600)


#: The second limit is the duration of a hanging case. Other cases take a fraction of it, even on a busy machine.
LIMITS = Limits(300, 8, 600)


def run(names, tmp_path, work="test_verify:work", limits=LIMITS, fork=True, **of_unit):
    """Runs cases in child processes, forked by default: a process that imports torch takes seconds to start."""
    unit = Unit("a unit", work, tuple({"case": name} for name in names), {"a": 1}, {"VARIABLE": "set"}, **of_unit)
    return processes.run([unit], tmp_path, limits, fork=fork)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    """Lets the child processes import this module."""
    monkeypatch.syspath_prepend(str(ROOT / "tests"))


def test_results_are_in_order_from_one_process(tmp_path):
    results = run(["pass 1", "raise", "pass 2"], tmp_path)
    assert [r["status"] for r in results] == ["pass", "error", "pass"]
    assert results[0]["pid"] == results[2]["pid"] != os.getpid()
    assert results[0]["options"] == {"a": 1}
    assert results[0]["variable"] == "set"
    assert results[1]["why"] == "ValueError: no such thing"


@pytest.mark.parametrize(
    ("name", "status", "why"),
    [("hang", "hang", "no result after 8 s"), ("crash", "died", "signal SIGKILL"), ("leave", "died", "exit status 3")],
)
def test_dying_process_loses_only_one_case(tmp_path, name, status, why):
    results = run(["pass 1", name, "pass 2"], tmp_path)
    assert [r["status"] for r in results] == ["pass", status, "pass"]
    assert results[1]["why"].startswith(why)
    assert results[0]["pid"] != results[2]["pid"]


def test_broken_device_gets_a_new_process(tmp_path):
    names = ["sticky 1", "sticky 2", "sticky 3", "pass"]
    assert [r["status"] for r in run(names, tmp_path)] == ["error"] * 3 + ["pass"]


def test_unit_stops_after_too_many_failures(tmp_path):
    results = run(["crash 1", "pass", "crash 2", "pass 2"], tmp_path, max_failures=2)
    assert [r["status"] for r in results] == ["died", "pass", "died", "not run"]
    assert results[3]["why"] == "2 cases before it hung or crashed"


def test_a_process_that_does_not_start_is_a_hang(tmp_path):
    results = run(["1", "2"], tmp_path, "test_verify:slow_start", Limits(1, 300, 600), max_failures=1)
    assert [r["status"] for r in results] == ["hang", "not run"]
    assert results[0]["why"] == "no result after 1 s of start-up"


def test_time_limit_skips_the_remaining_cases(tmp_path):
    units = [Unit(str(i), "test_verify:work", ({"case": "hang"}, {"case": "pass"})) for i in range(3)]
    results = processes.run(units, tmp_path, Limits(300, 300, 1))
    assert [r["status"] for r in results] == ["not run"] * 6
    assert {r["why"] for r in results} <= {"out of time while it ran", "out of time"}


def test_spawned_processes_give_the_same_results(tmp_path):
    results = run(["pass 1", "crash", "pass 2", "hang"], tmp_path, fork=False, max_failures=3)
    assert [r["status"] for r in results] == ["pass", "died", "pass", "hang"]
    assert (results[1]["why"], results[3]["why"]) == ("signal SIGKILL", "no result after 8 s")
    assert (results[0]["options"], results[0]["variable"]) == ({"a": 1}, "set")
    assert os.getpid() != results[0]["pid"] != results[2]["pid"]


# The cases

#: The families of the trust table.
FAMILIES = {family.name for family in plans.families(ops.explain_trust(90))}
ON_HOPPER = {*FAMILIES, cases.TORCH}


def kernels_of(numbers, large=False):
    kernels = collections.defaultdict(set)
    for case in cases.cuda_cases(numbers, large):
        kernels[case["family"]].add(case["kernel"])
    return kernels


def test_every_family_has_cases_where_it_runs():
    assert set(kernels_of(GPUS["h200"])) == ON_HOPPER
    of_ampere = set(kernels_of(GPUS["a100"]))
    assert of_ampere == {family for family in ON_HOPPER if not family.startswith("sm90")}
    refused = cases.refused(GPUS["a100"], cases.cuda_cases(GPUS["a100"], large=False))
    assert set(refused) == ON_HOPPER - of_ampere
    assert all("the GPU is sm_80" in why for why in refused.values())


def test_every_tile_dtype_and_mode_has_a_case():
    """Every tile that RESNET_FUSED_CUDA_ENGINE can name, in every dtype of the tensor cores."""
    kernels = kernels_of(GPUS["h200"])
    for tile in ("128x128", "128x64", "64x64"):
        for kind in cases.TENSOR_CORE_KINDS:
            for mode in ("plain", "prologue", "projection", "projection prologue"):
                for cut in ("", " split"):
                    assert f"sm80/conv_fwd {tile} {kind} {mode}{cut}" in kernels["sm80/conv_fwd"]
            for mode in ("statistics", "prologue statistics"):
                assert f"sm80/conv_stats {tile} {kind} {mode}" in kernels["sm80/conv_stats"]
            assert f"sm80/conv_gradient {tile} {kind} gradient sums" in kernels["sm80/conv_gradient"]
    for tile in ("256x128", "256x64", "128x128"):
        assert {f"sm90/conv_sm90 {tile} {kind} plain" for kind in ("float16", "bfloat16")} <= kernels["sm90/conv_sm90"]
    assert len(kernels["sm90/conv_rows"]) == 10
    assert len(kernels["sm90/block_fwd"]) == 4


def test_cases_survive_a_json_round_trip():
    for case in cases.cuda_cases(GPUS["h200"]) + cases.cpu_cases(large=False):
        problem = cases.problem_of(json.loads(json.dumps(case)))
        assert case["case"] == f"{case['engine'] or 'planned'} {problem.name}"
    names = [case["case"] for case in cases.cuda_cases(GPUS["h200"])]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_arguments_fit_the_definitions(kind):
    """The arguments of each op fit its definition and are deterministic; op and definition return the same shapes."""
    of = [p for op, mode in problems.PASSES for p in problems.passes(op, mode, kind, False)[:1]]
    of += [p for op, mode in problems.CONV_MODES for p in problems.convolutions(op, mode, kind, False)[:1]]
    for problem in [*of, problems.blocks(kind, False)[0]]:
        args, again = problem.arguments(), problem.arguments()
        assert all(torch.equal(a, b) for a, b in zip(args, again, strict=True) if isinstance(a, torch.Tensor))
        results = truth.outputs_of(getattr(reference, problem.op)(*args))
        shapes = [y.shape for y in truth.outputs_of(getattr(ops, problem.op)(*args, *problem.options()))]
        assert [y.shape for y in results] == shapes, problem.name


def test_truth_allows_eagers_error_and_little_more():
    problem = problems.convolutions("conv_bn_act", "residual", "bfloat16", False)[0]
    known = truth.compute(problem, CPU)
    eager = reference.conv_bn_act(*problem.arguments())
    error = (eager.double() - known.outputs[0]).abs().max().item()
    assert 0 < error < known.allowed[0] < 50 * error


def test_tf32_truth_allows_tf32_rounding():
    args = ("conv_bn_act", "plain")
    exact, rounded = (truth.compute(problems.convolutions(*args, k, False)[0], CPU) for k in ("float32", "tf32"))
    assert 20 * exact.allowed[0] < rounded.allowed[0] < 0.05


# The report


def result(family, status, **more):
    return {"family": family, "kernel": f"{family} a", "case": "a case", "status": status, **more}


def test_verdict():
    assert report.verdict([result("a", "pass"), result("b", "pass")]) == "right"
    assert report.verdict([result("a", "pass"), result("b", "not run")]) == "incomplete"
    assert report.verdict([]) == "incomplete"
    for bad in ("wrong", "error", "hang", "died"):
        assert report.verdict([result("a", "pass"), result("b", bad), result("c", "not run")]) == "wrong"


def test_table():
    timed = result("a", "pass", ours_us=10.0, torch_us=25.0)
    results = [result("a", "pass"), result("a", "pass"), timed, result("b", "hang"), result("b", "not run")]
    head, *rows = report.table(report.families(results, {"c": "the GPU is sm_80"}))
    assert head == ("kernels", "variants", "cases", "right", "wrong", "not run", "against torch")
    assert rows[0] == ("a", "1", "2", "2", "", "", "2.50x")
    assert rows[1][3:6] == ("0", "1 hang", "1")
    assert rows[2][-1] == "refused: the GPU is sm_80"
    assert report.failures([result("b", "hang", why="nothing after 2 s")]) == ["hang: b a, a case: nothing after 2 s"]


# The command


def verify(*arguments):
    return run_python("-m", "resnet_fused", "verify", *arguments, COLUMNS="200")


def test_cpu_kernels_are_right(tmp_path):
    done = verify("--device", "cpu", "--quick", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right; " in done.stdout.splitlines()[-1]
    full = json.loads((tmp_path / "report.json").read_text())
    assert full["verdict"] == "right"
    families = {row["family"] for row in full["families"]}
    assert {"cpu/composed", "cpu/onednn", "cpu/basic_block", "cpu/bn_relu_max_pool"} <= families
    assert full["environment"]["torch"] == torch.__version__


def test_only_selects_kernels_by_name(tmp_path):
    done = verify("--device", "cpu", "--quick", "--only", "bn_stats float32", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    full = json.loads((tmp_path / "report.json").read_text())
    assert {r["kernel"] for r in full["results"]} == {"cpu/bn_stats float32"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_gpu_is_refused(capsys):
    assert cli.main(["verify", "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("resnet_fused: --device cuda: ")


def test_unknown_kernel_name_is_refused(capsys):
    assert cli.main(["verify", "--device", "cpu", "--only", "tensor cores"]) == 2
    assert "--only 'tensor cores' matches no kernel" in capsys.readouterr().err
