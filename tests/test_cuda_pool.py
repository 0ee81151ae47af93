"""Max-pooling kernels on the emulator, compared with a float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch
from cuda_cases.batch_norm import WIDTHS, activation, batch_norm, by_dtype
from cuda_cases.pool import NO_ARGMAX, POOLS, STEM, check_backward, check_forward, gradient, whole_numbers
from cuda_on_cpu import pool as emulated
from cuda_on_cpu.bn_train import wide
from cuda_on_cpu.tensors import DTYPES, BatchNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import by_schedule
from support import TINY_EPS

FORWARD = [(d, v, s, argmax) for d, v in WIDTHS for s in ((0, 3) if v > 1 else (0,)) for argmax in (True, False)]
BACKWARD = [(d, v, s, True) for d, v in WIDTHS for s in ((0, 2) if v > 1 else (0,))]

by_width = pytest.mark.parametrize(("dtype", "vector"), WIDTHS, ids=lambda v: str(v).replace("torch.", ""))
by_pool = pytest.mark.parametrize("pool", POOLS, ids=str)


def channels_of(vector):
    return 3 * vector if vector > 1 else 5


def test_compiled_variants_are_the_listed_ones(kernels):
    """The compiled variants are exactly those that the plan can select."""
    forward, backward = set(), set()
    for pool, dtype, c, misalign in itertools.product(POOLS, DTYPES, (8, 5), ("", "x", "out", "argmax")):
        x = activation((1, c, 6, 6), dtype, True, 0, int(misalign == "x"))
        size = emulated.pooled(x, pool)
        out, argmax = (
            emulated.empty(size, dtype, int(misalign == "out")),
            emulated.empty(size, torch.uint8, int(misalign == "argmax")),
        )
        one, less = (
            kernels.select_bn_pool(emulated.forward_parameters(x, BatchNorm(), pool, out, t)) for t in (argmax, None)
        )
        other = kernels.select_pool_backward(emulated.backward_parameters(out, argmax, x, pool))
        assert not misalign or one[1] == other[1] == 1
        forward |= {one, less}
        backward.add(other)
    for selected, compiled, wanted in (
        (forward, kernels.compiled_bn_pool(), FORWARD),
        (backward, kernels.compiled_pool_backward(), BACKWARD),
    ):
        assert len(compiled) == len(set(compiled))
        assert set(compiled) == selected == {(DTYPES.index(d), *rest) for d, *rest in wanted}


@by_width
@by_pool
@by_schedule
def test_every_variant(kernels, dtype, vector, pool, schedule):
    size = (2, channels_of(vector), 9, 8)
    x = activation(size, dtype, True)
    report = check_forward(kernels, x, batch_norm(size[1], wide(dtype)), pool, schedule=schedule)
    outputs = torch.Size(emulated.pooled(x, pool)).numel()
    assert report["bytes_stored"] == outputs * (dtype.itemsize + 1)
    assert (report["wide_accesses"] > 0) == (vector > 1)
    x, bn = whole_numbers(size, dtype)
    x[0, 1, 4, 4] = x[0, 1, 5, 4] = x[1, 0, 0, 0] = x[1, 2, 8, 7] = torch.nan
    check_forward(kernels, x, bn, pool, exact=True, schedule=schedule)
    grad, argmax = gradient(size, pool, dtype)
    report = check_backward(kernels, grad, argmax, size, pool, schedule=schedule)
    assert report["bytes_stored"] == x.numel() * dtype.itemsize


def test_stem_pooling_memory_traffic(kernels):
    """Nine loads per value forward and four backward. Where L1 serves the repeats, memory is read once."""
    x = activation((1, 16, 12, 12), torch.bfloat16, True)
    report = check_forward(kernels, x, batch_norm(16, torch.float32), STEM)
    outputs, threads = 36 * 2, 36 * 2
    assert report["wide_accesses"] == outputs * (9 + 1)
    assert report["bytes_loaded"] == outputs * 9 * 16 + threads * 4 * 8 * 4
    less = emulated.forward(kernels, x, batch_norm(16, torch.float32), STEM, with_argmax=False)[2]
    assert less["wide_accesses"] == report["wide_accesses"]
    assert less["bytes_loaded"] == report["bytes_loaded"]
    grad, argmax = gradient((1, 16, 12, 12), STEM, torch.bfloat16)
    report = check_backward(kernels, grad, argmax, (1, 16, 12, 12), STEM)
    assert report["wide_accesses"] == 144 * 2 * (4 + 1)
    assert report["bytes_loaded"] == 144 * 2 * 4 * (16 + 8)


SIZES = [
    (1, 8, 1, 1),
    (1, 8, 3, 1),
    (3, 8, 1, 5),
    (5, 64, 7, 7),
    (1, 1, 3, 3),
    (2, 300, 3, 5),
    (2, 2056, 2, 3),
    (1, 16, 41, 37),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("sm_count", [1, 3, 132])
def test_sizes(kernels, size, sm_count):
    bn = batch_norm(size[1], torch.float32)
    check_forward(kernels, activation(size, torch.bfloat16, True), bn, STEM, sm_count=sm_count)
    x, same = whole_numbers(size, torch.bfloat16)
    check_forward(kernels, x, same, STEM, exact=True, sm_count=sm_count)
    check_backward(kernels, *gradient(size, STEM, torch.bfloat16), size, STEM, sm_count=sm_count)


@settings(max_examples=60)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)) | st.just((3, 3)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    data=st.data(),
    h=st.integers(5, 12),
    w=st.integers(5, 12),
    channels=st.sampled_from([1, 8, 24]),
    dtype=st.sampled_from(DTYPES),
)
def test_random_windows(kernels, kernel, stride, data, h, w, channels, dtype):
    pool = (kernel, stride, tuple(data.draw(st.integers(0, k // 2)) for k in kernel))
    x, bn = whole_numbers((2, channels, h, w), dtype)
    check_forward(kernels, x, bn, pool, exact=True)
    check_backward(kernels, *gradient((2, channels, h, w), pool, dtype), (2, channels, h, w), pool)


@pytest.mark.parametrize("vector", [1, 8])
@pytest.mark.parametrize("kernel", [(3, 3), (3, 2), (15, 17)], ids=str)
def test_ties_nan_and_infinity(kernels, vector, kernel):
    """The argmax is the last NaN, else the first maximum, or none for a closed ReLU; also in windows over padding."""
    nan, inf = torch.nan, torch.inf
    values = torch.tensor([1, 3, 3, -1, -2, nan, inf, -inf, 0, -0.0])
    for seed in range(3):
        drawn = torch.randint(
            len(values), (3, channels_of(vector), 16, 19), generator=torch.Generator().manual_seed(seed)
        )
        x = emulated.empty(tuple(drawn.shape), torch.float16).copy_(values[drawn])
        c = x.shape[1]
        bn = BatchNorm(None, None, torch.zeros(c), torch.ones(c), None, TINY_EPS)
        check_forward(kernels, x, bn, (kernel, (2, 2), (1, 1)), exact=True)


@pytest.mark.parametrize(
    ("dtype", "tiny"), [(torch.float16, 2.0**-25), (torch.bfloat16, 2.0**-134), (torch.float32, 0.0)], ids=str
)
@pytest.mark.parametrize("kernel", [(3, 3), (2, 2)], ids=str)
def test_relu_is_closed_where_output_underflowed(kernels, dtype, tiny, kernel):
    more = torch.finfo(dtype).smallest_normal if tiny else 2.0**-149
    beta = torch.tensor([tiny, more] * 4)
    bn = BatchNorm(torch.zeros(8), beta, torch.zeros(8), torch.ones(8), None, 0.0)
    x = activation((1, 8, 4, 4), dtype, True)
    out, argmax, _ = emulated.forward(kernels, x, bn, (kernel, (1, 1), (1, 1)))
    assert (out[:, ::2] == 0).all()
    assert (argmax[:, ::2] == NO_ARGMAX).all()
    assert (out[:, 1::2] > 0).all()
    assert (argmax[:, 1::2] < NO_ARGMAX).all()


@pytest.mark.parametrize("misalign", ["x", "out", "argmax", "grad", "to"])
def test_misaligned_tensors(kernels, misalign):
    """One misaligned tensor rules out vector accesses, even if the others are aligned."""
    size = (2, 8, 7, 6)
    x = activation(size, torch.bfloat16, True, 0, int(misalign == "x"))
    check_forward(kernels, x, batch_norm(8, torch.float32), STEM, misalign=misalign)
    check_backward(kernels, *gradient(size, STEM, torch.bfloat16, 0, misalign), size, STEM, misalign=misalign)


@by_dtype
def test_vectors_in_the_tensors_dtype(kernels, dtype):
    """Vectors with a stride of 3, and a BatchNorm without gamma and beta."""
    x = activation((2, 24, 7, 6), dtype, True)
    check_forward(kernels, x, batch_norm(24, dtype, stride=3), STEM)
    check_forward(kernels, x, batch_norm(24, wide(dtype), gamma=None, beta=None), STEM)


@by_dtype
@pytest.mark.parametrize("pool", [STEM, ((2, 2), (2, 2), (0, 0))], ids=str)
def test_convolution_bias(kernels, dtype, pool):
    """Pools a pre-BN output with a bias, with or without BatchNorm, and an output that is already normalised."""
    x, bias = activation((2, 24, 7, 6), dtype, True), torch.linspace(-1, 1, 24, dtype=wide(dtype))
    for bn in (batch_norm(24, wide(dtype), bias=bias), BatchNorm(bias=bias), BatchNorm()):
        check_forward(kernels, x, bn, pool)


def test_empty_batch_launches_nothing(kernels):
    x = torch.empty(0, 8, 6, 6)
    for argmax in (True, False):
        report = emulated.forward(kernels, x, batch_norm(8, torch.float32), STEM, with_argmax=argmax)[2]
        assert report["launched"] == []
    grad, argmax = torch.empty(0, 8, 3, 3), torch.empty(0, 8, 3, 3, dtype=torch.uint8)
    assert emulated.backward(kernels, grad, argmax, (0, 8, 6, 6), STEM)[1]["launched"] == []


def test_windows_in_the_padding(kernels):
    """An input without rows, padded to two, has an output but no argmax."""
    x = emulated.empty((1, 8, 0, 4), torch.float32)
    out, argmax, report = emulated.forward(kernels, x, batch_norm(8, torch.float32), ((2, 2), (2, 2), (1, 0)))
    assert report["errors"] == []
    assert out.shape == (1, 8, 1, 2)
    assert (out == 0).all()
    assert (argmax == NO_ARGMAX).all()


@given(n=st.integers(0, 2**31 - 1), by=st.integers(1, 2**31 - 1))
@settings(max_examples=300)
def test_fast_divmod_is_exact(kernels, n, by):
    for each in (n, n // by * by, max(0, n // by * by - 1), 2**31 - 1, by - 1, by % 2**31):
        assert kernels.div(each, by) == each // by
