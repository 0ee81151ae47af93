"""The emulator catches mutations of the max-pooling kernels."""

from __future__ import annotations

import torch
from cuda_cases.batch_norm import activation, batch_norm
from cuda_cases.pool import NO_ARGMAX, STEM, check_backward, check_forward, gradient, whole_numbers
from cuda_on_cpu import pool as emulated
from cuda_on_cpu.tensors import BatchNorm
from mutation import by_schedule, each_mutation, fails, mutations_of, order, value

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
