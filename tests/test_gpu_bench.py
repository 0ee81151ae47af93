"""The GPU benchmarks, tested on the CPU as far as possible."""

import importlib.util
import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close

from benchmarks import gpu, gpu_kernels, gpu_layers, gpu_models, jax_models, peers
from benchmarks.verify import Oracle
from benchmarks.workloads import Workload
from resnet_fused import models

CPU = torch.device("cpu")


PEAK = {"bytes_per_s": 1e9, "flop_per_s": 1e9}
SMALL = {
    "conv": gpu_layers.conv(16, 16, 7, 3, True),
    "1x1": gpu_layers.conv(16, 24, 7, 1, False),
    "downsample": gpu_layers.downsample(8, 16, 16, 7, 3),
    "stem": gpu_layers.conv(3, 8, 16, 7, False, gpu_layers.Stem, stride=2),
    "stats": gpu_layers.conv(16, 16, 7, 3, False, gpu_layers.Stats),
}


def uncaptured(call, launches=1):
    def several():
        for _ in range(launches):
            out = call()
        return out

    return several, call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_ours_and_eager_compute_the_same_layer(name, dtype):
    layer = SMALL[name](2, dtype, CPU)
    ours, eager = layer.parts(layer.ours(), [0, 1]), layer.parts(layer.eager(), [0, 1])
    for part, truth in layer.expected([0, 1]).items():
        if part == "y":
            assert_close(ours[part], eager[part], truth)
        else:
            assert ours[part].abs().max() <= 2 * eager[part].abs().max() + 4 * torch.finfo(torch.float32).eps


def test_wrong_statistics_exceed_the_error_limit():
    layer = SMALL["stats"](2, torch.float32, CPU)
    y, mean, variance = layer.ours()
    wrong = {
        part: gpu_kernels.errors_of(layer, result, [0], layer.expected([0]))[part]
        for part, result in (("mean", (y, mean + 1e-3, variance)), ("variance", (y, mean, variance * 1.001)))
    }
    assert all(error > 100 * gpu_layers.ulps(layer, part, y) for part, error in wrong.items())


def test_work_counts_each_tensor_once():
    activation, weight = 2 * 16 * 7 * 7, 16 * 16 * 3 * 3
    layer = SMALL["conv"](2, torch.float32, CPU)
    assert layer.work() == (2 * activation * 16 * 9, (3 * activation + weight) * 4)
    side, projection = 2 * 8 * 7 * 7, 8 * 16  # every second pixel of the source
    moved = (2 * activation + weight + side + projection) * 4
    assert SMALL["downsample"](2, torch.float32, CPU).work() == (2 * activation * (16 * 9 + 8), moved)
    image, convolved, pooled = 2 * 3 * 16 * 16, 2 * 8 * 8 * 8, 2 * 8 * 4 * 4
    flops, moved = SMALL["stem"](2, torch.float32, CPU).work()
    assert (flops, moved) == (2 * convolved * 3 * 49, (image + pooled + 8 * 3 * 49) * 4)


def test_layers_cover_resnet50():
    """Every convolution shape of ResNet-50 has a layer, except strided ones other than the stem."""
    listed = {name: make(1, torch.bfloat16, torch.device("cpu")) for name, make in gpu_layers.LAYERS.items()}
    shapes = {(tuple(layer.x.shape[1:]), tuple(layer.weight.shape)) for layer in listed.values()}
    found = set()

    def note(module, args, _):
        if module.stride == (1, 1) or module.kernel_size == (7, 7):
            found.add((tuple(args[0].shape[1:]), tuple(module.weight.shape)))

    model = models.resnet50().eval().to("meta")
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    first_of_a_stage = {shape for shape in found if shape[0][1] == 2 * {128: 28, 256: 14, 512: 7}.get(shape[1][0], 0)}
    only_once = {((64, 56, 56), (64, 64, 1, 1))}
    assert found - first_of_a_stage - only_once <= shapes
    for layer in listed.values():
        if isinstance(layer, gpu_layers.Downsample):
            assert layer.source.shape[2] == 2 * layer.x.shape[2]


@pytest.fixture
def small_layers(monkeypatch):
    monkeypatch.setattr(gpu_kernels, "LAYERS", SMALL)
    monkeypatch.setitem(gpu_kernels.DTYPES, "float32", torch.float32)


def kernels(out, *, engine="sm80:128x64", budget=0.01, contenders=("ours", "eager"), layers=("conv", "stats"), **more):
    chosen = {"batches": [2], "dtypes": ["float32"], "peak": PEAK, "device": "cpu", "capture": uncaptured, **more}
    return gpu_kernels.run(out, engine, budget, contenders, layers, **chosen)


def test_layers_are_timed_cold_and_warm(tmp_path, small_layers, monkeypatch):
    asked = []
    ours = gpu_layers.Layer.ours
    monkeypatch.setattr(gpu_layers.Layer, "ours", lambda self: asked.append(gpu.engine_asked_for()) or ours(self))
    report = kernels(tmp_path, layers=("conv", "1x1"))
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-sm80-128x64.json")
    assert json.loads(path.read_text()) == report
    assert set(asked) == {"sm80:128x64"}
    assert gpu.engine_asked_for() == gpu.PLANNED, "the next run's engine is its own"
    assert report["environment"]["commit"]
    assert list(report["layers"]) == ["conv batch 2 float32", "1x1 batch 2 float32"]
    for layer in report["layers"].values():
        assert set(layer["contenders"]) == {"resnet_fused", "eager"}
        assert layer["failed"] == {}
        for row in layer["contenders"].values():
            assert 0 < row["warm_us"] < gpu_kernels.LAUNCHES * row["median_us"]
            assert row["error"] == row["errors"]["y"] < 1e-4


def test_every_layer_is_compiled_past_the_recompile_limit(tmp_path, small_layers, monkeypatch):
    def compiled(layer):
        return torch.compile(layer.eager, backend="eager", dynamic=False, fullgraph=True)

    monkeypatch.setitem(gpu_kernels.CONTENDERS, "compiled", ("compiled", compiled))
    many = range(1, torch._dynamo.config.recompile_limit + 3)
    report = kernels(tmp_path, contenders=("compiled",), layers=("1x1",), batches=many, budget=0.0)
    assert len(report["layers"]) == len(many)
    assert all(layer["failed"] == {} for layer in report["layers"].values())


def test_second_engine_in_a_process_is_an_error(monkeypatch):
    """csrc/cuda/runtime/device.cpp reads the variable once, so a second engine would be timed as the first."""
    monkeypatch.setattr(gpu, "_engine_of_process", None)
    cuda = torch.device("cuda")
    for _ in range(2):
        with gpu.engine("sm80", cuda):
            assert gpu.engine_asked_for() == "sm80"
    second = pytest.raises(RuntimeError, match="this process has run engine sm80; start another one for sm90")
    with second, gpu.engine("sm90", cuda):
        pass
    with gpu.engine("sm90", CPU):
        assert gpu.engine_asked_for() == "sm90"


def test_only_named_contenders_are_timed(tmp_path, small_layers):
    report = kernels(tmp_path, contenders=("ours",), layers=("conv",))
    assert set(report["layers"]["conv batch 2 float32"]["contenders"]) == {"resnet_fused"}


def test_run_without_time_lists_skipped_cases(tmp_path, small_layers):
    report = kernels(tmp_path, seconds=0.0)
    assert report["layers"] == {}
    assert report["left_out"] == ["conv batch 2 float32", "stats batch 2 float32"]
    assert [json.loads(path.read_text()) for path in tmp_path.iterdir()] == [report]


@pytest.mark.parametrize(("kind", "part", "spoil"), [
    ("conv", "y", lambda y: y * 1.01),
    ("stats", "mean", lambda result: (result[0], result[1] + 1e-4, result[2])),
    ("stats", "variance", lambda result: (result[0], result[1], result[2] * 1.001)),
])  # fmt: skip
def test_wrong_layers_are_not_timed(tmp_path, small_layers, monkeypatch, kind, part, spoil):
    cls = gpu_layers.Stats if kind == "stats" else gpu_layers.Layer
    right = cls.ours
    monkeypatch.setattr(cls, "ours", lambda self: spoil(right(self)))
    result = kernels(tmp_path, layers=(kind,))["layers"][f"{kind} batch 2 float32"]
    assert result["failed"]["resnet_fused"].startswith(f"wrong: error of {part} ")
    assert set(result["contenders"]) == {"eager"}


def test_peers_that_cannot_run_have_a_reason(tmp_path, small_layers):
    result = kernels(tmp_path, contenders=("ours", "cudnn", "cudnn_graph"), layers=("stats",))
    failed = result["layers"]["stats batch 2 float32"]["failed"]
    assert failed["cudnn_convolution_add_relu"] == "Unavailable: torch exposes no kernel of cuDNN that does this"
    assert failed["cuDNN graph API"].startswith("Unavailable: ")


def test_unknown_names_are_refused(tmp_path, small_layers):
    with pytest.raises(ValueError, match="--layers names 65@57; any of conv, 1x1, "):
        kernels(tmp_path, layers=("65@57",))
    with pytest.raises(ValueError, match="--contenders names tvm; any of ours, "):
        kernels(tmp_path, contenders=("tvm",))


def small(make=models.resnet18, dtype="fp32"):
    return Workload("model", "small", (2, 3, 32, 32), dtype, lambda: make(num_classes=4))


CONTENDERS = {name: gpu_models.CONTENDERS[name] for name in (gpu_models.OURS, gpu_models.EAGER)}


def test_networks_are_verified_and_timed():
    result = gpu_models.measure(small(), CONTENDERS, 0.1, CPU, uncaptured)
    assert set(result["contenders"]) == set(CONTENDERS)
    assert result["failed"] == {}
    for row in result["contenders"].values():
        assert row["note"] == "CUDA graph"
        assert row["samples"] >= 5
        assert row["images_per_s"] == pytest.approx(2e6 / row["median_us"])


def test_networks_without_graph_capture_are_timed():
    def refused(call):
        raise RuntimeError("operation not permitted when stream is capturing")

    rows = gpu_models.measure(small(), CONTENDERS, 0.1, CPU, refused)["contenders"]
    assert all(row["note"].startswith("not captured: RuntimeError: operation not") for row in rows.values())


def test_wrong_networks_are_not_timed():
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


def test_table_has_ratios_to_eager_and_best_compiled(tmp_path):
    def row(us, note=""):
        return {"median_us": us, "note": note}

    rows = {gpu_models.OURS: row(100.0, "CUDA graph"), gpu_models.EAGER: row(250.0), "torch.compile": row(200.0)}
    rows["torch.compile freezing"] = row(150.0)
    results = {"ResNet-18 batch 1": {"contenders": rows, "failed": {"JAX": "Unavailable: jax does not import"}}}
    text = gpu_models.table(results)
    assert "| ResNet-18 batch 1 | 100 | 250 | 200 | 150 |  |  | 2.50x | 1.50x |" in text
    assert "- ResNet-18 batch 1, JAX: Unavailable: jax does not import" in text
    assert "- resnet_fused: CUDA graph" in text
    known = {"gpu": "NVIDIA H200", "engine": "sm90"}
    path = gpu_models.write(tmp_path / "new", {"environment": known, "models": results})
    assert path.name == "models-nvidia-h200-sm90.json"
    assert json.loads(path.read_text())["models"] == results
    assert text in path.with_suffix(".md").read_text()


def forgot_eval():
    """Returns a workload in train mode, large enough for meaningful statistics in the last stage."""
    return replace(small(), shape=(4, 3, 96, 96), batch_statistics=True)


def test_batch_statistics_are_timed_and_running_ones_restored():
    seen = {}

    def watched(builder):
        def build(workload, device):
            contender = builder(workload, device)
            module = contender.call.__closure__[0].cell_contents
            seen[builder] = module, {k: v.clone() for k, v in module.state_dict().items()}

            def call():
                assert module.training
                return contender.call()

            return replace(contender, call=call)

        return build

    contenders = {name: (watched(builder), True) for name, (builder, _) in CONTENDERS.items()}
    restored = []

    def capture(call, launches=1):
        out = call()
        restored.append([torch.equal(v, seen_before[k]) for module, seen_before in list(seen.values())[-1:]
                         for k, v in module.state_dict().items()])  # fmt: skip
        return lambda: None, out

    result = gpu_models.measure(forgot_eval(), contenders, 0.01, CPU, capture)
    assert set(result["contenders"]) == set(CONTENDERS), result["failed"]
    assert not any(all(same) for same in restored), "a call in train mode updates running statistics"
    for module, before in seen.values():
        for key, value in module.state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=0, atol=0, msg=key)


@torch.no_grad()
def test_batch_statistics_are_verified_in_train_mode():
    oracle, forgotten = Oracle(forgot_eval()), peers.channels_last(forgot_eval(), CPU)
    error = oracle.error(forgotten.output(forgotten.call()))
    assert error < 1e-4
    running = peers.channels_last(replace(forgot_eval(), batch_statistics=False), CPU)
    assert oracle.error(running.output(running.call())) > 100 * error
    with pytest.raises(peers.Unavailable, match="takes running statistics only"):
        peers.frozen(forgot_eval(), CPU)


def test_network_results_are_written_to_files(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_models, "model", lambda *a: replace(small(), batch_statistics=a[4], title=a[0] + f"{a[4]}"))
    monkeypatch.setattr(gpu_models, "CONTENDERS", CONTENDERS)
    report = gpu_models.run(
        tmp_path, "sm80", 0.01, [gpu_models.OURS], ["ResNet-18"], batches=[2], device="cpu", capture=uncaptured
    )
    assert list(report["models"]) == ["ResNet-18False batch 2", "ResNet-18True batch 2"]
    (path,) = tmp_path.glob("*.json")
    assert path.name.endswith("-sm80.json")
    assert json.loads(path.read_text()) == report
    late = gpu_models.run(tmp_path, "sm80", 0.01, [gpu_models.OURS], ["ResNet-18"], device="cpu", seconds=0.0)
    assert len(late["left_out"]) == 2 * len(gpu_models.BATCHES)


def in_torch():
    """Implements jax_models.Library with torch: NHWC arrays, HWIO filters."""

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
def test_network_built_for_jax_matches_the_model(make):
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


def test_missing_jax_has_a_reason(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(jax_models.importlib, "import_module", missing)
    with pytest.raises(peers.Unavailable, match="jax does not import: No module named 'jax'"):
        jax_models.jitted(small(), CPU)
