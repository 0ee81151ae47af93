"""The plan's choices, reasons and byte counts for several GPUs. Needs no GPU."""

import itertools
import re

import pytest
from plans import DTYPES, GRADIENT, MODES, STATISTICS, compiled_tiles, plan

from resnet_fused import ops
from resnet_fused.cli._gpus import GPUS


@pytest.fixture(autouse=True)
def _planned(monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CUDA_ENGINE", raising=False)


def test_selected_kernels_are_the_compiled_ones():
    """Each problem gets a compiled kernel that fits the GPU, and every compiled kernel is reachable."""
    modes = [*MODES, *STATISTICS, GRADIENT]
    compiled = {(dtype, (t.m, t.n), mode) for dtype in DTYPES for t in compiled_tiles() for mode in modes}
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
    assert selected <= compiled
    assert compiled <= selected, "compiled, but selected by no problem here"


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
    assert {r.engine for r in p.rejected} == {"sm80", "sm90", "sm90:rows"}
    assert all(r.tile is None and r.why == "unsupported" and reason in r.reason for r in p.rejected)
    assert p.microseconds is None, "there is no choice to predict anything for"


def test_tiles_past_shared_memory_are_not_picked():
    """A prologue needs 8 bytes per channel. With 512 channels, the largest tile exceeds an A10's shared memory."""
    assert not [r for r in plan(gpu="a10", c=128, mode="prologue").rejected if r.why == "shared memory"]
    p = plan(gpu="a10", c=512, mode="prologue")
    (large,) = [r for r in p.rejected if r.why == "shared memory"]
    assert (large.engine, large.tile) == ("sm80", (128, 128))
    assert large.reason == "a block needs 103424 bytes of shared memory; the limit is 101376"
    nothing = plan(gpu=[80, 108, 49152, 49152])
    assert nothing.engine == "torch"
    assert len(nothing.why_not("sm80")) == len(compiled_tiles())
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
        pre_bn = pixels * k * (1 + mode.startswith("projection"))
        prepared = {"prologue": touched * c, "projection prologue": pixels * proj_c}.get(mode, 0)
        assert p.bytes == (elements + 2 * pre_bn + 2 * prepared) * size


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
    assert "convolution, then bn_stats, " in plan(mode="statistics", **shape).text
    assert "convolution, then bn_add_act, " in plan(**shape).text


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
    assert "convolution, then bn_backward_reduce, " in plan(mode=GRADIENT, **shape).text


def test_prediction_grows_with_the_work():
    times = [plan(n=n, hw=28, c=128, k=128).microseconds for n in (1, 4, 16, 64, 256)]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] > 10 * times[0]


def test_rejected_candidates_have_reasons_with_numbers():
    p = plan(n=1, hw=7, c=512, k=512, residual=True)
    assert p.engine == "sm80"
    lost = [(r.engine, r.tile) for r in p.rejected if r.why == "slower"]
    assert lost == [("sm80", (128, 128)), ("sm80", (128, 64)), ("torch", None)]
    assert all(r.microseconds >= p.microseconds for r in p.rejected if r.why == "slower")
    for why in p.why_not("sm80"):
        assert re.fullmatch(r"\d+ blocks with \d+ splits leave \d+ of 108 SMs idle, [\d.]+ us predicted", why), why
    (why,) = p.why_not("torch")
    assert re.fullmatch(r"[\d.]+ us predicted, [\d.]+ of them in an extra pass over activations", why)
    assert re.match(r"\d+ blocks, \d+ on the busiest of 108 SMs", plan(n=64).why_not("sm80")[0])
    assert p.text.count("\n  not ") == len(p.rejected), "the text has a line a candidate"


def test_torch_is_picked_where_wgmma_is_faster():
    """A 3x3 convolution of many channels is compute-bound at a large batch, and mma.sync is slower than wgmma."""
    p = plan(n=256, hw=14, c=256, k=256, gpu="b200", residual=True)
    assert p.engine == "torch"
    predicted = [r.microseconds for r in p.rejected if r.why == "slower"]
    assert len(predicted) == len(compiled_tiles())
    assert min(predicted) > p.microseconds
    assert plan(n=256, hw=56, c=64, k=256, r=1, gpu="b200", residual=True).engine == "sm80", "bound by memory"


def test_environment_forces_an_engine_or_tile(monkeypatch):
    compute_bound = dict(n=256, hw=14, c=256, k=256, gpu="h200")
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
    p = plan(**compute_bound)
    assert p.engine == "sm80"
    assert p.why_not("torch") == p.why_not("sm90") == ["RESNET_FUSED_CUDA_ENGINE is sm80"]
    assert plan(groups=32).engine == "torch", "where the kernel can run"
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "torch")
    p = plan(n=1)
    assert p.engine == "torch"
    assert p.why_not("sm80") == ["RESNET_FUSED_CUDA_ENGINE is torch"]
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "")
    assert plan(n=1).engine == "sm80"
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80:64x64")
    p = plan(**compute_bound)
    assert p.tile == (64, 64)
    assert "RESNET_FUSED_CUDA_ENGINE names another tile" in p.why_not("sm80")
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80:128x64:3")
    p = plan(**compute_bound)
    assert (p.tile, p.splits) == ((128, 64), 3)
    assert plan(n=1, c=8, r=1).splits == 1, "no more parts than steps"
    for wrong in (
        *("sm80:64x32", "sm80:64x64:", "sm80:64x64:4x", "sm80:64x64:0", "sm80:64x64:-2", "sm80:", "sm800", "sm70"),
        *("sm90:rows:4x56:2", "sm90:block:64x64", "sm90:rows:", "sm90:block:", "torch:64x64", "two launches", "all:"),
    ):
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", wrong)
        with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_ENGINE is {wrong}; one of"):
            plan()
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "cutlass")
    every = "one of all, torch, sm80, sm90, sm90:rows, sm90:block, sm80:128x128, "
    with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CUDA_ENGINE is cutlass; {every}"):
        plan()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({0: [1, 8, 8]}, r"x_shape is \[1, 8, 8\]; 4 integers from 0 to 2147483647 expected"),
        ({1: [8, 8, 0, 1]}, r"weight_shape is \[8, 8, 0, 1\]; 4 integers from 1"),
        ({1: [8, 7, 1, 1]}, r"weight_shape \[8, 7, 1, 1\] and groups 1; weight_shape must be"),
        ({1: [8, 8, 9, 9]}, r"a kernel that fits into its padded input"),
        ({2: [0, 1]}, r"stride is \[0, 1\]"),
        ({6: "int8"}, "dtype is int8; float32, float16, bfloat16 or float64 expected"),
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
