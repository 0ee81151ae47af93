"""bn/bn_add_act on the emulator, which checks every access."""

from __future__ import annotations

import itertools

import pytest
import torch
from criterion import assert_close
from cuda_cases.batch_norm import REDUCED, WIDTHS, activation, batch_norm, by_dtype, by_format, in_float64
from cuda_on_cpu.bn_add_act import Variant, parameters, run
from cuda_on_cpu.tensors import BatchNorm
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value
from support import zero_eps

from resnet_fused import reference


def eager(x, bn, shortcut=None, shortcut_bn=None, relu=True):
    def apply(y, b, residual, act):
        if y.dtype == torch.float64:  # eager accepts no float32 BatchNorm here
            b = in_float64(b)
        if b.bias is not None:
            y = y + b.bias.to(y.dtype)[:, None, None]
        return reference.bn_add_act(y, *b[:4], b.eps, residual, act)

    if shortcut_bn is not None:
        shortcut = apply(shortcut, shortcut_bn, None, False)
    return apply(x, bn, shortcut, relu)


def check(kernels, x, bn, shortcut=None, shortcut_bn=None, relu=True, channels_last=True, **options):
    want = eager(x, bn, shortcut, shortcut_bn, relu)
    truth = eager(*map(in_float64, (x, bn, shortcut, shortcut_bn)), relu)
    out, report = run(kernels, x, bn, shortcut, shortcut_bn, relu=relu, channels_last=channels_last, **options)
    assert report["error_count"] == 0, report["errors"]
    assert_close(out, want, truth)
    return report


# test_compiled_variants_are_the_listed_ones compares them with the library.
VARIANTS = [
    Variant(d, v, c, s) for (d, v), c, s in itertools.product(WIDTHS, (True, False), ("none", "add", "projected"))
]
each_variant = pytest.mark.parametrize(
    "v", VARIANTS, ids=lambda v: f"{str(v.dtype)[6:]}x{v.vector}-{'nhwc' if v.channels_last else 'nchw'}-{v.shortcut}"
)


def arguments(v: Variant, shape, param_dtype, misalign=0, **bn):
    x = activation(shape, v.dtype, v.channels_last, 0, misalign)
    shortcut = None if v.shortcut == "none" else activation(shape, v.dtype, v.channels_last, 2, misalign)
    projection = batch_norm(shape[1], param_dtype, 3, **bn) if v.shortcut == "projected" else None
    return x, batch_norm(shape[1], param_dtype, 1, **bn), shortcut, projection


def selected(kernels, v, x, bn, shortcut, shortcut_bn):
    p = parameters(x, x, bn, shortcut, shortcut_bn, channels_last=v.channels_last)
    return Variant.of(kernels.select_bn_add_act(p))


def test_compiled_variants_are_the_listed_ones(kernels):
    """The compiled variants are exactly those that the plan can select."""
    compiled = [Variant.of(v) for v in kernels.compiled_bn_add_act()]
    assert len(compiled) == len(set(compiled))
    assert set(compiled) == set(VARIANTS)
    found = set()
    shapes = [(1, 1, 1, 1), (2, 8, 4, 4), (2, 3, 4, 4), (2, 8, 3, 3), (1, 4, 2, 2), (0, 8, 4, 4)]
    for shape, v, misalign in itertools.product(shapes, VARIANTS, (0, 1)):
        found.add(selected(kernels, v, *arguments(v, shape, torch.float32, misalign)))
    assert found == set(compiled)


@each_variant
@pytest.mark.parametrize("param_dtype", ["float32", "same"])
def test_every_variant(kernels, v, param_dtype):
    dtype = v.dtype if param_dtype == "same" else torch.float32
    # More items than one pass of 4 accesses per thread, and a remainder; an odd area for the scalar kernels.
    shape = (3, 5, 25, 21) if v.vector == 1 else (3, 64, 20, 20) if v.channels_last else (3, 2, 64, 64)
    for relu in (True, False):
        args = arguments(v, shape, dtype)
        assert selected(kernels, v, *args) == v
        report = check(kernels, *args, relu=relu, channels_last=v.channels_last)
        # Each element is read once and written once; other loads are BatchNorm vectors.
        size = args[0].numel() * args[0].element_size()
        assert report["bytes_stored"] == size
        assert report["bytes_loaded"] >= (2 if args[2] is not None else 1) * size
        assert report["wide_accesses"] == ((3 if args[2] is not None else 2) * size // 16 if v.vector > 1 else 0)


@each_variant
@by_schedule
def test_in_place(kernels, v, schedule):
    shape = (2, 16, 8, 8) if v.vector > 1 else (2, 5, 7, 3)
    args = arguments(v, shape, torch.float32)
    check(kernels, *args, channels_last=v.channels_last, in_place=True, schedule=schedule)


@by_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("c", [1, 3, 8, 64, 72, 300, 2056])
def test_channel_counts(kernels, c, dtype, channels_last):
    """2056 channels in bf16 are 257 accesses, one more than a CTA has threads."""
    x = activation((2, c, 4, 6), dtype, channels_last)
    check(kernels, x, batch_norm(c, torch.float32), x.clone(), channels_last=channels_last)


@by_format
@pytest.mark.parametrize(
    "shape", [(1, 64, 1, 1), (1, 8, 1, 7), (7, 8, 1, 1), (1, 1, 1, 1), (5, 64, 7, 7), (2, 16, 30, 31)], ids=str
)
@pytest.mark.parametrize("sm_count", [1, 132])
def test_shapes_and_sm_counts(kernels, shape, channels_last, sm_count):
    x = activation(shape, torch.bfloat16, channels_last)
    check(kernels, x, batch_norm(shape[1], torch.float32), channels_last=channels_last, sm_count=sm_count)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 0, 4, 4)], ids=str)
def test_empty_tensors(kernels, shape):
    x = torch.empty(shape)
    out, report = run(kernels, x, batch_norm(shape[1], torch.float32))
    assert report["errors"] == []
    assert report["bytes_loaded"] == 0
    assert out.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, *REDUCED], ids=str)
@by_format
def test_misaligned_tensors(kernels, dtype, channels_last):
    """A misaligned x or shortcut rules out vector accesses, even if the other is aligned."""
    bn = batch_norm(8, torch.float32)
    for mx, ms in [(1, 0), (0, 1), (1, 1), (2, 4)]:
        x = activation((2, 8, 4, 4), dtype, channels_last, misalign=mx)
        check(kernels, x, bn, activation((2, 8, 4, 4), dtype, channels_last, 5, ms), channels_last=channels_last)


@pytest.mark.parametrize(
    "absent", [("gamma",), ("beta",), ("gamma", "beta"), ("gamma", "beta", "mean", "var")], ids="+".join
)
@by_dtype
def test_absent_vectors(kernels, dtype, absent):
    x = activation((2, 8, 4, 4), dtype, True)
    bn = batch_norm(8, torch.float32 if dtype in REDUCED else dtype, **dict.fromkeys(absent))
    check(kernels, x, bn, x.clone())
    check(kernels, x, bn._replace(bias=torch.linspace(-1, 1, 8).to(dtype)), x.clone())


@by_dtype
def test_bias_strides_and_mixed_dtypes(kernels, dtype):
    """Each vector has its own dtype and stride, such as a bias in x's dtype with a float32 BatchNorm."""
    param_dtype = torch.float32 if dtype in REDUCED else dtype
    bn = batch_norm(24, param_dtype, stride=3, bias=torch.linspace(-2, 2, 24).to(dtype))
    assert bn.mean.stride(0) == 3
    shortcut_bn = batch_norm(24, dtype, seed=7, stride=2)
    x, p = (activation((2, 24, 5, 5), dtype, True, seed) for seed in (0, 1))
    check(kernels, x, bn, p, shortcut_bn)


@by_format
@by_dtype
def test_zero_gamma_and_zero_variance(kernels, dtype, channels_last):
    x = activation((2, 8, 4, 4), dtype, channels_last)
    param_dtype = torch.float32 if dtype in REDUCED else dtype
    zero = torch.zeros(8, dtype=param_dtype)
    for relu in (True, False):
        check(kernels, x, batch_norm(8, param_dtype, gamma=zero), x.clone(), relu=relu, channels_last=channels_last)
        check(kernels, x, batch_norm(8, param_dtype, var=zero), relu=relu, channels_last=channels_last)


@zero_eps
@by_format
@by_dtype
def test_zero_variance_and_zero_eps(kernels, dtype, channels_last):
    """The results are Inf and NaN where eager's are."""
    x = activation((2, 8, 4, 4), dtype, channels_last)
    param_dtype = torch.float32 if dtype in REDUCED else dtype
    bn = batch_norm(8, param_dtype, var=torch.zeros(8, dtype=param_dtype), eps=0.0)
    for relu in (True, False):
        check(kernels, x, bn, relu=relu, channels_last=channels_last)


@by_format
@by_dtype
@pytest.mark.parametrize("shortcut", ["none", "add", "projected"])
def test_nonfinite_inputs(kernels, dtype, channels_last, shortcut):
    v = Variant(dtype, 0, channels_last, shortcut)
    for relu in (True, False):
        args = arguments(v, (2, 8, 4, 4), torch.float32 if dtype in REDUCED else dtype)
        for t in (args[0], args[2]):
            if t is not None:
                t[0, 1, 2, 3], t[1, 7, 0, 0], t[1, 0, 3, 3] = torch.nan, torch.inf, -torch.inf
        if args[2] is not None:
            args[2][0, 4] = torch.inf
            args[0][0, 4, 1] = -torch.inf
        check(kernels, *args, relu=relu, channels_last=channels_last)


@pytest.mark.parametrize("dtype", REDUCED, ids=str)
def test_result_is_rounded_once(kernels, dtype):
    """Without BatchNorm the result is the exact sum, rounded only by the store."""
    x, y = (activation((2, 8, 16, 16), dtype, True, seed) for seed in (0, 1))
    out, _ = run(kernels, x, BatchNorm(), y, relu=False)
    torch.testing.assert_close(out, (x.float() + y.float()).to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("sm_count", [1, 132])
def test_grid_stride_loop_covers_each_item_once(kernels, vector, sm_count):
    for c, channels_last, (n, area) in itertools.product(
        (vector, 3 * vector, 72 * vector, 513 * vector), (True, False), ((1, vector), (3, 49 * vector), (256, 3136))
    ):
        p = dict(x=0, out=0, shortcut=0, projected=False, relu=True, dtype=0, channels_last=channels_last)
        w = kernels.bn_add_act_loop(p | dict(batch=n, channels=c, area=area), vector, sm_count)
        assert w["lanes"] * w["slots"] == w["block"] <= 256
        assert w["groups"] * w["splits"] == w["grid"]
        assert (w["groups"] - 1) * w["lanes"] < w["all_lanes"] <= w["groups"] * w["lanes"]
        assert w["all_lanes"] * w["items"] * vector == n * c * area
        # No CTA is idle, and there are no more CTAs than the device holds, unless each lane group needs its own.
        assert (w["splits"] - 1) * w["slots"] < w["items"]
        assert w["grid"] <= max(8 * sm_count, w["groups"])


KERNEL, CONFIG, HOST, AFFINE, ELEMENT = (
    "cuda/kernels/bn/bn_add_act.cuh",
    "cuda/kernels/bn/grid_stride.cuh",
    "cuda/kernels/bn/bn_add_act.h",
    "cuda/device/tile/scale_shift.cuh",
    "cuda/device/tile/element.cuh",
)
MUTATIONS = {
    "reads past the last item": value(KERNEL, "i < loop.items; i += step", "i <= loop.items; i += step"),
    "stops before the last item": value(KERNEL, "i < loop.items; i += step", "i + 1 < loop.items; i += step"),
    "no bounds check on lanes": value(KERNEL, "if (lane >= loop.all_lanes) return;", ""),
    "batches overlap": value(KERNEL, "i += Config::kBatch * step", "i += (Config::kBatch - 1) * step"),
    "neighbouring channels swapped": value(CONFIG, "kChannels == 1 ? 0 : e;", "kChannels == 1 ? 0 : e ^ 1;"),
    "BatchNorm vectors of lane 0": value(
        KERNEL, "const Affine bn(p.bn, lane * Config::kChannels);", "const Affine bn(p.bn, 0);"
    ),
    "residual not added": value(
        KERNEL,
        "Config::kShortcut == Shortcut::kAdd) v[e] +=",
        "Config::kShortcut == Shortcut::kAdd) (void)",
    ),
    "projection uses the main BatchNorm": value(KERNEL, "Affine(p.shortcut_bn,", "Affine(p.bn,"),
    "NaN lost in ReLU": value(ELEMENT, "return ptx::max_nan(v, 0.0f);", "return v > 0 ? v : 0;"),
    "alignment of the shortcut not checked": value(
        HOST,
        " | reinterpret_cast<uintptr_t>(p.shortcut)",
        "",
    ),
    "eps not added": value(AFFINE, "var[i] + static_cast<Acc>(bn.eps)", "var[i]"),
    "halves of a word swapped": value(
        ELEMENT, "i % 2 ? words[i / 2] & 0xffff0000u", "i % 2 == 0 ? words[i / 2] & 0xffff0000u"
    ),
    "read-only load of a tensor written in place": order(
        KERNEL, "template load<Access::kPlain>", "template load<Access::kReadOnly>"
    ),
}


def exercise(kernels, schedule):
    """Every mutation must make this fail."""
    for shape, shortcut in itertools.product([(3, 16, 36, 36), (2, 2056, 2, 4)], ["none", "add", "projected"]):
        args = arguments(Variant(torch.bfloat16, 8, True, shortcut), shape, torch.float32)
        args[0][0, 0, 0, 0] = torch.nan
        check(kernels, *args, schedule=schedule)
        check(kernels, *args, in_place=True, schedule=schedule)
    x = activation((2, 8, 4, 4), torch.bfloat16, True)
    misaligned = activation((2, 8, 4, 4), torch.bfloat16, True, 5, misalign=1)
    check(kernels, x, batch_norm(8, torch.float32, var=torch.full((8,), 1e-5)), schedule=schedule)
    check(kernels, x, batch_norm(8, torch.float32), misaligned, schedule=schedule)


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise(kernels, schedule)


@each_mutation(
    mutations_of(
        MUTATIONS,
        fails(exercise),
        ("bn_add_act",),
        "v.dtype == Dtype::kBFloat16 && v.layout == Layout::kNHWC && (v.vector == 8 || v.shortcut == Shortcut::kAdd)",
    )
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
