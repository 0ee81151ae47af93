"""benchmarks/training.py measures what it says, of a block small enough for a test, and its report shows every row."""

import sys
from pathlib import Path

import pytest
import torch
from training import one_thread  # noqa: F401  autouse

from resnet_fused import autograd, reference

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import trainee, training, training_report

pytestmark = pytest.mark.skipif("cpu" not in autograd.DEVICES, reason="the library has no training ops")

CPU = torch.device("cpu")
TINY = trainee.Workload("tiny", (8, 8, 9, 9), lambda: reference.BasicBlock(8, 8))


def test_a_run_has_speed_memory_and_error_of_every_contender():
    names = ["eager", "eager_cl", "ours", "ours_recompute"]
    rows = training.measure(TINY, "fp32", names, 0.0, CPU)
    assert [row["contender"] for row in rows] == names
    by_name = {row["contender"]: row for row in rows}
    assert all(len(row["samples_s"]) >= 5 and row["images_per_s"] > 0 for row in rows)
    assert by_name["ours"]["kept_bytes"] <= 0.82 * by_name["eager"]["kept_bytes"]
    assert by_name["ours"]["error"] < 1e-2


class Mistaken(trainee.Trainee):
    def forward(self, x):
        return (1 if self.dtype == "fp64" else 1.01) * super().forward(x)


def test_wrong_gradients_are_not_timed():
    trainees = {name: trainee.Trainee(TINY, name, "fp32", CPU) for name in ("eager", "ours")}
    trainee.verify(TINY, "fp32", trainees)
    trainees["ours"] = Mistaken(TINY, "ours", "fp32", CPU)
    with pytest.raises(SystemExit, match=r"tiny fp32: gradients off by {'ours': "):
        trainee.verify(TINY, "fp32", trainees)


@pytest.mark.parametrize("make", [reference.BasicBlock, reference.PreActBlock])
@pytest.mark.parametrize("name", ["eager", "ours"])
def test_a_timed_block_stays_what_it_was(make, name):
    """Weights that run away would time infinities, or outputs that are all zero."""
    block = trainee.Trainee(trainee.Workload("tiny", (8, 8, 9, 9), lambda: make(8, 8)), name, "fp32", CPU)
    before = [p.detach().clone() for p in block.model.parameters()]
    for _ in range(100):
        block.step()
    for old, new in zip(before, block.model.parameters(), strict=True):
        assert new.grad.norm() > 0
        assert (new - old).norm() < 0.1 * old.norm().clamp_min(1)
    assert (block.forward(block.x) > 0).float().mean() > 0.2


def test_every_kind_of_block_and_both_networks_are_workloads():
    titles = " ".join(workload.title for workload in trainee.workloads(2))
    for kind in ("basic 64", "basic proj", "bottleneck 64", "bottleneck proj", "preact 64", "preact bottleneck"):
        assert kind in titles
    assert {"ResNet-18", "ResNet-50"} <= {w.title for w in trainee.workloads(2) if w.is_network}
    assert set(training.QUICK) <= {w.title for w in trainee.workloads(2)}


def test_the_report_names_ratios_bytes_and_who_is_missing():
    def row(contender, seconds, kept):
        samples = [seconds] * 5
        measured = {"samples_s": samples, "median_s": seconds, "images_per_s": 8 / seconds, "error": 1e-6}
        return {
            "workload": "tiny", "dtype": "fp32", "batch": 8, "contender": contender, "kept_bytes": kept, **measured
        }  # fmt: skip

    missing = {"workload": "tiny", "dtype": "fp32", "batch": 8, "contender": "compile", "unavailable": "no compiler"}
    machine = {"device": "a CPU", "torch": torch.__version__, "load_average": 0.1, "date": "2026-01-02"}
    machine["commit"] = "abc"
    rows = [row("eager", 2.0, 4 << 20), missing, row("ours", 1.0, 3 << 20)]
    shown = training_report.report({"rows": rows, "machine": machine})
    assert "| tiny fp32 | 8 | 4.0 (2.00x) |  | **8.0** | 0 % |" in shown
    assert "| tiny fp32 | 4.0 | 3.0 (0.75) |" in shown
    assert "- torch.compile, tiny fp32: no compiler" in shown
