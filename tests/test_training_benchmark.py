"""benchmarks/training.py on a small block: measurements, failures, report."""

import json
import sys
from pathlib import Path

import pytest
import torch

from resnet_fused import reference
from resnet_fused.chain.policy import CAPABILITIES

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import gpu, trainee, training, training_report

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")

CPU = torch.device("cpu")
MACHINE = {"device": "a CPU", "torch": "2.13.0", "load_average": 0.1, "date": "2026-01-02", "commit": "abc"}
TINY = trainee.Workload("tiny", (8, 8, 9, 9), lambda: reference.BasicBlock(8, 8))


def test_run_measures_speed_memory_and_error():
    names = ["eager", "eager_cl", "ours", "ours_recompute"]
    by_name = training.measure(TINY, "fp32", names, 0.0, CPU)
    assert [row["contender"] for row in by_name.values()] == list(by_name) == names
    assert all(len(row["samples_s"]) >= 5 and row["images_per_s"] > 0 for row in by_name.values())
    assert by_name["ours"]["kept_bytes"] <= 0.82 * by_name["eager"]["kept_bytes"]
    assert by_name["ours"]["error"] < 1e-2


def test_graph_contenders_are_timed_by_replays(monkeypatch):
    replays = []

    def captured(call):
        def replay():
            replays.append(call)
            call()

        call()
        return replay, None

    monkeypatch.setattr(gpu, "captured", captured)
    rows = training.measure(TINY, "fp32", ["eager_cl", "ours", "ours_graph"], 0.0, CPU)
    assert len(replays) >= len(rows["ours_graph"]["samples_s"]) >= 5
    assert all("median_s" in row for row in rows.values())


def test_graph_that_does_not_train_is_not_timed(monkeypatch):
    monkeypatch.setattr(gpu, "captured", lambda call: (call() or (lambda: None), None))
    rows = training.measure(TINY, "fp32", ["eager_cl", "ours_graph"], 0.0, CPU)
    assert "differs from a step's by 1.0e+00" in rows["ours_graph"]["unavailable"]


def test_failed_capture_does_not_affect_others():
    def refused(call):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "captured", refused)
        rows = training.measure(TINY, "fp32", ["eager_cl", "ours_graph"], 0.0, CPU)
    assert "not permitted" in rows["ours_graph"]["unavailable"] and "median_s" in rows["eager_cl"]


class Mistaken(trainee.Trainee):
    def forward(self, x):
        return (1 if self.dtype == "fp64" else 1.01) * super().forward(x)


def test_wrong_gradients_are_not_timed(monkeypatch):
    trainees = {name: trainee.Trainee(TINY, name, "fp32", CPU) for name in ("eager", "ours")}
    errors, wrong = trainee.verify(TINY, "fp32", trainees)
    assert set(errors) == {"eager", "ours"}
    assert wrong == {}

    def made(workload, name, dtype, device):
        return (Mistaken if name == "ours" else trainee.Trainee)(workload, name, dtype, device)

    monkeypatch.setattr(training, "Trainee", made)
    rows = training.measure(TINY, "fp32", ["eager", "ours"], 0.0, CPU)
    assert rows["ours"]["unavailable"].startswith("wrong: gradients off by 1.0e-02, eager's by ")
    assert "median_s" in rows["eager"]
    assert "median_s" not in rows["ours"]


def test_verification_needs_eager():
    errors, wrong = trainee.verify(TINY, "fp32", {"ours": trainee.Trainee(TINY, "ours", "fp32", CPU)})
    assert set(wrong) == set(errors) == {"ours"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(training, "workloads", lambda batch: [TINY._replace(shape=(batch, *TINY.shape[1:]))])


def run(out, contenders=("ours",), **more):
    return training.run(out, "sm80", 0.0, contenders, ["tiny"], **{"batches": [4], "device": "cpu", **more})


def test_written_run_includes_eager(tmp_path, tiny, monkeypatch):
    engines = []
    step = trainee.Trainee.step
    monkeypatch.setattr(trainee.Trainee, "step", lambda self: engines.append(gpu.engine_asked_for()) or step(self))
    result = run(tmp_path, batches=[4, 3], dtypes=["fp32"])
    assert json.loads((tmp_path / "training.json").read_text()) == result
    assert [(row["batch"], row["contender"]) for row in result["rows"]] == [
        (4, "eager"), (4, "ours"), (3, "eager"), (3, "ours")
    ]  # fmt: skip
    assert result["machine"]["engine"] == "sm80"
    assert set(engines) == {"sm80"}
    assert "| tiny fp32 | 3 |" in (tmp_path / "training.md").read_text()
    late = run(tmp_path, seconds=0.0)
    assert late["rows"] == []
    assert late["left_out"] == ["tiny bf16 batch 4: eager, ours"]


def test_torch_compile_is_timed_last_on_gpu(tmp_path, tiny, monkeypatch):
    found = []

    def measured(workload, dtype, names, budget_s, device):
        found.append((list(names), [json.loads(path.read_text())["rows"] for path in tmp_path.glob("*.json")]))
        row = {"workload": "tiny", "dtype": dtype, "batch": 4}
        if "compile" in names:
            return {n: {**row, "contender": n, "unavailable": "the compiler took all memory"} for n in names}
        return {
            n: {**row, "contender": n, "median_s": 1.0, "samples_s": [1.0, 1.0], "images_per_s": 4.0} for n in names
        }

    monkeypatch.setattr(training, "measure", measured)
    monkeypatch.setattr(gpu, "_engine_of_process", None)
    monkeypatch.setattr(training._machine, "record", lambda device: MACHINE | {"device": "NVIDIA H200"})
    names = ["eager_cl", "ours", "ours_recompute", "compile"]
    result = run(tmp_path, names, device="cuda")
    (first, nothing), (second, (rows,)) = found
    assert (first, nothing, second) == (names[:3], [], names)
    assert [row["contender"] for row in rows] == names[:3]
    assert [row["contender"] for row in result["rows"]] == names
    assert ["median_s" in row for row in result["rows"]] == [True, True, True, False]
    assert (tmp_path / "training-nvidia-h200-sm80.json").exists()


def test_failing_contender_has_a_row_with_a_reason(tiny, monkeypatch):
    def made(workload, name, dtype, device):
        if name == "ours":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 98 GiB")
        return trainee.Trainee(workload, name, dtype, device)

    monkeypatch.setattr(training, "Trainee", made)
    assert "median_s" in run(None, dtypes=["fp32"])["rows"][0], "eager, which can"
    with pytest.raises(
        SystemExit, match=r"not measured: ours, tiny fp32: OutOfMemoryError: CUDA out of memory\. Tried"
    ):
        training.main(["--contenders", "ours", "--dtypes", "fp32", "--batch", "4", "--budget", "0.01"])


def test_failing_workload_does_not_stop_the_next(tiny, monkeypatch):
    def failing(workload, dtype, trainees):
        if workload.shape[0] == 4:
            raise RuntimeError("CUDA error: misaligned address")
        return trainee.verify(workload, dtype, trainees)

    monkeypatch.setattr(training, "verify", failing)
    rows = run(None, batches=[4, 3], dtypes=["fp32"])["rows"]
    assert [row.get("unavailable") for row in rows] == ["RuntimeError: CUDA error: misaligned address"] * 2 + [None] * 2


@pytest.mark.parametrize("make", [reference.BasicBlock, reference.PreActBlock])
@pytest.mark.parametrize("name", ["eager", "ours"])
def test_timed_weights_stay_bounded(make, name):
    """With diverging weights a benchmark would time infinities, or outputs that are all zero."""
    block = trainee.Trainee(trainee.Workload("tiny", (8, 8, 9, 9), lambda: make(8, 8)), name, "fp32", CPU)
    before = [p.detach().clone() for p in block.model.parameters()]
    for _ in range(100):
        block.step()
    for old, new in zip(before, block.model.parameters(), strict=True):
        assert new.grad.norm() > 0
        assert (new - old).norm() < 0.1 * old.norm().clamp_min(1)
    assert (block.forward(block.x) > 0).float().mean() > 0.2


def test_workloads_cover_every_block_and_network():
    titles = " ".join(workload.title for workload in trainee.workloads(2))
    for kind in ("basic 64", "basic proj", "bottleneck 64", "bottleneck proj", "preact 64", "preact bottleneck"):
        assert kind in titles
    assert {"ResNet-18", "ResNet-50"} <= {w.title for w in trainee.workloads(2) if w.is_network}
    assert set(training.QUICK) <= {w.title for w in trainee.workloads(2)}


def test_report_has_ratios_bytes_and_missing_contenders():
    def row(contender, seconds, kept):
        samples = [seconds] * 5
        measured = {"samples_s": samples, "median_s": seconds, "images_per_s": 8 / seconds, "error": 1e-6}
        return {
            "workload": "tiny", "dtype": "fp32", "batch": 8, "contender": contender, "kept_bytes": kept, **measured
        }  # fmt: skip

    missing = {"workload": "tiny", "dtype": "fp32", "batch": 8, "contender": "compile", "unavailable": "no compiler"}
    rows = [row("eager", 2.0, 4 << 20), missing, row("ours", 1.0, 3 << 20)]
    shown = training_report.report({"rows": rows, "machine": MACHINE})
    assert "| tiny fp32 | 8 | 4.0 (2.00x) |  | **8.0** | 0 % |" in shown
    assert "| tiny fp32 | 4.0 | 3.0 (0.75) |" in shown
    assert "- torch.compile, tiny fp32: no compiler" in shown
