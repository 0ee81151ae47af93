"""The plan's choice of Hopper's kernels, their tiles and their stream-K parts. Needs no GPU."""

import itertools

import pytest
from plans import GRADIENT, MODES, STATISTICS, plan

from resnet_fused.cli._gpus import GPUS


@pytest.fixture(autouse=True)
def _planned(monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CUDA_ENGINE", raising=False)


def sm90_plan(monkeypatch, choice, **layer):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", choice)
    return plan(**{**dict(r=3, dtype="bfloat16", gpu="h200", residual=True), **layer})


def test_sm90_statistics_do_not_split_the_depth(monkeypatch):
    """Even if a plain convolution is split, or the engine requests parts. The predicted time includes the moments."""
    deep = dict(n=256, hw=7, c=512, k=512)
    for choice in ("sm90", "sm90:128x128:4", "sm90:256x64"):
        for mode, plain in zip(STATISTICS, MODES, strict=False):
            p = sm90_plan(monkeypatch, choice, **deep, mode=mode, residual=False)
            assert (p.engine, p.mode, p.dp_tiles, p.sk_units, p.workspace) == ("sm90", mode, p.tiles, 0, 0)
            without = sm90_plan(monkeypatch, "sm90:{}x{}:1".format(*p.tile), **deep, mode=plain, residual=False)
            assert p.microseconds > without.microseconds + 2.5
    p = sm90_plan(monkeypatch, "sm90:256x128", **deep, mode="prologue statistics")
    assert "the accumulators of this mode take too many registers" in p.why_not("sm90")


def test_statistics_run_on_the_fastest_predicted_engine(monkeypatch):
    layers = [(56, 64, 256, 1), (56, 64, 64, 3), (28, 128, 128, 3), (14, 1024, 256, 1), (7, 512, 512, 3)]
    for (hw, c, k, r), mode in itertools.product(layers, STATISTICS):
        layer = dict(n=256, hw=hw, c=c, k=k, r=r, mode=mode)
        best = sm90_plan(monkeypatch, "all", **layer)
        times = {name: sm90_plan(monkeypatch, name, **layer).microseconds for name in ("sm90", "sm80", "torch")}
        assert best.microseconds == min(times.values()) == times[best.engine]


def test_sm90_has_no_gradient_sums():
    assert plan(gpu="h200", mode=GRADIENT, n=64).why_not("sm90") == ["its epilogue does not sum gradients"]


def test_sm90_runs_on_request(monkeypatch):
    layer = dict(n=32, hw=28, c=128, k=128, dtype="bfloat16", gpu="h200", residual=True)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    p = plan(**layer)
    assert (p.engine, p.dp_tiles, p.sk_units, p.workspace) == ("sm90", p.tiles, 0, 0)
    size, pixels = 2, 32 * 28 * 28
    assert p.bytes == (3 * pixels * 128 + 128 * 128 * 9) * size
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:256x128")
    p = plan(**layer)
    assert (p.tile, p.tiles, p.smem) == ((256, 128), pixels // 256, 3 * (256 + 128) * 128 + 256 * 128 * 2 + 256)
    elsewhere = {
        "the GPU is sm_80; wgmma": dict(gpu="a100"),
        "the kernel takes float16 and bfloat16": dict(dtype="float32"),
        "the convolution has 72 input channels; a multiple of 64 expected": dict(c=72),
        "the projection has 40 input channels": dict(mode="projection", proj_c=40),
        "the accumulators of this mode take too many registers": dict(mode="prologue"),
        "strides of 9x9; a tensor map takes 8": dict(hw=90, r=1, stride=9),
        "'s filter reaches 260 pixels": dict(dilation=130, hw=300, padding=0),
    }
    for why, change in elsewhere.items():
        p = plan(**{**layer, **change})
        assert p.engine != "sm90"
        assert any(why in reason for reason in p.why_not("sm90"))


def test_sm90_stays_within_the_window_of_a_tensor_map(monkeypatch):
    """The corners -padding and padding - reach lie within [-128, 127], and tap offsets are at most 254."""
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    layer = dict(n=1, c=64, k=128, dtype="bfloat16", gpu="h200")
    for within, beyond in [
        (dict(hw=7, r=1, padding=127), dict(hw=7, r=1, padding=128)),  # upper corner: 127 and 128
        (dict(hw=7, r=3, padding=128), dict(hw=7, r=3, padding=129)),  # lower corner: -128 and -129
        (dict(hw=300, r=3, dilation=64, padding=0), dict(hw=300, r=3, dilation=65, padding=0)),  # upper: -128, -130
        (dict(hw=300, r=3, dilation=127, padding=127), dict(hw=300, r=6, dilation=51, padding=127)),  # taps: 254, 255
    ]:
        assert plan(**layer, **within).engine == "sm90", within
        p = plan(**layer, **beyond)
        assert p.engine != "sm90", beyond
        assert "past the window of a tensor map" in p.why_not("sm90")[0]


def test_sm90_picks_the_faster_of_its_two_kernels(monkeypatch):
    """conv_rows keeps the filter of 64 channels in shared memory and wins where its tile fits the image."""
    layer = dict(n=256, hw=56, c=64, k=64, dtype="bfloat16", gpu="h200", residual=True)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    p = plan(**layer)
    assert (p.engine, p.tile, p.tiles, p.splits, p.workspace) == ("sm90:rows", (4, 56), 256 * 14, 1, 0)
    assert p.bytes == (3 * 256 * 56 * 56 + 64 * 9) * 64 * 2
    other = min(r.microseconds for r in p.rejected if r.engine == "sm90")
    assert other > 1.1 * p.microseconds
    assert plan(**{**layer, "n": 1}).tile == (8, 8), "on 49 SMs"
    small = plan(**{**layer, "n": 1024, "hw": 3})
    assert small.engine == "sm90"
    assert {r.why for r in small.rejected if r.engine == "sm90:rows"} == {"slower"}
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:128x128")
    named = plan(**layer)
    assert (named.engine, named.tile) == ("sm90", (128, 128))
    assert named.why_not("sm90:rows") == ["RESNET_FUSED_CUDA_ENGINE is sm90:128x128"]


def test_sm90_rows_runs_on_request(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:rows")
    layer = dict(n=8, hw=7, c=64, k=64, dtype="bfloat16", gpu="h200")
    assert plan(**layer).engine == "sm90:rows"
    elsewhere = {
        "the GPU is sm_80; wgmma": dict(gpu="a100"),
        "the kernel takes float16 and bfloat16": dict(dtype="float32"),
        "it has no prologue": dict(mode="prologue"),
        "it has no projection": dict(mode="projection"),
        "is 3x3 of 64 -> 128 channels, stride 1x1": dict(k=128),
        "is 3x3 of 128 -> 64 channels": dict(c=128),
        "is 1x1 of 64 -> 64 channels": dict(r=1),
        "stride 2x2, padding 1x1, dilation 1x1; 3x3 of 64 -> 64, stride 1": dict(stride=2),
        "padding 0x0": dict(padding=0),
        "dilation 2x2": dict(dilation=2),
        "bytes of shared memory; the limit is 100000": dict(gpu=[90, 132, 100000, 233472]),
    }
    for why, change in elsewhere.items():
        p = plan(**{**layer, **change})
        assert p.engine in ("sm80", "torch")
        assert any(why in reason for reason in p.why_not("sm90:rows"))
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:rows:8x32")
    p = plan(**layer)
    assert (p.engine, p.tile, p.tiles) == ("sm90:rows", (8, 32), 8)
    assert p.smem == 9 * 64 * 128 + 3 * 10 * 32 * 128 + 8 * 32 * 128 + 256
    for wrong in ("sm90:rows:8x31", "sm90:rows:256x64", "sm90:rows:8x32:2", "sm90:rows8x32", "sm90:8x32", "sm80:rows"):
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", wrong)
        with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_ENGINE is {wrong}; one of"):
            plan()


def test_sm90_rows_selects_the_compiled_kernels(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:rows")
    selected = set()
    for dtype, hw in itertools.product(["float16", "bfloat16"], [8, 14, 16, 28, 32, 56, 64, 112]):
        p = plan(n=64, hw=hw, c=64, k=64, dtype=dtype, gpu="h200")
        assert p.smem <= GPUS["h200"][2]
        selected.add((p.dtype, p.tile))
    tiles = [(4, 56), (7, 32), (8, 32), (16, 16), (8, 8)]
    assert selected == set(itertools.product(["float16", "bfloat16"], tiles))


def test_sm90_splits_the_tail_to_fill_idle_sms(monkeypatch):
    """512 channels at 7x7 and batch 256 are 196 tiles: 132 data-parallel ones, one per SM, and 64 in halves."""
    deep = dict(hw=7, c=512, k=512)
    p = sm90_plan(monkeypatch, "sm90:256x128", n=256, **deep)
    assert (p.tiles, p.dp_tiles, p.sk_units) == (196, 132, 128)
    assert p.workspace == (128 + 64 - 1) * 256 * 128 * 4
    assert p.bytes == (3 * 256 * 49 * 512 + 512 * 512 * 9) * 2 + 2 * p.workspace
    alone = sm90_plan(monkeypatch, "sm90:256x128:1", n=256, **deep)
    assert (alone.dp_tiles, alone.sk_units, alone.workspace) == (196, 0, 0)
    assert p.microseconds < 0.85 * alone.microseconds
    for n, hw, c in [(1, 7, 512), (1, 14, 256), (1, 28, 128), (32, 7, 512)]:
        p = sm90_plan(monkeypatch, "sm90", n=n, hw=hw, c=c, k=c)
        assert p.dp_tiles == 0, "fewer tiles than SMs"
        assert p.tiles < p.sk_units <= 132
    p = sm90_plan(monkeypatch, "sm90:256x128", n=132 * 128, hw=2, c=512, k=512)
    assert p.tiles == 8 * 132, "a full last round"
    assert p.sk_units == 0


def test_sm90_takes_the_requested_number_of_parts(monkeypatch):
    shape = dict(n=32, hw=7, c=512, k=512)
    p = sm90_plan(monkeypatch, "sm90:256x128:4", **shape)
    assert (p.tiles, p.dp_tiles, p.sk_units, p.workspace) == (28, 0, 112, (112 + 28 - 1) * 256 * 128 * 4)
    p = sm90_plan(monkeypatch, "sm90:128x128:4", **shape, mode="projection", proj_c=256)
    assert (p.tiles, p.sk_units, p.workspace) == (52, 208, (208 + 2 * 52 - 1) * 128 * 128 * 4)
    p = sm90_plan(monkeypatch, "sm90:256x64:40", n=32, hw=28, c=64, k=64)
    assert (p.tiles, p.sk_units) == (98, 98 * 9), "no more parts than steps"
    p = sm90_plan(monkeypatch, "sm90:256x64:9", n=256, hw=112, c=64, k=64)
    assert p.sk_units == 0, "the product of steps and units is past 32 bits"
    with pytest.raises(RuntimeError, match="RESNET_FUSED_CUDA_ENGINE is sm90:256x64:x; one of"):
        sm90_plan(monkeypatch, "sm90:256x64:x", **shape)


def test_sm90_selects_the_compiled_kernels(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    modes = [*MODES, *STATISTICS]
    lean = {(256, 128), (256, 64), (128, 128)}
    tiles = {"plain": lean, "statistics": lean}
    selected = {
        (dtype, p.tile, mode)
        for dtype, mode, n, hw, c, k, r in itertools.product(
            ["float16", "bfloat16"], modes, [1, 8, 64, 256], [7, 14, 28, 56], [64, 512], [64, 128, 512], [1, 3]
        )
        if (p := plan(n=n, hw=hw, c=c, k=k, r=r, dtype=dtype, mode=mode, gpu="h200")).engine == "sm90"
    }
    narrow = {(256, 64), (128, 128)}
    compiled = {(d, t, m) for d in ("float16", "bfloat16") for m in modes for t in tiles.get(m, narrow)}
    assert selected == compiled


@pytest.mark.parametrize(
    "layer", [(256, 56, 64), (256, 14, 256), (256, 7, 512), (32, 28, 128), (1, 56, 64), (1, 7, 512)]
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_engine_all_picks_the_fastest_prediction(layer, dtype, monkeypatch):
    n, hw, c = layer
    shape = dict(n=n, hw=hw, c=c, k=c, dtype=dtype, gpu="h200", residual=True)
    ours = plan(**shape)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    hopper = plan(**shape)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "all")
    assert plan(**shape).microseconds == min(ours.microseconds, hopper.microseconds)
    assert plan(**{**shape, "gpu": "a100"}).engine in ("sm80", "torch")
