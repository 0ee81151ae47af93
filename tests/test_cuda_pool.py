"""Max-pooling kernels on the emulator, compared with a float64 reference."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_cases.batch_norm import WIDTHS, activation, batch_norm, by_dtype, normalised
from cuda_on_cpu import pool as emulated
from cuda_on_cpu.bn_train import wide
from cuda_on_cpu.tensors import DTYPES, BatchNorm
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value
from support import TINY_EPS

NO_ARGMAX = 255
STEM = ((3, 3), (2, 2), (1, 1))
# The stem's; 3x3 windows with stride 1, and with gaps; other sizes, some of them not square.
POOLS = [STEM, ((3, 3), (1, 1), (1, 1)), ((3, 3), (4, 5), (0, 1)), ((2, 2), (2, 2), (0, 0)), ((5, 2), (3, 1), (2, 1))]
POOLS += [((1, 1), (2, 2), (0, 0)), ((4, 3), (1, 2), (2, 0))]
FORWARD = [(d, v, s, argmax) for d, v in WIDTHS for s in ((0, 3) if v > 1 else (0,)) for argmax in (True, False)]
BACKWARD = [(d, v, s, True) for d, v in WIDTHS for s in ((0, 2) if v > 1 else (0,))]

by_width = pytest.mark.parametrize(("dtype", "vector"), WIDTHS, ids=lambda v: str(v).replace("torch.", ""))
by_pool = pytest.mark.parametrize("pool", POOLS, ids=str)


def channels_of(vector):
    return 3 * vector if vector > 1 else 5


def windows(v, pool):
    """Returns the windows of v in float64, padded with -inf: (n, c, elements, windows)."""
    kernel, stride, (ph, pw) = pool
    padded = F.pad(v.double(), (pw, pw, ph, ph), value=-torch.inf)
    n, c, _, _ = v.shape
    unfolded = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    return unfolded.reshape(n, c, -1, kernel[0] * kernel[1]).transpose(2, 3)


def definition(v, pool):
    """Returns max_pool2d(relu(v)) in float64 and its argmax: the last NaN, else the first maximum, none if it is 0."""
    elements, size = windows(v, pool), emulated.pooled(v, pool)
    number = torch.arange(elements.shape[2]).view(1, 1, -1, 1)
    finite = elements.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    first = torch.where(finite == finite.amax(2, keepdim=True), number, NO_ARGMAX).amin(2)
    nan = elements.isnan()
    argmax = torch.where(nan.any(2), torch.where(nan, number, -1).amax(2), first)
    value = torch.where(nan.any(2), torch.nan, finite.amax(2)).relu()
    argmax = torch.where(value == 0, NO_ARGMAX, argmax)
    return value.view(size), argmax.to(torch.uint8).view(size)


def check_forward(kernels, x, bn, pool, exact=False, **options):
    """``exact``: nothing is rounded before the maximum, so the argmax is known."""
    out, argmax, report = emulated.forward(kernels, x, bn, pool, **options)
    assert report["error_count"] == 0, report["errors"]
    v = normalised(x, bn)
    truth, expected = definition(v, pool)
    check_without_argmax(kernels, x, bn, pool, out, report, **options)
    if x.dtype == torch.float64:
        torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        assert_close(out, truth.to(x.dtype), truth)
    if exact:
        assert torch.equal(argmax, expected)
        return report
    closed = argmax == NO_ARGMAX
    assert torch.equal(closed, out == 0)
    # The element at the argmax equals the maximum up to rounding; padding does not.
    number = torch.where(closed, 0, argmax.long())
    assert (number < pool[0][0] * pool[0][1]).all()
    reached = windows(v, pool).gather(2, number.flatten(2)[:, :, None])[:, :, 0].view(truth.shape)
    torch.testing.assert_close(torch.where(closed, 0, reached), truth, rtol=1e-5, atol=1e-5, equal_nan=True)
    return report


def check_without_argmax(kernels, x, bn, pool, expected, report, **options):
    """Without an argmax, the output is bit-identical and nothing else is stored."""
    out, _, less = emulated.forward(kernels, x, bn, pool, with_argmax=False, **options)
    assert less["error_count"] == 0, less["errors"]
    assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))
    assert less["bytes_stored"] == report["bytes_stored"] - out.numel()


def gathered(grad, argmax, size, pool):
    """Returns the input gradient in float64: adds each gradient at its argmax."""
    (_, kw), (sh, sw), (ph, pw) = pool
    t = argmax.long()
    row = torch.arange(argmax.shape[2])[:, None] * sh - ph + t // kw
    column = torch.arange(argmax.shape[3]) * sw - pw + t % kw
    none = t == NO_ARGMAX
    place = torch.where(none, 0, row * size[3] + column).flatten(2)
    sums = torch.zeros(size, dtype=torch.float64).flatten(2)
    return sums.scatter_add_(2, place, torch.where(none, 0, grad.double()).flatten(2)).view(size)


def check_backward(kernels, grad, argmax, size, pool, **options):
    to, report = emulated.backward(kernels, grad, argmax, size, pool, **options)
    assert report["error_count"] == 0, report["errors"]
    truth = gathered(grad, argmax, size, pool)
    if grad.dtype == torch.float64:
        torch.testing.assert_close(to, truth, rtol=1e-14, atol=1e-14)
    else:
        assert_close(to, truth.to(grad.dtype), truth)
    return report


def gradient(size, pool, dtype, seed=0, misalign=""):
    """Returns grad and argmax for an input of this size; a third of the ReLUs are closed."""
    x = activation(size, torch.float64, True, seed) + 0.5
    argmax = definition(x, pool)[1]
    grad = activation(tuple(argmax.shape), dtype, True, seed + 1, int(misalign == "grad"))
    return grad, emulated.empty(tuple(argmax.shape), torch.uint8, int(misalign == "argmax")).copy_(argmax)


def whole_numbers(size, dtype, seed=0):
    """Returns integers, many equal and about half negative, and a BatchNorm that does not change them."""
    x = emulated.empty(size, dtype)
    x.copy_(torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(seed)))
    c = size[1]
    return x, BatchNorm(None, None, torch.zeros(c), torch.ones(c), None, TINY_EPS)


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


FORWARD_FILE, BACKWARD_FILE, PIXEL, HOST = (
    "cuda/kernels/pool/bn_pool.cuh",
    "cuda/kernels/pool/pool_backward.cuh",
    "cuda/kernels/pool/pixel.cuh",
    "cuda/kernels/pool/pool.h",
)
BYTE_MUTATIONS = {
    "byte stored at its neighbour's address": value(
        "cuda/device/tile/bytes.cuh",
        "ptx::st_global_u8(address,",
        "ptx::st_global_u8(address - (reinterpret_cast<uintptr_t>(address) & 1),",
    )
}
FORWARD_MUTATIONS = {
    "last maximum wins": value(
        FORWARD_FILE,
        "const bool takes = v > value[c] || v != v;",
        "const bool takes = v >= value[c] || v != v;",
    ),
    "NaN ignored": value(
        FORWARD_FILE,
        "const bool takes = v > value[c] || v != v;",
        "const bool takes = v > value[c];",
    ),
    "first NaN wins": value(FORWARD_FILE, "v > value[c] || v != v;", "!(v <= value[c]) && value[c] == value[c];"),
    "closed ReLU not marked in the argmax": value(
        FORWARD_FILE,
        "if (value[c] <= Acc(kVanishes",
        "if (false && value[c] <= Acc(kVanishes",
    ),
    "ReLU open where the output underflowed": value(FORWARD_FILE, "Acc(kVanishes<Config::kDtype>)", "Acc(0)"),
    "forward: window height as the argmax pitch": value(
        FORWARD_FILE,
        "(row - top) * w.kernel + column - left",
        "(row - top) * h.kernel + column - left",
    ),
    "argmax counted from the image's edge": value(
        FORWARD_FILE, "(row - top) * w.kernel", "(row - larger(top, 0)) * w.kernel"
    ),
    "window misses its last column": value(FORWARD_FILE, "column < right", "column < right - 1"),
    "window has one row too many": value(FORWARD_FILE, "row < bottom", "row <= bottom"),
    "reads rows above the image": value(FORWARD_FILE, "row = larger(top, 0); row", "row = top; row"),
    "reads rows below the image": value(FORWARD_FILE, "smaller(top + h.kernel, h.in)", "top + h.kernel"),
    "3x3: last maximum wins": value(
        FORWARD_FILE,
        "for (int t = kTaps - 1; t >= 0; --t) number",
        "for (int t = 0; t < kTaps; ++t) number",
    ),
    "3x3: first NaN wins": value(
        FORWARD_FILE,
        "for (int t = 0; t < kTaps; ++t) number = v[t] != v[t]",
        "for (int t = kTaps - 1; t >= 0; --t) number = v[t] != v[t]",
    ),
    "3x3: no argmax for NaN": value(FORWARD_FILE, "if (most != most)", "if (false)"),
    "3x3: argmax in the padding": value(FORWARD_FILE, "id[t] = (row - top) * kWindow + column - left;", "id[t] = t;"),
    "3x3: reads rows above the image": value(
        FORWARD_FILE,
        "smaller(larger(top + t / kWindow, 0), h.in - 1)",
        "smaller(top + t / kWindow, h.in - 1)",
    ),
    "3x3: misses the image's last column": value(
        FORWARD_FILE,
        "smaller(larger(left + t % kWindow, 0), w.in - 1)",
        "smaller(larger(left + t % kWindow, 0), w.in - 2)",
    ),
    "3x3: maximum starts at -1": value(FORWARD_FILE, "Acc v[kTaps], most = 0;", "Acc v[kTaps], most = -1;"),
    "argmax stored by a kernel without one": value(
        FORWARD_FILE,
        "    if constexpr (Config::kArgmax) {\n      // What is stored",
        "    {\n      // What is stored",
    ),
    "argmax kernel selected without an argmax tensor": value(HOST, "p.argmax != nullptr", "true"),
    "BatchNorm vectors of lane 0": value(FORWARD_FILE, "bn(p.bn, lane * Config::kChannels)", "bn(p.bn, 0)"),
    "forward: no bounds check on lanes": value(FORWARD_FILE, "if (lane >= loop.all_lanes) return;", ""),
    "forward: one item past the end": value(PIXEL, "i < loop.items;", "i <= loop.items;"),
    "forward: no griddepcontrol.wait": order(FORWARD_FILE, "  ptx::griddepcontrol_wait();\n", ""),
    "image offset uses columns for rows": value(
        PIXEL, "((image * rows + h) * columns + w)", "((image * columns + h) * columns + w)"
    ),
    "argmax offset uses the data's element size": value(
        PIXEL,
        "static_cast<uint64_t>(access) * Config::kVector;",
        "data_at<Config>(access);",
    ),
    "alignment of argmax not checked": value(
        HOST,
        "reinterpret_cast<uintptr_t>(p.out) | reinterpret_cast<uintptr_t>(p.argmax);",
        "reinterpret_cast<uintptr_t>(p.out);",
    ),
    "loop uses the height as width": value(
        HOST,
        "loop.columns = FastDivmod(over_outputs ? s.w.out : s.w.in)",
        "loop.columns = FastDivmod(over_outputs ? s.h.out : s.h.in)",
    ),
}
BACKWARD_MUTATIONS = {
    "first window one too late": value(
        BACKWARD_FILE,
        "stride.div(from - axis.kernel) + 1",
        "stride.div(from - axis.kernel) + 2",
    ),
    "first window one too early": value(BACKWARD_FILE, "from < axis.kernel ? 0", "from < axis.kernel + 1 ? 0"),
    "last window one too early": value(
        BACKWARD_FILE,
        "smaller(stride.div(from), axis.out - 1)",
        "smaller(stride.div(from), axis.out - 1) - 1",
    ),
    "last window not clamped": value(BACKWARD_FILE, "smaller(stride.div(from), axis.out - 1)", "stride.div(from)"),
    "padding not added to the position": value(BACKWARD_FILE, "from(at + axis.pad)", "from(at)"),
    "argmax not compared": value(BACKWARD_FILE, "if (argmax.get(c) == id) sum", "if (argmax.get(c) != kNoArgmax) sum"),
    "backward: window height as the argmax pitch": value(
        BACKWARD_FILE,
        "(h.from - row * s.h.stride) * s.w.kernel",
        "(h.from - row * s.h.stride) * s.h.kernel",
    ),
    "gradient overwrites the sum": value(BACKWARD_FILE, "sum[c] += grad.get(c)", "sum[c] = grad.get(c)"),
    "few: last window added twice": value(
        BACKWARD_FILE,
        "const int32_t row = h.first + i / kWindow, column = w.first + i % kWindow;",
        "const int32_t row = smaller(h.first + i / kWindow, h.last), column = smaller(w.first + i % kWindow, w.last);",
    ),
    "few: loads windows past the last": value(
        BACKWARD_FILE, "smaller(h.first + i / kWindow, h.last)", "h.first + i / kWindow"
    ),
    "any: last column skipped": value(BACKWARD_FILE, "column <= w.last; ++column", "column < w.last; ++column"),
    "backward: no bounds check on lanes": value(BACKWARD_FILE, "if (lane >= loop.all_lanes) return;", ""),
    "backward: last item skipped": value(PIXEL, "i < loop.items;", "i + 1 < loop.items;"),
    "backward: no griddepcontrol.wait": order(BACKWARD_FILE, "  ptx::griddepcontrol_wait();\n", ""),
    "2x2 kernel for three windows": value(HOST, "(a.kernel - 1) / a.stride < 2", "(a.kernel - 1) / a.stride < 3"),
}


EXERCISED = (STEM, ((5, 2), (3, 1), (2, 1)), ((2, 4), (1, 2), (0, 2)))


def exercise_forward(kernels, schedule):
    size = (2, 24, 8, 9)
    for pool in EXERCISED:
        x, bn = whole_numbers(size, torch.float16)
        check_forward(kernels, x, bn, pool, exact=True, schedule=schedule)
        x[0, 1, 3, 3] = x[0, 1, 3, 4] = x[0, 1, 4, 3] = x[1, 0, 0, 0] = x[1, 2, 7, 8] = torch.nan
        check_forward(kernels, x, bn, pool, exact=True, schedule=schedule)
        drawn = activation(size, torch.float16, True)
        check_forward(kernels, drawn, batch_norm(24), pool, schedule=schedule)
        # 2^-25 everywhere: positive, but stored as 0
        tiny = BatchNorm(torch.zeros(24), torch.full((24,), 2.0**-25), torch.zeros(24), torch.ones(24), None, 0.0)
        out, argmax, _ = emulated.forward(kernels, x.nan_to_num(), tiny, pool, schedule=schedule)
        assert (out == 0).all()
        assert (argmax == NO_ARGMAX).all()
    # 257 lanes in two groups, the last one partial
    check_forward(kernels, *whole_numbers((1, 2056, 3, 3), torch.float16), STEM, exact=True, schedule=schedule)
    x, bn = whole_numbers((2, 8, 5, 4), torch.float16)
    check_forward(kernels, x, bn, STEM, exact=True, schedule=schedule, misalign="argmax")


def exercise_backward(kernels, schedule):
    sizes = [(pool, (2, 24, 8, 9)) for pool in EXERCISED]
    # 257 lanes, as above, and pixels in nine windows
    for pool, size in [*sizes, (STEM, (1, 2056, 3, 3)), (((3, 3), (1, 1), (1, 1)), (2, 8, 5, 4))]:
        check_backward(kernels, *gradient(size, pool, torch.float16), size, pool, schedule=schedule)


def check_bytes_apart(kernels, schedule):
    """A byte stored at its neighbour's address is written twice, and its own is never written."""
    x, bn = whole_numbers((1, 4, 6, 6), torch.float64)
    found = emulated.forward(kernels, x, bn, STEM, schedule=schedule)[2]["hazards"]
    assert {hazard for hazard, _ in found} == {"global memory written twice", "output never written"}


@by_schedule
def test_exercise_passes(kernels, schedule):
    exercise_forward(kernels, schedule)
    exercise_backward(kernels, schedule)


@each_mutation(
    mutations_of(BYTE_MUTATIONS, check_bytes_apart, ("bn_pool",), "v.dtype == Dtype::kFloat64 && v.argmax"),
    mutations_of(
        FORWARD_MUTATIONS,
        fails(exercise_forward),
        ("bn_pool",),
        "v.dtype == Dtype::kFloat16 && (v.vector == 8 || v.argmax)",
    ),
    mutations_of(
        BACKWARD_MUTATIONS,
        fails(exercise_backward),
        ("pool_backward",),
        "v.dtype == Dtype::kFloat16 && v.vector == 8",
    ),
)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
