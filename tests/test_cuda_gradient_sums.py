"""sm80/conv_fwd as an input gradient on the emulator: the stored gradient and its sums."""

from __future__ import annotations

import itertools

import pytest
import torch
from criterion import assert_close
from cuda_cases.batch_norm import batch_norm, in_float64, move_from_kink
from cuda_cases.convolution import (
    DTYPES,
    GEOMETRIES,
    TILES,
    assert_same_bits,
    by_dtype,
    by_nonfinite,
    convolution,
    eager,
    randn,
    small_convolution,
)
from cuda_on_cpu.conv_fwd import GRADIENT, Variant, run_gradient
from cuda_on_cpu.tensors import BatchNorm
from mutation import SCHEDULES, by_schedule, each_mutation, fails, mutations_of, order, value

from resnet_fused import reference

VARIANTS = [Variant(*v) for v in itertools.product(DTYPES, TILES, [GRADIENT])]
by_variant = pytest.mark.parametrize("v", VARIANTS, ids=str)


def pre_bn_of(conv, seed=40):
    """Returns a pre-BN output. No ReLU input is so close to 0 that rounding decides its sign."""
    return move_from_kink(randn(conv.output_shape(), conv.x.dtype, seed), conv.bn)


def check(kernels, tile, conv, pre_bn=None, grad_addend=None, **options):
    """Checks the gradient against eager's, and the sums against those of the stored gradient."""
    pre_bn = pre_bn_of(conv) if pre_bn is None else pre_bn
    out, sums, report = run_gradient(kernels, tile, conv, pre_bn, grad_addend, **options)
    assert report["errors"] == []
    plain = conv._replace(bn=BatchNorm())
    assert_close(out, eager(plain, grad_addend, relu=False), eager(plain, grad_addend, relu=False, dtype=torch.float64))
    args = (out, pre_bn, *conv.bn[:4], conv.bn.eps)
    want = reference.bn_act_backward_reduce
    for a, e, t in zip(sums, want(*args), want(*map(in_float64, args)), strict=True):
        assert_close(a, e, t)
    return report


@by_variant
@by_schedule
def test_every_variant(kernels, v, schedule):
    conv = small_convolution(v)
    n, k, p, q = conv.output_shape()
    size, parts = n * k * p * q * v.dtype.itemsize, -(-n * p * q // v.tile[0])
    for grad_addend in (None, randn(conv.output_shape(), v.dtype, 20)):
        report = check(kernels, v.tile, conv, grad_addend=grad_addend, schedule=schedule)
        assert report["bytes_stored"] == size + parts * 2 * k * 4
        vectors = report["bytes_loaded"] - report["bytes_copied"] - size * (1 if grad_addend is None else 2)
        assert 0 < vectors < 64 << 10  # each activation once; the rest is BatchNorm vectors


@by_dtype
@pytest.mark.parametrize("geometry", ["1x1", "3x3, dilation 2", "3x3, no padding", "one pixel", "deep"])
def test_geometries(kernels, dtype, geometry):
    check(kernels, (64, 64), convolution(dtype, *GEOMETRIES[geometry]))


@by_dtype
def test_batch_norm_kinds(kernels, dtype):
    """Absent vectors, strides, vectors in the activations' dtype, zero gamma, a mean of many standard deviations."""
    conv = convolution(dtype, 1, 16, 6, 6, 32, 3, 3, padding=1)
    wide = batch_norm(64, seed=5)
    kinds = [
        conv.bn._replace(gamma=None, beta=None),
        BatchNorm(*(v[::2] for v in wide[:4])),
        conv.bn._replace(gamma=torch.zeros(32)),
        conv.bn._replace(gamma=torch.zeros(32), beta=torch.full((32,), -1.0)),
        conv.bn._replace(mean=conv.bn.mean + 100, eps=0.5),
    ]
    if dtype != torch.float32:
        kinds.append(batch_norm(32, dtype, seed=6))
    for bn in kinds:
        check(kernels, (64, 64), conv._replace(bn=bn))


@by_dtype
@by_nonfinite
def test_sums_with_nonfinite_pre_bn_values(kernels, dtype, value):
    """A NaN in the pre-BN output lets the gradient through, as in torch."""
    conv = convolution(dtype, 1, 16, 6, 12, 24, 1, 1)
    for pixel in (0, 41):
        pre_bn = pre_bn_of(conv)
        pre_bn[0, :, pixel // 12, pixel % 12] = value
        out, sums, report = run_gradient(kernels, (64, 64), conv, pre_bn)
        assert report["errors"] == []
        args = (out, pre_bn, *conv.bn[:4], conv.bn.eps)
        for a, e in zip(sums, reference.bn_act_backward_reduce(*args), strict=True):
            torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_relu_is_closed_where_output_underflowed(kernels):
    """bn(pre_bn) = 2^-25 is positive in float32 but 0 in float16, so the forward ReLU was closed."""
    conv = convolution(torch.float16, 1, 16, 6, 6, 24, 1, 1)
    pre_bn = randn(conv.output_shape(), torch.float16, 3)
    one, zero = torch.ones(24), torch.zeros(24)
    for beta, is_open in ((2**-25, False), (2**-25 * 1.5, True)):
        bn = BatchNorm(gamma=zero, beta=one * beta, mean=zero, var=one)
        out, sums, _ = run_gradient(kernels, (64, 64), conv._replace(bn=bn), pre_bn)
        expected = out.double().sum((0, 2, 3)) if is_open else zero.double()
        torch.testing.assert_close(sums[0].double(), expected, rtol=1e-5, atol=1e-5)


def test_finish_merges_many_parts(kernels):
    """More parts than one CTA of bn_finish can add."""
    check(kernels, (64, 64), convolution(torch.bfloat16, 17, 8, 64, 62, 8, 1, 1))


def test_sums_are_deterministic(kernels):
    conv = convolution(torch.bfloat16, 2, 16, 12, 12, 72, 3, 3, padding=1)
    pre_bn = pre_bn_of(conv)
    order = [dict(schedule=s, seed=seed) for s in SCHEDULES for seed in (1, 2)]
    assert_same_bits([run_gradient(kernels, (64, 64), conv, pre_bn, **how)[1] for how in order])


EPILOGUE, PARTS = "cuda/kernels/sm80/conv_gradient_sums.cuh", "cuda/kernels/sm80/conv_parts.cuh"
MUTATIONS = {
    "no barrier before the exchange is read": order(PARTS, "    ptx::bar_sync_all();\n", ""),
    "a slab overwritten while it is read": order(
        EPILOGUE, "      ptx::bar_warp_sync(~0u);  // before the next", "    //"
    ),
    "a slab read before it is written": order(
        EPILOGUE,
        "slab.write(main.sum[i], place.lane);\n      ptx::bar_warp_sync(~0u);",
        "slab.write(main.sum[i], place.lane);",
    ),
    "rows past the end not masked": value(EPILOGUE, "inside[pass] = m < pixels && ", "inside[pass] = "),
    "channels past the end not masked": value(EPILOGUE, "m < pixels && place.n < k;", "m < pixels;"),
    "ReLU mask of another channel": value(EPILOGUE, "bn.apply(x, e) <=", "bn.apply(x, e ^ 1) <="),
    "ReLU mask of another row": value(EPILOGUE, "pre_bn[pass].get(e)", "pre_bn[Place::kPasses - 1 - pass].get(e)"),
    "ReLU mask not applied": value(EPILOGUE, "closed ? 0 :", "false ? 0 :"),
    "NaN closes the ReLU mask": value(
        EPILOGUE, "= bn.apply(x, e) <= kVanishes<Config::kDtype>;", "= !(bn.apply(x, e) > 0x1p-25f);"
    ),
    "ReLU open where the output underflowed": value(EPILOGUE, "<= kVanishes<Config::kDtype>", "<= 0"),
    "sums of unrounded values": value(EPILOGUE, "closed ? 0 : stored.get(e)", "closed ? 0 : v[e]"),
    "mean not subtracted": value(EPILOGUE, "x - mean[e]", "x"),
    "mean of another tile's channels": value(
        EPILOGUE, "p.main.bn.mean, place.n, 0.0f", "p.main.bn.mean, place.tile_n, 0.0f"
    ),
    "second gradient not added": value(EPILOGUE, "v[e] += grad_addend[pass].get(e);", "v[e] += 0;"),
    "lower warp's sum of g not added": value(EPILOGUE, "sum_g[e] += theirs[0][e];", ""),
    "lower warp's sum of products not added": value(
        EPILOGUE,
        "sum_g_x[e] += theirs[1][e];",
        "",
    ),
    "the two sums swapped": value(
        EPILOGUE, "auto &sum_g = own[0], &sum_g_x = own[1];", "auto &sum_g = own[1], &sum_g_x = own[0];"
    ),
    "two parts share a workspace slot": order(PARTS, "(m0 / Config::kM)", "(m0 / Config::kM / 2)"),
    "warp reduction stops one step early": value(PARTS, "by = kLanesARow; by < 32;", "by = kLanesARow; by < 16;"),
}


def exercise(kernels, schedule):
    """Every mutation must make this fail."""
    conv = convolution(torch.float16, 3, 24, 6, 7, 72, 3, 3, padding=1)
    check(kernels, (64, 64), conv, schedule=schedule)
    check(kernels, (64, 64), conv, grad_addend=randn(conv.output_shape(), torch.float16, 20), schedule=schedule)
    # Nearly identity weights, and gradients that float16 rounds noticeably: the sums are of the stored values.
    conv = convolution(torch.float16, 1, 64, 8, 8, 64, 1, 1)
    weight = torch.full((64, 64, 1, 1), 2.0**-12).half().contiguous(memory_format=torch.channels_last)
    conv = conv._replace(x=conv.x.abs() + 4, weight=weight + torch.eye(64)[:, :, None, None].half())
    check(kernels, (64, 64), conv, schedule=schedule)
    one, zero = torch.ones(24), torch.zeros(24)
    vanishes = BatchNorm(gamma=zero, beta=one * 2**-25, mean=zero, var=one)
    conv = convolution(torch.float16, 1, 16, 6, 6, 24, 1, 1)
    pre_bn = randn(conv.output_shape(), torch.float16, 3)
    _, sums, report = run_gradient(kernels, (64, 64), conv._replace(bn=vanishes), pre_bn, schedule=schedule)
    assert report["errors"] == []
    assert not sums[0].any()
    pre_bn = pre_bn_of(conv)
    pre_bn[0, :, 3, 2] = torch.nan
    out, sums, report = run_gradient(kernels, (64, 64), conv, pre_bn, schedule=schedule)
    args = (out, pre_bn, *conv.bn[:4], conv.bn.eps)
    for a, e in zip(sums, reference.bn_act_backward_reduce(*args), strict=True):
        torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-5, atol=1e-5)


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise(kernels, schedule)


@each_mutation(mutations_of(MUTATIONS, fails(exercise), ("conv_gradient_f16",), "v.tile_m == 64"))
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
