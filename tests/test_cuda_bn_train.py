"""BatchNorm's training kernels on the emulator: batch statistics, backward sums and the input gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_cases.batch_norm import WIDTHS, activation, batch_norm, by_dtype, by_format
from cuda_cases.convolution import assert_same_bits
from cuda_cases.training import case, check_backward, check_masked_grad, check_reduce, check_stats
from cuda_on_cpu import bn_add_act
from cuda_on_cpu.bn_train import MASKS, Gradient, backward, finish, reduce, stats, wide
from cuda_on_cpu.bn_train import shape as numbers_of
from cuda_on_cpu.tensors import DTYPES
from mutation import by_schedule
from support import zero_eps

from resnet_fused import reference

KINDS = [(d, v, c) for (d, v), c in itertools.product(WIDTHS, (True, False))]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda k: f"{str(k[0])[6:]}x{k[1]}-{'nhwc' if k[2] else 'nchw'}")


def shape_for(vector, channels_last):
    """Enough items for several passes per thread and a remainder; an odd area for the scalar kernels."""
    return (3, 5, 25, 21) if vector == 1 else (3, 72, 20, 20) if channels_last else (3, 2, 64, 64)


def test_compiled_variants_are_the_listed_ones(kernels):
    """The compiled variants are exactly those that the plan can select."""
    numbers = {(DTYPES.index(d), v, c) for d, v, c in KINDS}
    masked = {(*k, m) for k, m in itertools.product(numbers, range(3))}
    for found, wanted in (
        (kernels.compiled_bn_stats(), numbers),
        (kernels.compiled_bn_backward_reduce(), masked),
        (kernels.compiled_bn_backward(), masked),
    ):
        assert len(found) == len(set(found))
        assert set(found) == wanted
    selected, selected_masked = set(), set()
    shapes = [(2, 8, 4, 4), (2, 3, 4, 4), (2, 8, 3, 3), (1, 4, 2, 2)]
    for shape, (dtype, _, last), misalign, mask in itertools.product(shapes, KINDS, (0, 1), MASKS):
        g = case(shape, dtype, last, mask, misalign=misalign)
        p = g.parameters(last)
        selected.add(kernels.select_bn_stats(p))
        selected_masked.add(kernels.select_bn_gradient(p | dict(to=0)))
        assert kernels.select_bn_gradient(p | dict(to=2))[1] == 1, "a result that is not aligned"
    assert selected == numbers
    assert selected_masked == masked


@each_kind
@by_schedule
def test_statistics_of_every_variant(kernels, kind, schedule):
    dtype, vector, last = kind
    x = activation(shape_for(vector, last), dtype, last)
    report = check_stats(kernels, x, last, schedule=schedule)
    size = x.numel() * x.element_size()
    # Each element once, three samples per thread, and the partial sums.
    r = kernels.reduce_activations(numbers_of(x, last), vector, 1)
    samples = 3 * r["parts"] * r["groups"] * r["block"] * vector * dtype.itemsize
    assert 0 <= report["bytes_loaded"] - size - samples <= (3 * r["parts"] + 32) * x.shape[1] * wide(dtype).itemsize
    assert (report["wide_accesses"] >= size // 16) == (vector > 1)


@each_kind
@by_schedule
def test_reduce_keeps_masked_gradient(kernels, kind, schedule):
    dtype, vector, last = kind
    check_masked_grad(kernels, case(shape_for(vector, last), dtype, last, "out"), last, schedule=schedule)


@each_kind
@pytest.mark.parametrize("mask", MASKS)
@by_schedule
def test_gradients_of_every_variant(kernels, kind, mask, schedule):
    dtype, vector, last = kind
    g = case(shape_for(vector, last), dtype, last, mask)
    size, tensors = g.x.numel() * g.x.element_size(), 3 if mask == "out" else 2
    report = check_reduce(kernels, g, last, schedule=schedule)
    assert report["bytes_loaded"] >= tensors * size
    assert report["wide_accesses"] == (tensors * size // 16 if vector > 1 else 0)
    for frozen in (False, True):
        report = check_backward(kernels, g, last, frozen, schedule=schedule)
        assert report["bytes_stored"] == size
        assert report["wide_accesses"] == ((tensors + 1) * size // 16 if vector > 1 else 0)


SHAPES = [(1, 64, 1, 1), (1, 8, 1, 7), (7, 8, 1, 1), (1, 1, 1, 1), (5, 64, 7, 7), (2, 16, 30, 31), (2, 300, 3, 5)]


@by_format
@pytest.mark.parametrize("shape", [*SHAPES, (2, 2056, 2, 3)], ids=str)
@pytest.mark.parametrize("sm_count", [1, 132, 300])
def test_shapes_and_sm_counts(kernels, shape, channels_last, sm_count):
    x = activation(shape, torch.bfloat16, channels_last)
    check_stats(kernels, x, channels_last, sm_count=sm_count)
    g = case(shape, torch.bfloat16, channels_last, "recompute")
    check_reduce(kernels, g, channels_last, sm_count=sm_count)
    check_backward(kernels, g, channels_last, sm_count=sm_count)


@by_format
@by_dtype
@pytest.mark.parametrize("mean", [1e3, -1e5])
@pytest.mark.parametrize("sm_count", [1, 40])
def test_large_mean_does_not_cancel(kernels, channels_last, dtype, mean, sm_count):
    """Matches the float64 statistics of the rounded tensor to float32 precision."""
    if dtype == torch.float16 and abs(mean) > 6e4:
        pytest.skip("beyond float16")
    x = (activation((8, 40, 28, 28), torch.float32, channels_last) + mean).to(dtype)
    actual, report = stats(kernels, x, channels_last, sm_count=sm_count)
    assert report["error_count"] == 0, report["errors"]
    for a, t in zip(actual, reference.bn_stats(x.double()), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-22 if dtype != torch.float64 else 1e-12, atol=0)


@by_format
def test_drifting_mean_does_not_cancel(kernels, channels_last):
    """The mean differs from image to image, and the first row is an outlier."""
    x = activation((16, 24, 30, 30), torch.float32, channels_last)
    x += 1e3 * torch.arange(16).view(-1, 1, 1, 1)
    x[:, :, 0] = -1e4
    actual, report = stats(kernels, x, channels_last, sm_count=4)
    assert report["error_count"] == 0, report["errors"]
    for a, t in zip(actual, reference.bn_stats(x.double()), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-21, atol=0)


@by_format
@by_dtype
def test_constant_has_zero_variance(kernels, dtype, channels_last):
    x = activation((3, 20, 11, 13), dtype, channels_last).fill_(0.1)
    (mean, var), _ = stats(kernels, x, channels_last, sm_count=7)
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(mean, x[0, :, 0, 0].to(mean.dtype))


@by_format
@by_dtype
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("where", [(0, 0, 0), (1, 3, 4), (2, 6, 7)], ids=["first", "middle", "last"])
def test_nonfinite_statistics(kernels, dtype, channels_last, value, where):
    x = activation((3, 20, 7, 8), dtype, channels_last)
    n, h, w = where
    x[n, 3, h, w] = value
    x[0, 5, 2, 2], x[2, 5, 3, 3] = torch.inf, -torch.inf
    for sm_count in (1, 30):
        check_stats(kernels, x, channels_last, sm_count=sm_count)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("where", ["grad", "x", "out", "mean", "gamma"])
def test_nonfinite_gradients(kernels, dtype, mask, where):
    if where == "out" and mask != "out":
        return
    for nonfinite in (torch.nan, -torch.inf, torch.inf):
        g = case((2, 24, 9, 9), dtype, True, mask)
        if where in ("mean", "gamma"):
            getattr(g.bn, where)[3] = nonfinite
        else:
            getattr(g, where)[0, 3, 0, 0] = getattr(g, where)[1, 5, 6, 7] = nonfinite
        check_reduce(kernels, g)
        check_backward(kernels, g)
        check_backward(kernels, g, frozen=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_absent_and_strided_gamma(kernels, dtype, mask):
    zero = torch.zeros(24)
    for change in (dict(gamma=zero, beta=zero + 1), dict(gamma=None, beta=None), dict(stride=3)):
        g = case((3, 24, 9, 5), dtype, True, mask, **change)
        check_reduce(kernels, g)
        check_backward(kernels, g)


@zero_eps
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_zero_eps(kernels, dtype, mask):
    g = case((3, 24, 9, 5), dtype, True, mask, eps=0.0)
    check_reduce(kernels, g)
    check_backward(kernels, g)
    # var = 0: the results are infinite, or NaN where infinities meet
    zero = torch.zeros(24)
    g = case((3, 24, 9, 5), dtype, True, mask)
    g = g._replace(bn=g.bn._replace(mean=zero + 0.5, var=zero, beta=zero + 1, eps=0.0))
    g.x.fill_(0.5)
    check_reduce(kernels, g)
    check_backward(kernels, g)
    check_backward(kernels, g, frozen=True)


@by_dtype
def test_vectors_in_the_tensors_dtype(kernels, dtype):
    g = case((3, 24, 9, 5), dtype, True, bn_dtype=dtype)
    assert g.bn.var.dtype == dtype
    check_reduce(kernels, g)
    check_backward(kernels, g)


NEAR_ZERO = [0.0, *(2.0**-e for e in (24, 25, 26, 126, 127, 133, 134, 135, 149))]


@by_dtype
@by_format
def test_relu_mask_matches_the_forward_pass(kernels, dtype, channels_last):
    """Also where bn(x) is positive but stored as 0."""
    beta = torch.tensor([sign * v for v in NEAR_ZERO for sign in (1, -1)] * 2, dtype=torch.float64)
    bn = batch_norm(len(beta), wide(dtype))._replace(beta=beta.to(wide(dtype)))
    bn = bn._replace(mean=torch.zeros_like(bn.mean))
    for scale in (0, 1e-8):
        x = scale * activation((2, len(beta), 4, 4), dtype, channels_last)
        passed = bn_add_act.run(kernels, x, bn, channels_last=channels_last)[0] > 0
        ones = Gradient(torch.ones_like(x), x, bn, None, True)
        assert torch.equal(backward(kernels, ones, channels_last, None, 1.0)[0] != 0, passed)
        assert torch.equal(reduce(kernels, ones, channels_last)[0][0], passed.sum((0, 2, 3)).to(wide(dtype)))


@pytest.mark.parametrize("misaligned", ["grad", "x", "out"])
@by_format
def test_misaligned_tensors(kernels, channels_last, misaligned):
    """One misaligned tensor rules out vector accesses, even if the others are aligned."""
    g = case((2, 8, 4, 4), torch.bfloat16, channels_last, "out")
    moved = activation((2, 8, 4, 4), torch.bfloat16, channels_last, misalign=1).copy_(getattr(g, misaligned))
    g = g._replace(**{misaligned: moved})
    check_reduce(kernels, g, channels_last)
    check_backward(kernels, g, channels_last)
    if misaligned == "x":
        check_stats(kernels, g.x, channels_last)


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (2, 0, 4, 4)], ids=str)
def test_empty_tensors(kernels, shape):
    x = torch.empty(shape)
    check_stats(kernels, x)
    g = Gradient(x, x, batch_norm(shape[1], torch.float32, var=torch.zeros(shape[1]), eps=0.0), None, True)
    sums, report = reduce(kernels, g, True)
    assert report["errors"] == []
    assert all(torch.equal(s, torch.zeros(shape[1])) for s in sums)
    to, report = backward(kernels, g, True)
    assert report["errors"] == []
    assert report["bytes_loaded"] == 0
    assert to.shape == x.shape


@pytest.mark.parametrize("vector", [1, 4, 8])
@pytest.mark.parametrize("sm_count", [1, 132])
def test_parts_cover_each_item_once(kernels, vector, sm_count):
    for c, last, (n, area) in itertools.product(
        (vector, 3 * vector, 72 * vector, 513 * vector), (True, False), ((1, vector), (3, 49 * vector), (256, 3136))
    ):
        p = dict(dtype=0, channels_last=last, batch=n, channels=c, area=area)
        r = kernels.reduce_activations(p, vector, sm_count)
        assert r["lanes"] * r["slots"] == r["block"] <= 256
        assert (r["groups"] - 1) * r["lanes"] < r["all_lanes"] <= r["groups"] * r["lanes"]
        assert r["all_lanes"] * r["items"] * vector == n * c * area
        # No part is empty, and each is a whole number of rounds of its CTA.
        assert r["each"] % r["slots"] == 0
        assert (r["parts"] - 1) * r["each"] < r["items"] <= r["parts"] * r["each"]
        assert r["parts"] * r["groups"] <= max(4 * sm_count, r["groups"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 31, 257, 1024, 1025, 2600])
@by_schedule
def test_finish_merges_moments_and_sums(kernels, dtype, count, schedule):
    """Merges moments (64 pixels per part, fewer in the last) and sums. More than 1024 parts are merged in two steps."""
    g = torch.Generator().manual_seed(count)
    channels, each, last = 11, 64, 37
    x = torch.randn(count * each, channels, generator=g, dtype=torch.float64) * 3 + 1e3
    x = x[: (count - 1) * each + last]
    split, centers = x.split(each), x[::each].to(dtype).double()
    sums = [((p - c).sum(0), (p - c).square().sum(0)) for p, c in zip(split, centers, strict=True)]
    parts = torch.stack([torch.stack([c, *s]) for c, s in zip(centers, sums, strict=True)]).to(dtype)
    moments, report = finish(kernels, parts, each, len(x), schedule=schedule)
    assert report["error_count"] == 0, report["errors"]
    rtol = 2**-22 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(moments[0].double(), x.mean(0), rtol=rtol, atol=0)
    torch.testing.assert_close(moments[1].double(), x.var(0, unbiased=False), rtol=rtol, atol=0)

    var = torch.rand(channels, generator=g, dtype=torch.float64).to(dtype) + 0.5
    totals, report = finish(kernels, parts[:, 1:], each, len(x), var, 1e-3, schedule)
    assert report["error_count"] == 0, report["errors"]
    truth = parts[:, 1:].double().sum(0)
    truth[1] /= (var.double() + 1e-3).sqrt()
    torch.testing.assert_close(torch.stack(totals).double(), truth, rtol=rtol, atol=rtol * truth.abs().max().item())


def test_sums_are_deterministic(kernels):
    g = case((3, 72, 20, 20), torch.bfloat16, True)
    order = (("stay", 1), ("rotate", 1), ("random", 1), ("random", 2))
    assert_same_bits([[*stats(kernels, g.x, True, 3, *how)[0], *reduce(kernels, g, True, 3, *how)[0]] for how in order])
