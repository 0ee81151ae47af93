"""torch.ops.resnet_fused.* against the float64 reference, on every CPU engine and edge-case shape."""

import ctypes
import mmap
import os

import numpy as np
import pytest
import torch
from criterion import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_case import Case, isa_of_kernels, lay_out, layout_of, plan_of, pre_args, projection_args, reason_against
from support import ROOT, run_python, zero_eps

from resnet_fused import ops, reference

PAGE = mmap.PAGESIZE

sizes = st.sampled_from([1, 5, 7, 8, 13, 14, 16, 23, 30])
pairs = st.tuples(st.integers(1, 2), st.integers(1, 3))


@given(
    n=st.sampled_from([0, 1, 2, 3]), c=st.sampled_from([1, 3, 8, 64, 72]), k=st.sampled_from([1, 3, 8, 16, 40, 64, 72]),
    h=sizes, w=sizes, kernel=st.sampled_from([(1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3)]), stride=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)), dilation=pairs,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced", "expanded"]),
    residual=st.booleans(), relu=st.booleans(), bias=st.booleans(), affine=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(engine, n, c, k, h, w, kernel, stride, padding, dilation, **rest):
    r, s = kernel
    if h + 2 * padding[0] <= dilation[0] * (r - 1) or w + 2 * padding[1] <= dilation[1] * (s - 1):
        return  # refused: test_bad_input
    if engine != "direct" and (padding[0] > dilation[0] * (r - 1) or padding[1] > dilation[1] * (s - 1)):
        return  # torch 2.13's own channels_last convolution crashes on windows that are all padding
    y, eager = Case(n, c, h, w, k, r, s, stride, padding, dilation, **rest).check()
    if y.numel():
        assert layout_of(y) == layout_of(eager)


# n, c, size, k: whole and partial tiles, half a block of channels, one image split across threads
WINOGRAD = {
    torch.float32: [
        (1, 64, 56, 64),
        (4, 128, 28, 128),
        (3, 256, 14, 256),
        (8, 512, 7, 512),
        (2, 48, 15, 80),
        (1, 32, 23, 32),
    ],
    torch.bfloat16: [(1, 64, 56, 64), (4, 128, 28, 128), (20, 256, 14, 256), (9, 48, 21, 80), (3, 32, 31, 32)],
    torch.float16: [(4, 128, 28, 128), (9, 48, 21, 80)],
}
CASES = [(dtype, *shape) for dtype, shapes in WINOGRAD.items() for shape in shapes]


@pytest.mark.thinned
@pytest.mark.parametrize(("dtype", "n", "c", "size", "k"), CASES)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_three_by_three(engine, dtype, n, c, size, k, padding):
    if n == 1:
        torch.set_num_threads(2)
    case = Case(
        n, c, size, size, k, 3, 3, (1, 1), (padding,) * 2, (1, 1), dtype=dtype, residual=True, layout="channels_last"
    )
    case.check()


@pytest.mark.usefixtures("winograd_isa")
@pytest.mark.parametrize(("dtype", "n", "c", "size", "k"), CASES)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_winograd_is_what_runs(dtype, n, c, size, k, padding):
    """Checks that test_three_by_three runs the Winograd kernels."""
    assert plan_of((n, c, size, size), k, (padding, padding), dtype).kernel == "winograd"


@pytest.mark.parametrize(("isa", "shape", "sentence"), [
    ("avx512_bf16", (8, 512, 7), "392 pixels, 512 in whole tiles of 4x4"),
    ("avx512_bf16", (1, 64, 16), "256 pixels, 256 in whole tiles of 4x4"),
    ("avx2", (2, 512, 7), "98 pixels, 128 in whole tiles of 4x4"),
])  # fmt: skip
def test_small_images_in_bfloat16_are_direct(monkeypatch, isa, shape, sentence):
    n, c, size = shape
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", isa)
    plan = plan_of((n, c, size, size), c, (1, 1), torch.bfloat16)
    if isa_of_kernels(torch.bfloat16) != {"avx512_bf16": "AVX512-BF16", "avx2": "AVX2"}[isa]:
        pytest.skip("this processor has no AVX512-BF16")
    assert plan.kernel == "direct"
    assert reason_against("winograd", plan) == f"{sentence}: too few for what transformed weights cost"


@pytest.mark.thinned
@pytest.mark.usefixtures("winograd_isa")
@pytest.mark.parametrize(("dtype", "n", "c", "size", "k"), CASES)
@pytest.mark.parametrize("mean", [0, 100])
def test_winograd_with_pixels_of_mixed_magnitude(dtype, n, c, size, k, mean):
    """Winograd sums over whole tiles, so the rounding error of the largest pixel affects every output of its tile."""
    case = Case(n, c, size, size, k, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, layout="channels_last")
    case.x += mean
    case.x[..., ::5, ::3] *= 300
    case.check()


# pixel strides that map to one L1 set, tails of register blocks, one image split across threads
@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "k", "r", "stride"),
    [(2, 1024, 14, 14, 256, 1, 1), (1, 2048, 7, 7, 512, 1, 1), (2, 512, 28, 28, 64, 1, 2), (1, 512, 7, 7, 512, 3, 1),
     (3, 3, 64, 64, 64, 7, 2), (1, 64, 1, 200, 64, 1, 1), (1, 16, 9, 31, 24, 3, 1)],
)  # fmt: skip
def test_resnet_shapes(engine, dtype, n, c, h, w, k, r, stride):
    torch.set_num_threads(2)
    case = Case(
        n, c, h, w, k, r, r, (stride,) * 2, (r // 2,) * 2, (1, 1), dtype=dtype, layout="channels_last", residual=True
    )
    case.check()


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("n", "c", "size", "k", "kernel", "padding"),
    [(8, 3, 1, 8, 1, (0, 0)), (64, 3, 1, 8, 3, (1, 2)), (2, 8, 5, 1, 1, (0, 0))],
)
def test_outputs_dense_in_both_formats(engine, dtype, layout, n, c, size, k, kernel, padding):
    """Dense as contiguous and as channels_last: torch 2.11's oneDNN does not accept such a residual."""
    case = Case(n, c, size, size, k, kernel, kernel, (3, 3), padding, (1, 1), dtype=dtype, layout=layout, residual=True)
    assert case.residual.is_contiguous() and case.residual.is_contiguous(memory_format=torch.channels_last)
    case.check()


@pytest.mark.parametrize("groups", [2, 8, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups(engine, groups, dtype):
    Case(2, 64, 14, 14, 64, 3, 3, (1, 1), (1, 1), (1, 1), groups, dtype=dtype, residual=True).check()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes(dtype):
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, residual=True)
    if dtype == torch.float64:
        case.bn = [t.double() for t in case.bn]
    case.check()


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    ["gamma 0", "var 0", pytest.param("eps 0", marks=zero_eps), "no BatchNorm", "bn in x's dtype", "strided bn"],
)
def test_batch_norm_corners(engine, dtype, change):
    case = Case(2, 32, 14, 14, 48, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, residual=True)
    gamma, _, _, var = case.bn
    if change == "gamma 0":
        gamma.zero_()
    elif change == "var 0":
        var[::3] = 0
    elif change == "eps 0":
        case.eps = 0.0
    elif change == "no BatchNorm":
        case.bn = [None] * 4
    elif change == "bn in x's dtype":
        case.bn = [t.to(dtype) for t in case.bn]
    else:
        case.bn = [torch.stack([t, torch.full_like(t, float("nan"))], 1)[:, 0] for t in case.bn]
    case.check()


@zero_eps
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_zero_variance_and_zero_eps(engine, dtype, gamma):
    """1 / sqrt(0) gives infinities and NaN in the same positions as in eager."""
    case = Case(1, 32, 12, 12, 32, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype)
    case.eps = 0.0
    case.bn[3][::5] = 0
    case.bn[0][::5] = gamma
    case.check()


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "weight", "residual", "mean"])
@pytest.mark.parametrize("relu", [True, False])
def test_not_finite(engine, dtype, value, where, relu):
    case = Case(2, 32, 13, 13, 40, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, residual=True, relu=relu)
    if where == "x":
        case.x[0, 3, 0, 0] = case.x[1, 5, 6, 7] = value
    elif where == "weight":
        case.weight[2, 1, 0, 1] = value
    elif where == "residual":
        case.residual[1, 2, 3, 4] = value
    else:
        case.bn[2][3] = value
    case.check()


@pytest.mark.thinned(3)
@pytest.mark.usefixtures("winograd_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "weight"])
@pytest.mark.parametrize("relu", [True, False])
def test_not_finite_in_winograd(dtype, value, where, relu):
    assert plan_of((2, 32, 30, 30), 48, (1, 1), dtype).kernel == "winograd"
    case = Case(2, 32, 30, 30, 48, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, residual=True, relu=relu)
    if where == "x":
        case.x[0, 3, 0, 0] = case.x[1, 5, 6, 7] = value
    else:
        case.weight[2, 1, 0, 1] = value
    case.check()


@pytest.mark.usefixtures("winograd_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_overflow_on_the_way(dtype):
    """Winograd adds inputs before it multiplies, so values near the largest float overflow only there."""
    case = Case(1, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, relu=False)
    case.x.fill_(2e38)
    case.weight.fill_(1e-3)
    case.bn[3].fill_(1.0)
    assert torch.isfinite(case.eager()).all()
    case.check()


# whole and partial vectors of filters and values, odd channels, one tap, more taps than lanes; sliced: not dense
@pytest.mark.thinned(3)
@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("c", "k", "r"), [(32, 40, 3), (64, 16, 1), (34, 33, 3), (33, 7, 2), (6, 24, 5), (1, 17, 3)])
def test_filters_of_any_layout_are_packed_right(monkeypatch, dtype, layout, c, k, r):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    case = Case(2, c, 9, 8, k, r, r, (1, 1), (1, 1), (1, 1), dtype=dtype, relu=False)
    case.weight = lay_out(case.weight, layout)
    case.check()
    for at in (0, -1, case.weight.numel() // 2):
        index = np.unravel_index(at % case.weight.numel(), case.weight.shape)
        kept = case.weight[index].item()
        case.weight[index] = float("inf")
        case.check()
        case.weight[index] = kept


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("not_finite", [False, True])
@pytest.mark.parametrize("pre", [False, True])
def test_projection(engine, dtype, layout, not_finite, pre):
    args = projection_args(dtype, layout, **({"pre": pre_args(16)} if pre else {}))
    if not_finite:  # Winograd gives up after the shortcut is already in the output
        args[0][0, 0, 3, 3] = float("inf")
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    eager = reference.conv_bn_proj_act(*args)
    y = ops.conv_bn_proj_act(*args, False, False)
    assert_close(y, eager, reference.conv_bn_proj_act(*double))
    assert layout_of(y) == layout_of(eager)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(3, 1, 1), (1, 2, 1), (3, 2, 4)])
def test_pre_activation(engine, dtype, layout, kernel, stride, groups):
    """Bit-identical: relu(pre(x)) is computed first, in x's dtype. Padding must stay zero, although pre(0) is not."""
    case = Case(
        2, 32, 13, 11, 64, kernel, kernel, (stride,) * 2, (kernel // 2,) * 2, (1, 1), groups,
        dtype=dtype, layout=layout, residual=True,
    )  # fmt: skip
    if dtype == torch.float64:
        case.bn = [t.double() for t in case.bn]
    pre = pre_args(32, torch.float64 if dtype == torch.float64 else torch.float32)
    x, *rest = case.args()
    y = ops.bn_relu_conv_bn_act(x, *pre, *rest, False, False)
    case.x = ops.bn_add_act(x, *pre, None, True)
    assert torch.equal(y, case.fused())
    eager = reference.bn_relu_conv_bn_act(x, *pre, *rest)
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in (x, *pre, *rest)]
    assert_close(y, eager, reference.bn_relu_conv_bn_act(*double))
    if layout != "sliced":
        assert layout_of(y) == layout_of(eager)


@given(
    n=st.integers(1, 2), c=st.sampled_from([3, 16]), k=st.sampled_from([8, 24, 64]),
    h=st.integers(8, 40), w=st.integers(8, 40),
    conv=st.sampled_from([(7, 2, 3), (3, 1, 1), (1, 1, 0)]), pool=st.sampled_from([(3, 2, 1), (2, 2, 0), (3, 1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), layout=st.sampled_from(["contiguous", "channels_last"]),
    nan=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pool(engine, n, c, k, h, w, conv, pool, dtype, layout, nan):
    kernel, stride, padding = conv
    if min((size + 2 * padding - kernel) // stride + 1 for size in (h, w)) + 2 * pool[2] < pool[0]:
        return  # refused: the window is larger than its input
    case = Case(n, c, h, w, k, kernel, kernel, (stride,) * 2, (padding,) * 2, (1, 1), dtype=dtype, layout=layout)
    # torch 2.13's bf16 channels_last convolution of 3 channels lets a NaN leak into the neighbouring pixel
    if nan and not (dtype == torch.bfloat16 and c % 2):
        case.x[0, 0, h // 2, w // 2] = float("nan")
    args = (*case.args()[:-2], *([p, p] for p in pool))
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    eager = reference.conv_bn_relu_pool(*args)
    y = ops.conv_bn_relu_pool(*args, False, False)
    assert_close(y, eager, reference.conv_bn_relu_pool(*double))
    assert layout_of(y) == layout_of(eager)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("shape", [(2, 64, 7, 7), (1, 1, 5, 3), (3, 72, 1, 1), (0, 8, 4, 4)])
def test_bn_add_act(dtype, layout, shape):
    x = lay_out(torch.randn(shape).to(dtype), layout)
    residual = lay_out(torch.randn(shape).to(dtype), layout)
    k = shape[1]
    bn = [torch.rand(k) + 0.5, torch.randn(k), torch.randn(k), torch.rand(k) + 0.5]
    if dtype == torch.float64:
        bn = [t.double() for t in bn]
    for r in (None, residual):
        y = ops.bn_add_act(x, *bn, 1e-5, r, True)
        eager = reference.bn_add_act(x, *bn, 1e-5, r, True)
        truth = reference.bn_add_act(
            x.double(), *(t.double() for t in bn), 1e-5, None if r is None else r.double(), True
        )
        assert_close(y, eager, truth)
        if layout in ("contiguous", "channels_last") and y.numel():
            assert layout_of(y) == layout_of(eager)


def test_result_memory_is_reused_across_steps():
    """The pool keeps the memory that a training step frees at its end, and the next step reuses it."""
    x = torch.zeros(1, 16, 1024, 1024).to(memory_format=torch.channels_last)
    ops.release_memory()

    def step():
        results = [ops.bn_add_act(x, *[None] * 4, 1e-5, None, True, internal=True) for _ in range(7)]  # 448 MiB
        return {result.data_ptr() for result in results}

    try:
        first = step()
        assert len(first) == 7
        assert all(in_memory(address, x.nbytes) for address in first), "freed results are kept"
        assert step() == first
    finally:
        ops.release_memory()
    assert not any(in_memory(address, x.nbytes) for address in first)


def test_memory_of_mallocs_heap_is_released_too():
    """Runs in a process whose malloc allocates large blocks on its heap and keeps freed ones there."""
    code = """if True:
        import ctypes
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            assert ctypes.CDLL(None).mallopt(parameter, 1 << 30)
        import test_ops
        test_ops.test_result_memory_is_reused_across_steps()
    """
    done = run_python("-c", code, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    assert done.returncode == 0, done.stderr


def in_memory(address, size):
    """Returns whether all pages are resident. Pages that were never written, or were given back, are not."""
    pages = (ctypes.c_ubyte * (size // PAGE))()
    known = ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) == 0
    return known and all(page & 1 for page in pages)
