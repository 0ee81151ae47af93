"""The plan's choices, reasons and byte counts for several GPUs. Needs no GPU."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from resnet_fused import ops
from resnet_fused.cli._gpus import GPUS

HEADER = (Path(__file__).parents[1] / "csrc/cuda/sm80/conv_fwd.h").read_text()
MODES = ["plain", "prologue", "projection", "projection prologue"]
STATISTICS = ["statistics", "prologue statistics"]
GRADIENT = "gradient sums"
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4}


@pytest.fixture(autouse=True)
def _planned(monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CUDA_ENGINE", raising=False)


class Tile(NamedTuple):
    m: int
    n: int
    stages: int
    threads: int


def compiled_tiles():
    """Returns the tiles listed in the header that both the kernels and the plan include."""
    table = re.search(r"kConvFwdTiles\[\] = \{(.*?)\};", HEADER, re.S)[1]
    return [Tile(*map(int, row.split(","))) for row in re.findall(r"\{([\d, ]+)\}", table)]


class Plan(NamedTuple):
    engine: str  # "sm90 rows", "sm90", "sm80" or "torch"
    tile: tuple[int, int] | None
    dtype: str | None
    mode: str | None
    tiles: int
    smem: int
    splits: int
    whole: int
    shares: int
    workspace: int
    bytes: int
    microseconds: float | None
    rejected: list[str]  # except sm90's
    sm90: str | None  # why not sm90/conv_sm90
    rows: str | None  # why not sm90/conv_rows


def read(text):
    first, *rejected = text.split("\n  not ")
    named = r"(sm[89]0(?: rows)?) (\d+)x(\d+): (\w+), ([a-z ]+), (\d+) tiles of (\d+) bytes of shared memory, "
    kernel = re.match(named, first)
    splits = re.search(r"(\d+) splits?, ", first)
    shares = re.search(r"(\d+) whole, (\d+) in (\d+) shares, ", first)
    workspace = re.search(r"(\d+) bytes of partial sums", first)
    time = re.search(r"([\d.]+) us predicted$", first)
    engine, m, n, dtype, mode, tiles, smem = kernel.groups() if kernel else ("torch", 0, 0, None, None, 0, 0)
    return Plan(
        engine,
        (int(m), int(n)) if kernel else None,
        dtype,
        mode,
        int(tiles),
        int(smem),
        int(splits[1]) if splits else 1,
        int(shares[1]) if shares else 0,
        int(shares[3]) if shares else 0,
        int(workspace[1]) if workspace else 0,
        int(re.search(r"(\d+) bytes moved", first)[1]),
        float(time[1]) if time else None,
        [why for why in rejected if not why.startswith("sm90")],
        next((why for why in rejected if re.match("sm90(?! rows)", why)), None),
        next((why for why in rejected if why.startswith("sm90 rows")), None),
    )


def explain(n=8, hw=14, c=256, k=256, r=3, stride=1, dtype="float16", mode="plain", gpu="a100", proj_c=None,
            proj_stride=2, residual=False, aligned=True, allow_tf32=True, groups=1, dilation=1,
            padding=None):  # fmt: skip
    padding = (r // 2 * dilation if padding is None else padding,) * 2
    out = (hw + 2 * padding[0] - dilation * (r - 1) - 1) // stride + 1
    side = [n, proj_c or c, (out - 1) * proj_stride + 1, out * proj_stride] if mode.startswith("projection") else []
    return ops.explain_cuda(
        [n, c, hw, hw], [k, c // groups, r, r], [stride] * 2, padding, [dilation] * 2, groups, dtype, mode, side,
        [proj_stride] * 2, residual, aligned, allow_tf32, GPUS[gpu] if isinstance(gpu, str) else gpu,
    )  # fmt: skip


def plan(**problem):
    return read(explain(**problem))


def test_selected_kernels_are_the_compiled_ones():
    """Each problem gets a compiled kernel that fits the GPU, and every compiled kernel is reachable."""
    modes = [*MODES, *STATISTICS, GRADIENT]
    menu = {(dtype, (t.m, t.n), mode) for dtype in DTYPES for t in compiled_tiles() for mode in modes}
    selected = set()
    layers = [(112, 64), (56, 64), (56, 256), (28, 128), (28, 512), (14, 256), (14, 1024), (7, 512), (7, 2048), (9, 24)]
    grid = itertools.product(
        DTYPES, modes, ["a100", "a10", "h200", "b200"], [1, 8, 64], layers, [1, 3], [16, 64, 256, 1024]
    )
    for dtype, mode, gpu, n, (hw, c), r, k in grid:
        p = plan(n=n, hw=hw, c=c, k=k, r=r, dtype=dtype, mode=mode, gpu=gpu)
        assert p.microseconds > 0
        if p.engine != "sm80":
            continue
        assert (p.dtype, p.mode) == (dtype, mode)
        assert p.smem <= GPUS[gpu][2]
        (tile,) = [t for t in compiled_tiles() if p.tile == (t.m, t.n)]
        assert p.smem >= tile.stages * (tile.m + tile.n) * 128
        assert p.tiles == -(-n * hw * hw // tile.m) * -(-k // tile.n)
        selected.add((p.dtype, p.tile, p.mode))
    assert selected <= menu
    assert menu <= selected, "compiled, but selected by no problem here"


HARD = [
    (dict(groups=32), "the convolution has 32 groups"),
    (dict(c=12), "the convolution has 12 -> 256 channels; multiples of 8 expected"),
    (dict(k=1000, c=3), "the convolution has 3 -> 1000 channels; multiples of 8 expected"),
    (dict(k=20), "256 -> 20 channels"),
    (dict(mode="projection", proj_c=20), "the projection has 20 -> 256 channels; multiples of 8 expected"),
    (dict(dtype="float64"), "the kernel takes float16, bfloat16 and float32"),
    (dict(dtype="float32", allow_tf32=False), "the kernel multiplies float32 as TF32"),
    (dict(aligned=False), "a tensor is not 16-byte aligned"),
    (dict(r=17, hw=20), "the convolution's filter is 17x17, more than 16 taps a side"),
    (dict(gpu=[75, 40, 65536, 65536]), "the GPU is sm_75; the kernel needs at least sm_80"),
    (dict(n=0), "the output is empty"),
    (dict(n=2**12, hw=64, c=256), "offsets of 32 bits reach 2147483647"),
    (dict(n=2**10, hw=64, c=64, k=1024), "offsets of 32 bits reach 2147483647"),
    (dict(n=1, c=8, hw=8, padding=2**30, stride=2**29), "past coordinates of 32 bits"),
    (dict(mode="projection", n=64, proj_c=2**17), "the projection has"),
]


@pytest.mark.parametrize(("problem", "reason"), HARD, ids=[reason for _, reason in HARD])
def test_unsupported_convolutions_go_to_torch(problem, reason):
    p = plan(**problem)
    assert p.engine == "torch"
    (why,) = p.rejected
    assert why.startswith("sm80: ")
    assert reason in why
    assert p.microseconds is None, "there is no choice to predict anything for"


def test_tiles_past_shared_memory_are_not_picked():
    """A prologue needs 8 bytes per channel. With 512 channels, the largest tile exceeds an A10's shared memory."""
    too_large = "bytes of shared memory; the limit is"
    assert not any(too_large in why for why in plan(gpu="a10", c=128, mode="prologue").rejected)
    p = plan(gpu="a10", c=512, mode="prologue")
    assert f"sm80 128x128: a block needs 103424 {too_large} 101376" in p.rejected
    nothing = plan(gpu=[80, 108, 49152, 49152])
    assert nothing.engine == "torch"
    assert len(nothing.rejected) == len(compiled_tiles())
    assert nothing.microseconds > 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("r", "stride", "hw"), [(1, 1, 56), (1, 2, 56), (3, 1, 7), (3, 2, 56)])
def test_bytes_count_each_tensor_once(dtype, mode, residual, r, stride, hw):
    n, c, k, proj_c = 2, 128, 64, 32
    p = plan(n=n, hw=hw, c=c, k=k, r=r, stride=stride, dtype=dtype, mode=mode, residual=residual, proj_c=proj_c)
    out = (hw + 2 * (r // 2) - r) // stride + 1
    size, pixels = DTYPES[dtype], n * out * out
    touched = n * (out if r == 1 else hw) ** 2  # a strided 1x1 skips pixels
    elements = touched * c + k * c * r * r + pixels * k * (1 + residual)
    if mode.startswith("projection"):
        elements += pixels * proj_c + k * proj_c
    if p.engine == "sm80":
        slices = p.splits + mode.startswith("projection") if p.splits > 1 else 0
        assert p.workspace == slices * pixels * k * 4
        assert p.bytes == elements * size + 2 * p.workspace
    else:
        raw = pixels * k * (1 + mode.startswith("projection"))
        prepared = {"prologue": touched * c, "projection prologue": pixels * proj_c}.get(mode, 0)
        assert p.bytes == (elements + 2 * raw + 2 * prepared) * size


@pytest.mark.parametrize("gpu", ["a100", "h200"])
def test_depth_is_split_where_tiles_are_few(gpu):
    for n, r, c in [(1, 3, 512), (2, 3, 512), (1, 1, 2048)]:
        p = plan(n=n, hw=7, c=c, k=512, r=r, gpu=gpu, residual=True)
        assert p.engine == "sm80"
        assert p.tiles < GPUS[gpu][1]
        assert 2 <= p.splits <= 16
        assert p.workspace == p.splits * n * 49 * 512 * 4


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_depth_is_split_no_more_than_needed(gpu, dtype):
    depth = 128 // DTYPES[dtype]
    for n, hw, c, r in itertools.product([1, 4, 64], [1, 7, 28], [8, 64, 512], [1, 3]):
        p = plan(n=n, hw=hw, c=c, k=64, r=r, gpu=gpu, dtype=dtype)
        if p.engine.startswith("sm90"):
            continue
        assert p.splits <= -(-r * r * c // depth)
        if p.tiles >= GPUS[gpu][1]:
            assert p.splits == 1
        assert (p.workspace > 0) == (p.splits > 1)


@pytest.mark.parametrize("gpu", ["a100", "h200"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_do_not_split_the_depth(gpu, dtype):
    """A plain convolution with few pixels is split. The predicted time includes the moments."""
    for mode, plain in zip(STATISTICS, MODES, strict=False):
        p = plan(n=1, hw=7, c=512, k=512, dtype=dtype, mode=mode, gpu=gpu)
        assert p.splits == 1
        assert plan(n=1, hw=7, c=512, k=512, dtype=dtype, mode=plain, gpu=gpu).splits > 1
        large = dict(n=64, hw=56, c=64, k=256, r=1, dtype=dtype, gpu=gpu)
        assert plan(mode=mode, **large).microseconds > plan(mode=plain, **large).microseconds


def test_statistics_after_torchs_convolution_cost_a_pass():
    """bn_stats is a pass over the output; a prologue adds a pass that computes the activation."""
    shape = dict(n=64, hw=14, c=256, k=256, groups=2)
    elements = 64 * 14 * 14 * 256
    plain, normalised, sums, both = (
        plan(mode=mode, **shape) for mode in ("plain", "prologue", "statistics", "prologue statistics")
    )
    assert {p.engine for p in (plain, normalised, sums, both)} == {"torch"}
    assert plain.bytes - sums.bytes == normalised.bytes - both.bytes == elements * 2
    assert both.bytes - sums.bytes == 2 * elements * 2
    assert "convolution, then bn_stats, " in explain(mode="statistics", **shape)
    assert "convolution, then bn_add_act, " in explain(**shape)


def test_sm90_statistics_do_not_split_the_depth(monkeypatch):
    """Even if a plain convolution is split, or the engine requests shares. The predicted time includes the moments."""
    deep = dict(n=256, hw=7, c=512, k=512)
    for choice in ("sm90", "sm90:128x128:4", "sm90:256x64"):
        for mode, plain in zip(STATISTICS, MODES, strict=False):
            p = sm90_plan(monkeypatch, choice, **deep, mode=mode, residual=False)
            assert (p.engine, p.mode, p.whole, p.shares, p.workspace) == ("sm90", mode, p.tiles, 0, 0)
            whole = sm90_plan(monkeypatch, "sm90:{}x{}:1".format(*p.tile), **deep, mode=plain, residual=False)
            assert p.microseconds > whole.microseconds + 2.5
    p = sm90_plan(monkeypatch, "sm90:256x128", **deep, mode="prologue statistics")
    assert "no tile of that size supports this mode" in p.sm90


def test_statistics_run_on_the_fastest_predicted_engine(monkeypatch):
    layers = [(56, 64, 256, 1), (56, 64, 64, 3), (28, 128, 128, 3), (14, 1024, 256, 1), (7, 512, 512, 3)]
    for (hw, c, k, r), mode in itertools.product(layers, STATISTICS):
        layer = dict(n=256, hw=hw, c=c, k=k, r=r, mode=mode)
        best = sm90_plan(monkeypatch, "all", **layer)
        times = {name: sm90_plan(monkeypatch, name, **layer).microseconds for name in ("sm90", "sm80", "torch")}
        assert best.microseconds == min(times.values()) == times[best.engine]


@pytest.mark.parametrize("gpu", ["a100", "h200"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_sums_do_not_split_the_depth(gpu, dtype):
    """A plain convolution with few pixels is split. The prediction includes the pre-BN output and flipped filter."""
    few = dict(n=1, hw=7, c=512, k=512, dtype=dtype, gpu=gpu)
    assert plan(mode=GRADIENT, **few).splits == 1
    assert plan(mode="plain", **few).splits > 1
    large = dict(n=64, hw=56, c=64, k=256, r=1, dtype=dtype, gpu=gpu)
    ours, plain = plan(mode=GRADIENT, **large), plan(mode="plain", **large)
    assert ours.engine == "sm80"
    assert ours.bytes - plain.bytes == 64 * 56 * 56 * 256 * DTYPES[dtype]
    assert ours.microseconds > plain.microseconds


@pytest.mark.parametrize("residual", [False, True])
def test_sums_after_torchs_gradient_cost_a_pass(residual):
    """The sums are a pass over the gradient; adding another gradient is a pass that reads and writes it."""
    shape = dict(n=64, hw=14, c=256, k=256, groups=2, residual=residual)
    tensor = 64 * 14 * 14 * 256 * 2
    torch, plain = plan(mode=GRADIENT, **shape), plan(**shape)
    assert {torch.engine, plain.engine} == {"torch"}
    assert torch.bytes - plain.bytes == (2 if residual else 0) * tensor
    assert "convolution, then bn_backward_reduce, " in explain(mode=GRADIENT, **shape)


def test_sm90_has_no_gradient_sums():
    assert plan(gpu="h200", mode=GRADIENT, n=64).sm90 == "sm90: its epilogue does not sum gradients"


def test_prediction_grows_with_the_work():
    times = [plan(n=n, hw=28, c=128, k=128).microseconds for n in (1, 4, 16, 64, 256)]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] > 10 * times[0]


def test_rejected_candidates_have_reasons_with_numbers():
    p = plan(n=1, hw=7, c=512, k=512, residual=True)
    assert p.engine == "sm80"
    assert [why.partition(":")[0] for why in p.rejected] == ["sm80 128x128", "sm80 128x64", "torch"]
    for why in p.rejected[:2]:
        assert re.search(r"\d+ blocks with \d+ splits leave \d+ of 108 SMs idle, [\d.]+ us predicted$", why), why
    assert re.fullmatch(r"torch: [\d.]+ us predicted, [\d.]+ of them in an extra pass over activations", p.rejected[-1])
    assert re.search(r"\d+ blocks, \d+ on the busiest of 108 SMs", plan(n=64).rejected[0])


def test_torch_is_picked_where_wgmma_is_faster():
    """A 3x3 convolution of many channels is compute-bound at a large batch, and mma.sync is slower than wgmma."""
    p = plan(n=256, hw=14, c=256, k=256, gpu="b200", residual=True)
    assert p.engine == "torch"
    predicted = [float(re.search(r"([\d.]+) us predicted", why)[1]) for why in p.rejected]
    assert len(predicted) == len(compiled_tiles())
    assert min(predicted) > p.microseconds
    assert plan(n=256, hw=56, c=64, k=256, r=1, gpu="b200", residual=True).engine == "sm80", "bound by memory"


def test_environment_forces_an_engine_or_tile(monkeypatch):
    compute_bound = dict(n=256, hw=14, c=256, k=256, gpu="h200")
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
    p = plan(**compute_bound)
    assert p.engine == "sm80"
    assert p.rejected[-1] == "torch: RESNET_FUSED_CUDA_ENGINE is sm80"
    assert plan(groups=32).engine == "torch", "where the kernel can run"
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "torch")
    p = plan(n=1)
    assert (p.engine, p.rejected) == ("torch", ["sm80: RESNET_FUSED_CUDA_ENGINE is torch"])
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "")
    assert plan(n=1).engine == "sm80"
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80:64x64")
    assert plan(**compute_bound).tile == (64, 64)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80:128x64:3")
    p = plan(**compute_bound)
    assert (p.tile, p.splits) == ((128, 64), 3)
    assert plan(n=1, c=8, r=1).splits == 1, "no more parts than steps"
    for wrong in ("sm80:64x32", "sm80:64x64:", "sm80:64x64:4x", "sm80:", "sm800"):
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", wrong)
        with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_ENGINE is {wrong}; one of"):
            plan()
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "cutlass")
    every = "one of all, torch, sm80, sm90, sm90:block, sm90:rows, sm80:128x128, "
    with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_ENGINE is cutlass; {every}"):
        plan()


def test_sm90_runs_on_request(monkeypatch):
    layer = dict(n=32, hw=28, c=128, k=128, dtype="bfloat16", gpu="h200", residual=True)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    p = plan(**layer)
    assert (p.engine, p.whole, p.shares, p.workspace) == ("sm90", p.tiles, 0, 0)
    size, pixels = 2, 32 * 28 * 28
    assert p.bytes == (3 * pixels * 128 + 128 * 128 * 9) * size
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:256x128")
    p = plan(**layer)
    assert (p.tile, p.tiles, p.smem) == ((256, 128), pixels // 256, 3 * (256 + 128) * 128 + 256 * 128 * 2 + 256)
    elsewhere = {
        "the GPU is sm_80; wgmma": dict(gpu="a100"),
        "the kernel has no TF32 wgmma": dict(dtype="float32"),
        "the convolution has 72 input channels; a multiple of 64 expected": dict(c=72),
        "the projection has 40 input channels": dict(mode="projection", proj_c=40),
        "no tile of that size supports this mode": dict(mode="prologue"),
        "strides of 9x9; a tensor map takes 8": dict(hw=90, r=1, stride=9),
        "'s filter reaches 260 pixels": dict(dilation=130, hw=300, padding=0),
    }
    for why, change in elsewhere.items():
        p = plan(**{**layer, **change})
        assert p.engine != "sm90"
        assert why in p.sm90


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
        assert "past the window of a tensor map" in p.sm90


def test_sm90_picks_the_faster_of_its_two_kernels(monkeypatch):
    """conv_rows keeps the filter of 64 channels in shared memory and wins where its tile fits the image."""
    layer = dict(n=256, hw=56, c=64, k=64, dtype="bfloat16", gpu="h200", residual=True)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    p = plan(**layer)
    assert (p.engine, p.tile, p.tiles, p.splits, p.workspace) == ("sm90 rows", (4, 56), 256 * 14, 1, 0)
    assert p.bytes == (3 * 256 * 56 * 56 + 64 * 9) * 64 * 2
    other = re.fullmatch(r"sm90 256x64: ([\d.]+) us predicted", p.sm90)
    assert float(other[1]) > 1.1 * p.microseconds
    assert plan(**{**layer, "n": 1}).tile == (8, 8), "on 49 SMs"
    small = plan(**{**layer, "n": 1024, "hw": 3})
    assert small.engine == "sm90"
    assert re.fullmatch(r"sm90 rows 8x8: [\d.]+ us predicted", small.rows)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:128x128")
    named = plan(**layer)
    assert (named.engine, named.tile) == ("sm90", (128, 128))
    assert "RESNET_FUSED_CUDA_ENGINE names another tile" in named.rows


def test_sm90_rows_runs_on_request(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:rows")
    layer = dict(n=8, hw=7, c=64, k=64, dtype="bfloat16", gpu="h200")
    assert plan(**layer).engine == "sm90 rows"
    elsewhere = {
        "the GPU is sm_80; wgmma": dict(gpu="a100"),
        "the kernel has no TF32 wgmma": dict(dtype="float32"),
        "it has no prologue": dict(mode="prologue"),
        "it has no projection": dict(mode="projection"),
        "is 3x3 of 64 -> 128 channels, stride 1x1": dict(k=128),
        "is 3x3 of 128 -> 64 channels": dict(c=128),
        "is 1x1 of 64 -> 64 channels": dict(r=1),
        "stride 2x2, padding 1x1, dilation 1x1; 3x3 of 64 -> 64, stride 1": dict(stride=2),
        "padding 0x0": dict(padding=0),
        "dilation 2x2": dict(dilation=2),
        "no tile fits in 100000 bytes": dict(gpu=[90, 132, 100000, 233472]),
    }
    for why, change in elsewhere.items():
        p = plan(**{**layer, **change})
        assert p.engine in ("sm80", "torch")
        assert why in p.rows
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90:rows:8x32")
    p = plan(**layer)
    assert (p.engine, p.tile, p.tiles) == ("sm90 rows", (8, 32), 8)
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


def sm90_plan(monkeypatch, choice, **layer):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", choice)
    return plan(**{**dict(r=3, dtype="bfloat16", gpu="h200", residual=True), **layer})


def test_sm90_splits_the_tail_to_fill_idle_sms(monkeypatch):
    """512 channels at 7x7 and batch 256 are 196 tiles: 132 whole ones, one per SM, and 64 in halves."""
    deep = dict(hw=7, c=512, k=512)
    p = sm90_plan(monkeypatch, "sm90:256x128", n=256, **deep)
    assert (p.tiles, p.whole, p.shares) == (196, 132, 128)
    assert p.workspace == (128 + 64 - 1) * 256 * 128 * 4
    assert p.bytes == (3 * 256 * 49 * 512 + 512 * 512 * 9) * 2 + 2 * p.workspace
    alone = sm90_plan(monkeypatch, "sm90:256x128:1", n=256, **deep)
    assert (alone.whole, alone.shares, alone.workspace) == (196, 0, 0)
    assert p.microseconds < 0.85 * alone.microseconds
    for n, hw, c in [(1, 7, 512), (1, 14, 256), (1, 28, 128), (32, 7, 512)]:
        p = sm90_plan(monkeypatch, "sm90", n=n, hw=hw, c=c, k=c)
        assert p.whole == 0, "fewer tiles than SMs"
        assert p.tiles < p.shares <= 132
    p = sm90_plan(monkeypatch, "sm90:256x128", n=132 * 128, hw=2, c=512, k=512)
    assert p.tiles == 8 * 132, "a full last round"
    assert p.shares == 0


def test_sm90_takes_the_requested_number_of_parts(monkeypatch):
    shape = dict(n=32, hw=7, c=512, k=512)
    p = sm90_plan(monkeypatch, "sm90:256x128:4", **shape)
    assert (p.tiles, p.whole, p.shares, p.workspace) == (28, 0, 112, (112 + 28 - 1) * 256 * 128 * 4)
    p = sm90_plan(monkeypatch, "sm90:128x128:4", **shape, mode="projection", proj_c=256)
    assert (p.tiles, p.shares, p.workspace) == (52, 208, (208 + 2 * 52 - 1) * 128 * 128 * 4)
    p = sm90_plan(monkeypatch, "sm90:256x64:40", n=32, hw=28, c=64, k=64)
    assert (p.tiles, p.shares) == (98, 98 * 9), "no more parts than steps"
    p = sm90_plan(monkeypatch, "sm90:256x64:9", n=256, hw=112, c=64, k=64)
    assert p.shares == 0, "steps times shares are past 32 bits"
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
    menu = {(d, t, m) for d in ("float16", "bfloat16") for m in modes for t in tiles.get(m, {(256, 64), (128, 128)})}
    assert selected == menu


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: [1, 8, 8]}, r"x_shape is \[1, 8, 8\]; 4 integers from 0 to 2147483647 expected"),
        ({1: [8, 8, 0, 1]}, r"weight_shape is \[8, 8, 0, 1\]; 4 integers from 1"),
        ({1: [8, 7, 1, 1]}, r"weight_shape \[8, 7, 1, 1\] and groups 1; weight_shape must be"),
        ({1: [8, 8, 9, 9]}, r"a kernel that fits into its padded input"),
        ({2: [0, 1]}, r"stride is \[0, 1\]"),
        ({6: "int8"}, "dtype is int8; one of float32, float16, bfloat16, float64 expected"),
        ({7: "fused"}, "mode is fused; one of plain, prologue, .*, gradient sums expected"),
        ({7: "projection"}, r"proj_x_shape is \[\]; 4 integers"),
        ({7: "projection", 8: [1, 8, 9, 8]}, r"the projection gives 1 x 9x8 but the convolution gives 1 x 8x8"),
        ({13: [80, 108]}, r"device is \[80, 108\]; 4 integers"),
    ],
)
def test_bad_arguments_are_refused(change, sentence):
    arguments = [
        [1, 8, 8, 8],
        [8, 8, 1, 1],
        [1, 1],
        [0, 0],
        [1, 1],
        1,
        "float16",
        "plain",
        [],
        [1, 1],
        False,
        True,
        True,
    ]
    arguments.append(GPUS["a100"])
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(RuntimeError, match=sentence):
        ops.explain_cuda(*arguments)


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
