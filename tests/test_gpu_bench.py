"""What the GPU benchmarks time, on the CPU as far as that goes."""

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close

from benchmarks import gpu_kernels, gpu_models, jax_models, peers
from benchmarks.verify import Oracle
from benchmarks.workloads import Workload
from resnet_fused import models

CPU = torch.device("cpu")


def test_contenders_compute_the_same_layer():
    layer = gpu_kernels.Layer.random(16, 7, 2, torch.float32, device="cpu")
    calls, expected = gpu_kernels.calls_of(layer), layer.expected([0, 1])
    assert_close(calls[gpu_kernels.OURS](), calls[gpu_kernels.EAGER](), expected)
    activation, weight = 2 * 16 * 7 * 7, 16 * 16 * 3 * 3
    assert layer.work() == (2 * activation * 16 * 9, (3 * activation + weight) * 4)


def small(make=models.resnet18, dtype="fp32"):
    return Workload("model", "small", (2, 3, 32, 32), dtype, lambda: make(num_classes=4))


def uncaptured(call):
    return call, call()


CONTENDERS = {name: gpu_models.CONTENDERS[name] for name in (gpu_models.OURS, gpu_models.EAGER)}


def test_networks_are_verified_and_timed():
    result = gpu_models.measure(small(), CONTENDERS, 0.1, CPU, uncaptured)
    assert set(result["contenders"]) == set(CONTENDERS)
    assert result["failed"] == {}
    for row in result["contenders"].values():
        assert row["note"] == "CUDA graph"
        assert row["samples"] >= 5
        assert row["images_per_s"] == pytest.approx(2e6 / row["median_us"])


def test_who_cannot_be_captured_is_timed_and_says_so():
    def refused(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    rows = gpu_models.measure(small(), CONTENDERS, 0.1, CPU, refused)["contenders"]
    assert all(row["note"].startswith("not captured: RuntimeError: operation not") for row in rows.values())


def test_a_wrong_answer_of_ours_is_not_timed():
    def wrong(workload, device):
        right = peers.ours(workload, device)
        return peers.Contender(lambda: right.call() * 1.01, right.output)

    def absent(workload, device):
        raise peers.Unavailable("not installed")

    contenders = {**CONTENDERS, gpu_models.OURS: (wrong, True), "JAX": (absent, False)}
    result = gpu_models.measure(small(), contenders, 0.1, CPU, uncaptured)
    assert set(result["contenders"]) == {gpu_models.EAGER}
    assert result["failed"][gpu_models.OURS].startswith("wrong: error ")
    assert result["failed"]["JAX"] == "Unavailable: not installed"


def test_the_table_compares_with_eager_and_with_the_best_compiled(tmp_path, monkeypatch):
    def row(us, note=""):
        return {"median_us": us, "note": note}

    rows = {gpu_models.OURS: row(100.0, "CUDA graph"), gpu_models.EAGER: row(250.0), "torch.compile": row(200.0)}
    rows["torch.compile freezing"] = row(150.0)
    results = {"ResNet-18 batch 1": {"contenders": rows, "failed": {"JAX": "Unavailable: jax does not import"}}}
    text = gpu_models.table(results)
    assert "| ResNet-18 batch 1 | 100 | 250 | 200 | 150 |  |  | 2.50x | 1.50x |" in text
    assert "- ResNet-18 batch 1, JAX: Unavailable: jax does not import" in text
    assert "- resnet_fused: CUDA graph" in text
    monkeypatch.setattr(gpu_models, "environment", lambda engine: {"gpu": "NVIDIA H200", "engine": engine})
    path = gpu_models.write(tmp_path / "new", "sm90", results)
    assert path.name == "models-nvidia-h200-sm90.json"
    assert json.loads(path.read_text())["models"] == results
    assert text in path.with_suffix(".md").read_text()


def in_torch():
    """What jax_models asks of JAX, by torch: NHWC arrays, HWIO filters."""

    def nchw(function):
        return lambda x, *rest: function(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)

    return jax_models.Library(
        vector=lambda t: t,
        filter=lambda t: t.permute(2, 3, 1, 0),
        conv=nchw(lambda x, w, stride, padding: F.conv2d(x, w.permute(3, 2, 0, 1), None, stride, padding)),
        relu=F.relu,
        max_pool=nchw(F.max_pool2d),
        mean=lambda x: x.mean(dim=(1, 2)),
        matmul=torch.matmul,
    )


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50], ids=["basic", "bottleneck"])
@torch.no_grad()
def test_the_network_that_jax_gets_is_the_same(make):
    wanted = small(make)
    model, x = wanted.module(), wanted.input()
    got = jax_models.forward(model, in_torch())(x.permute(0, 2, 3, 1))
    assert_close(got, model(x), model.double()(x.double()))


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_jax_computes_the_same_network(dtype):
    wanted = small(models.resnet18, dtype)
    contender, oracle = jax_models.jitted(wanted, CPU), Oracle(wanted)
    eager = peers.channels_last(wanted, CPU)
    with torch.no_grad():
        error = oracle.error(contender.output(contender.call()))
        assert error <= 3 * oracle.limit(oracle.error(eager.call())), (
            "a peer's rounding is its own; a mistake is larger"
        )


def test_without_jax_there_is_a_reason(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(jax_models.importlib, "import_module", missing)
    with pytest.raises(peers.Unavailable, match="jax does not import: No module named 'jax'"):
        jax_models.jitted(small(), CPU)
