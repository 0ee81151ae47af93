"""The training ops against their definition in float64: batch statistics, the sum of two BatchNorms, the backward."""

import itertools

import pytest
import torch
from criterion import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_case import DTYPES, lay_out, layout_of
from support import zero_eps

from resnet_fused import ops, reference

LAYOUTS = ["contiguous", "channels_last", "sliced", "expanded"]
DENSE = LAYOUTS[:2]
SHAPES = [(4, 72, 9, 14), (1, 1, 5, 3), (3, 33, 1, 1), (1, 16, 1, 1), (2, 130, 20, 21), (20, 3, 33, 17)]
SHAPES += [(1, 1100, 3, 3)]  # more channels than one pass sums
MASKS = ["none", "relu", "out"]


@pytest.fixture(params=["", "composed"], ids=["preferred", "portable"])
def kernels(request, monkeypatch):
    """Runs a test with the preferred kernels and with the compiler-vectorised ones."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", request.param)


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def double(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


def check(op, *args):
    """Compares ``op`` with its definition by the criterion; returns its results."""
    actual, eager = getattr(ops, op)(*args), getattr(reference, op)(*args)
    truth = getattr(reference, op)(*double(args))
    if isinstance(actual, torch.Tensor):
        actual, eager, truth = (actual,), (eager,), (truth,)
    for a, e, t in zip(actual, eager, truth, strict=True):
        if a.dtype == torch.float64:  # the truth is no more precise than the result
            torch.testing.assert_close(a, t, rtol=1e-12, atol=1e-12, equal_nan=True)
        else:
            assert_close(a, e, t)
    return actual


def vectors(channels, dtype=torch.float32, seed=1):
    """Returns gamma, beta, mean, var."""
    g = torch.Generator().manual_seed(seed)
    made = torch.rand(channels, generator=g) + 0.5, *(torch.randn(channels, generator=g) for _ in range(2))
    return [v.to(dtype) for v in (*made, torch.rand(channels, generator=g) + 0.5)]


class Backward:
    """A random call of the backward ops. No ReLU input is so close to 0 that rounding could change its sign."""

    def __init__(self, shape, dtype, layout="contiguous", mask="relu", affine=True, bn_dtype=None, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.bn = vectors(shape[1], bn_dtype or wide(dtype))
        if not affine:
            self.bn[0] = self.bn[1] = None
        x = torch.randn(shape, generator=g)
        while True:
            near = reference.bn_add_act(x.to(dtype).double(), *double(self.bn), 1e-5, relu=False).abs() < 0.04
            if not near.any():
                break
            x[near] = torch.randn(int(near.sum()), generator=g)
        self.x = lay_out(x.to(dtype), layout)
        self.grad = lay_out(torch.randn(shape, generator=g).to(dtype), layout)
        self.relu = mask != "none"
        self.out = lay_out(torch.randn(shape, generator=g).relu().to(dtype), layout) if mask == "out" else None

    @property
    def args(self):
        return (self.grad, self.x, *self.bn, 1e-5, self.out, self.relu)

    def sums(self):
        s = ops.bn_act_backward_reduce(*self.args)
        return (*s, float(self.x.numel() // self.x.shape[1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_stats(kernels, dtype, layout, shape):
    mean, var = check("bn_stats", lay_out(torch.randn(shape).to(dtype), layout))
    assert mean.dtype == var.dtype == wide(dtype)
    if shape[0] * shape[2] * shape[3] == 1:
        assert torch.equal(var, torch.zeros_like(var))


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("mean", [1e3, -1e5])
@pytest.mark.parametrize("shape", [(8, 40, 28, 28), (2, 64, 7, 7), (32, 3, 100, 100)])
def test_large_means_do_not_cancel(kernels, layout, mean, shape):
    """Statistics match float64 to the relative precision of float32."""
    x = lay_out(torch.randn(shape) + mean, layout)
    actual, truth = ops.bn_stats(x), reference.bn_stats(x.double())
    for a, t in zip(actual, truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-22, atol=0)


@pytest.mark.parametrize("layout", DENSE)
def test_varying_means_do_not_cancel(kernels, layout):
    """Images of very different brightness, each with an outlying first row."""
    x = torch.randn(16, 24, 30, 30) + 1e3 * torch.arange(16).view(-1, 1, 1, 1)
    x[:, :, 0] = -1e4
    actual, truth = ops.bn_stats(lay_out(x, layout)), reference.bn_stats(x.double())
    for a, t in zip(actual, truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2**-22, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
def test_a_constant_has_no_variance(kernels, dtype, layout):
    x = lay_out(torch.full((3, 20, 11, 13), 0.1).to(dtype), layout)
    mean, var = ops.bn_stats(x)
    assert torch.equal(var, torch.zeros_like(var))
    assert torch.equal(mean, x[0, :, 0, 0].to(mean.dtype))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("projected", [False, True])
def test_add(kernels, dtype, layout, shape, projected):
    x, shortcut = (lay_out(torch.randn(shape).to(dtype), layout) for _ in range(2))
    bn, other = vectors(shape[1], wide(dtype)), vectors(shape[1], wide(dtype), 2)
    y = check("bn_add_bn_act", x, *bn, 1e-5, shortcut, *(other if projected else [None] * 4), 1e-3, True)[0]
    assert layout_of(y) == layout_of(x)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_backward(kernels, dtype, layout, shape, mask):
    case = Backward(shape, dtype, layout, mask)
    sum_g, sum_g_xhat = check("bn_act_backward_reduce", *case.args)
    assert sum_g.dtype == sum_g_xhat.dtype == wide(dtype)
    dx = check("bn_act_backward", *case.args, *case.sums())[0]
    check("bn_act_backward", *case.args, None, None, 0.0)
    assert layout_of(dx) == layout_of(case.x)


NEAR_ZERO = [0.0, *(2.0**-e for e in (24, 25, 26, 126, 127, 133, 134, 135, 149))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("channels", [1, 20, 64])
def test_backward_relu_mask_matches_forward(kernels, dtype, layout, channels):
    """Also if ``bn(x)`` cancels to an ulp, or is positive but stored as 0."""
    g = torch.Generator().manual_seed(2)
    gamma, _, mean, var = vectors(channels)
    values = torch.tensor([sign * v for v in NEAR_ZERO for sign in (1, -1)], dtype=torch.float64)
    for beta, x in (
        (torch.zeros(channels), mean[:, None, None] * (1 + 2.0**-22 * torch.randn(16, channels, 9, 9, generator=g))),
        (values[torch.arange(channels) % len(values)], torch.zeros(4, channels, 5, 5)),
        (values[torch.arange(channels) % len(values)], 1e-8 * torch.randn(4, channels, 5, 5, generator=g)),
    ):
        bn = (gamma, beta.to(wide(dtype)), mean if x.abs().max() > 1e-3 else 0 * mean, var, 1e-5)
        x = lay_out(x.to(dtype), layout)
        passed = ops.bn_add_act(x, *bn, None, True) > 0
        ones = torch.ones_like(x)
        gradient = ops.bn_act_backward(ones, x, *bn, None, True, None, None, 0.0)
        assert torch.equal(gradient != 0, passed)
        assert torch.equal(
            ops.bn_act_backward_reduce(ones, x, *bn, None, True)[0], passed.sum((0, 2, 3)).to(wide(dtype))
        )


@given(
    n=st.integers(1, 5), c=st.sampled_from([1, 2, 15, 16, 17, 63, 64, 65, 100, 200]), h=st.integers(1, 40),
    w=st.integers(1, 40), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS), mask=st.sampled_from(MASKS),
    affine=st.booleans(), bn_in_dtype=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(kernels, n, c, h, w, dtype, layout, mask, affine, bn_in_dtype, seed):
    case = Backward((n, c, h, w), dtype, layout, mask, affine, dtype if bn_in_dtype else None, seed)
    check("bn_stats", case.x)
    check("bn_add_bn_act", case.x, *case.bn, 1e-5, case.grad, *case.bn, 1e-3, case.relu)
    check("bn_act_backward_reduce", *case.args)
    check("bn_act_backward", *case.args, *case.sums())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
def test_ops_match_autograd_of_batch_norm(kernels, dtype, layout):
    """Compares the ops together with autograd of torch's BatchNorm and ReLU."""
    case = Backward((4, 24, 9, 10), torch.float64, layout)
    gamma, beta = case.bn[:2]

    def eager(to):
        x, *bn = (t.to(d).detach().requires_grad_() for t, d in ((case.x, to), (gamma, wide(to)), (beta, wide(to))))
        y = torch.relu(torch.nn.functional.batch_norm(x, None, None, *bn, True, 0.1, 1e-5))
        y.backward(case.grad.to(to))
        return y, x.grad, *(t.grad for t in bn)

    y = torch.nn.functional.batch_norm(case.x, None, None, gamma, beta, True, 0.1, 1e-5)
    case.grad = case.grad * (y.abs() > 0.02)  # zero where rounding may change the ReLU mask
    (_, *truth), (_, *expected) = eager(torch.float64), eager(dtype)
    x, grad = case.x.to(dtype), case.grad.to(dtype)
    bn = (gamma.to(wide(dtype)), beta.to(wide(dtype)), *ops.bn_stats(x), 1e-5)
    out = ops.bn_add_act(x, *bn, None, True)
    sums = ops.bn_act_backward_reduce(grad, x, *bn, None, True)
    again = ops.bn_act_backward_reduce(grad, x, *bn, out, True)
    assert all(torch.equal(a, b) for a, b in zip(sums, again, strict=True))
    dx = ops.bn_act_backward(grad, x, *bn, None, True, *sums, float(x.numel() // 24))
    for actual, e, t in zip((dx, sums[1], sums[0]), expected, truth, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(actual, t, rtol=1e-11, atol=1e-11)
        elif dtype == torch.float32:
            assert_close(actual, e, t)
        else:  # the rounding of the inputs adds to eager's error and to ours
            torch.testing.assert_close(actual.double(), t, rtol=0, atol=0.02 * t.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", [(6, 64, 28, 28), (16, 20, 7, 7)])
def test_results_are_bitwise_equal_on_any_thread_count(kernels, dtype, layout, shape):
    case = Backward(shape, dtype, layout)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            sums = case.sums()
            runs.append((*ops.bn_stats(case.x), *sums[:2], ops.bn_act_backward(*case.args, *sums)))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 3), (2, 0, 3, 3)])
def test_empty(kernels, dtype, layout, shape):
    x = lay_out(torch.randn(shape).to(dtype), layout)
    bn = vectors(shape[1], wide(dtype))
    check("bn_stats", x)
    relu = shape[1] > 0  # torch's BatchNorm refuses a tensor without channels
    for s in check("bn_act_backward_reduce", x, x, *bn, 1e-5, None, relu):
        assert torch.equal(s, torch.zeros_like(s))
    assert ops.bn_act_backward(x, x, *bn, 1e-5, None, True, bn[0], bn[1], 0.0).shape == x.shape
    assert ops.bn_add_bn_act(x, *bn, 1e-5, x, *bn, 1e-5, True).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("change", ["gamma 0", "var 0", pytest.param("var 0, eps 0", marks=zero_eps), "strided bn"])
def test_batch_norm_corners(kernels, dtype, mask, change):
    case = Backward((3, 40, 9, 11), dtype, "channels_last", mask)
    gamma, beta, mean, var = case.bn
    if change == "gamma 0":
        gamma[::2] = 0
        beta[beta.abs() < 0.05] = 1
    elif change == "strided bn":
        case.bn = [torch.stack([t, torch.full_like(t, float("nan"))], 1)[:, 0] for t in case.bn]
    else:
        var[::3] = 0
        mean.copy_(mean.to(dtype))
        case.x[:, ::3] = mean[::3].view(1, -1, 1, 1).to(dtype)
        beta[beta.abs() < 0.05] = 1
    args = list(case.args)
    if "eps 0" in change:
        args[6] = 0.0
    sums = check("bn_act_backward_reduce", *args)
    check("bn_act_backward", *args, *sums, 297.0)
    check("bn_act_backward", *args, None, None, 0.0)
    shortcut = torch.randn_like(case.x)
    check("bn_add_bn_act", case.x, *args[2:7], shortcut, *args[2:7], True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_stats_not_finite(kernels, dtype, layout, value):
    x = torch.randn(3, 20, 15, 15)
    x[0, 3, 0, 0] = x[2, 5, 7, 7] = value
    check("bn_stats", lay_out(x.to(dtype), layout))


@pytest.mark.parametrize("layout", DENSE)
def test_stats_of_squares_that_overflow(kernels, layout):
    """Squares exceed the range of float32, but their mean need not."""
    x = torch.zeros(3, 20, 15, 15)
    x[0, 3, 4, 5] = 5e19
    x[:, 4] = 2e19 * torch.randn(3, 15, 15).sign()
    mean, var = ops.bn_stats(lay_out(x, layout))
    truth = reference.bn_stats(x.double())
    torch.testing.assert_close(mean, truth[0].float())
    torch.testing.assert_close(var, truth[1].float())


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize(("where", "mask"), [*itertools.product(["grad", "x", "mean", "gamma"], MASKS), ("out", "out")])
def test_backward_not_finite(kernels, dtype, layout, mask, value, where):
    case = Backward((2, 20, 13, 13), dtype, layout, mask)
    if where in ("mean", "gamma"):
        case.bn[2 if where == "mean" else 0][3] = value
    else:
        getattr(case, where)[0, 3, 0, 0] = getattr(case, where)[1, 5, 6, 7] = value
    check("bn_act_backward_reduce", *case.args)
    check("bn_act_backward", *case.args, *vectors(20)[:2], 338.0)
    check("bn_act_backward", *case.args, None, None, 0.0)


def test_nan_passes_the_relu_gradient_as_in_eager():
    x = torch.tensor([float("nan"), 1.0, -1.0, 0.0]).view(1, 1, 2, 2).requires_grad_()
    y = torch.relu(x)
    y.backward(torch.ones_like(y))
    ones = torch.ones(1)
    for out in (None, y.detach()):
        g = ops.bn_act_backward(
            torch.ones_like(x), x.detach(), None, None, 0 * ones, ones, 0.0, out, True, None, None, 0.0
        )
        assert torch.equal(g, x.grad)


def test_formats_may_differ():
    case, other = Backward((3, 24, 9, 8), torch.float32, mask="out"), Backward((3, 24, 9, 8), torch.float32, mask="out")
    expected = ops.bn_act_backward(*case.args, *case.sums())
    case.grad, case.out = (lay_out(t, "channels_last") for t in (other.grad, other.out))
    dx = ops.bn_act_backward(*case.args, *case.sums())
    assert layout_of(dx) == layout_of(case.x)
    assert torch.equal(dx, expected)
    case.grad = torch.ones(()).expand(3, 24, 9, 8)  # the gradient of sum().backward()
    check("bn_act_backward_reduce", *case.args)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_results_keep_layout_and_values(layout, dtype):
    """Results of 2 MiB and more may use pooled memory, for which our code sets strides and dtype."""
    case = Backward((5, 64, 60, 60), dtype, layout)
    dx = check("bn_act_backward", *case.args, *case.sums())[0]
    y = check("bn_add_bn_act", case.x, *case.bn, 1e-5, case.grad, None, None, None, None, 0.0, True)[0]
    assert layout_of(y) == layout_of(dx) == layout_of(case.x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("shape", SHAPES)
def test_bn_add_act_backward_reduce_equals_two_passes(kernels, dtype, layout, shape):
    """g equals torch's and the sums equal those of two passes, bit by bit, also for Inf, NaN and subnormal numbers."""
    case = Backward(shape, dtype, layout, "out")
    odd = torch.tensor([torch.nan, torch.inf, 2.0**-130, -(2.0**-24)]).to(dtype)
    case.grad[0, 0, 0, : len(odd)] = odd[: shape[3]]
    g, *sums = ops.bn_add_act_backward_reduce(*case.args[:7], case.out)
    expected = torch.ops.aten.threshold_backward(case.grad, case.out, 0)
    torch.testing.assert_close(g, expected, rtol=0, atol=0, equal_nan=True)
    assert layout_of(g) == layout_of(case.x)
    for actual, alone in zip(sums, ops.bn_act_backward_reduce(*case.args), strict=True):
        torch.testing.assert_close(actual, alone, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", DENSE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_opcheck(layout, dtype):
    case = Backward((2, 8, 9, 9), dtype, layout, "out")
    sums = case.sums()
    torch.library.opcheck(ops.bn_stats, (case.x,))
    torch.library.opcheck(ops.bn_add_bn_act, (case.x, *case.bn, 1e-5, case.grad, *case.bn, 1e-5, True))
    torch.library.opcheck(ops.bn_add_bn_act, (case.x, *case.bn, 1e-5, case.grad, *[None] * 4, 0.0, True))
    torch.library.opcheck(ops.bn_act_backward_reduce, case.args)
    torch.library.opcheck(ops.bn_add_act_backward_reduce, (*case.args[:7], case.out))
    torch.library.opcheck(ops.bn_act_backward, (*case.args, *sums))
    torch.library.opcheck(ops.bn_act_backward, (*case.args, None, None, 0.0))


BAD = [
    (dict(grad=torch.zeros(2, 8, 5, 6)), r"grad has shape \[2, 8, 5, 6\] but x has \[2, 8, 5, 5\]; the same shape"),
    (dict(grad=torch.zeros(2, 8, 5, 5).double()), "grad has dtype Double but x has Float; cast one of them"),
    (dict(x=torch.zeros(8, 5, 5)), r"x has shape \[8, 5, 5\]; \(N, C, H, W\) expected"),
    (dict(x=torch.zeros(2, 8, 5, 5).int()), "x has dtype Int; float32, float16, bfloat16 or float64 expected"),
    (dict(gamma=torch.ones(7)), r"gamma has shape \[7\]; \[8\] expected, one value a channel"),
    (dict(mean=None, var=None), "mean and var are absent; give what the forward pass normalised with"),
    (dict(var=None), "mean without var"),
    (dict(eps=-1.0), "eps is -1; at least 0 expected"),
    (dict(out=torch.zeros(2, 8, 5)), r"out has shape \[2, 8, 5\] but x has \[2, 8, 5, 5\]"),
]  # fmt: skip


def backward_arguments(**change):
    gamma, beta, mean, var = vectors(8)
    x = torch.zeros(2, 8, 5, 5)
    return {"grad": x, "x": x, "gamma": gamma, "beta": beta, "mean": mean, "var": var, "eps": 1e-5, "out": None,
            "relu": True, **change}  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), BAD, ids=[sentence[:20] for _, sentence in BAD])
def test_bad_backward(change, sentence):
    args = backward_arguments(**change)
    with pytest.raises(RuntimeError, match=f"bn_act_backward_reduce: {sentence}"):
        ops.bn_act_backward_reduce(**args)
    both = args | dict(out=args["x"] if args["out"] is None else args["out"])
    del both["relu"]
    with pytest.raises(RuntimeError, match=f"bn_add_act_backward_reduce: {sentence}"):
        ops.bn_add_act_backward_reduce(**both)
    with pytest.raises(RuntimeError, match=f"bn_act_backward: {sentence}"):
        ops.bn_act_backward(**args, sum_g=None, sum_g_xhat=None, count=0.0)


@pytest.mark.parametrize(
    ("sum_g", "sum_g_xhat", "count", "sentence"),
    [
        (torch.ones(8), None, 50.0, "sum_g without sum_g_xhat; give both, or neither"),
        (None, torch.ones(8), 50.0, "sum_g_xhat without sum_g; give both, or neither"),
        (torch.ones(8), torch.ones(9), 50.0, r"sum_g_xhat has shape \[9\]; \[8\] expected"),
        (torch.ones(8), torch.ones(8), 0.0, "count is 0; the number of elements"),
    ],
)
def test_bad_sums(sum_g, sum_g_xhat, count, sentence):
    with pytest.raises(RuntimeError, match=f"bn_act_backward: {sentence}"):
        ops.bn_act_backward(**backward_arguments(), sum_g=sum_g, sum_g_xhat=sum_g_xhat, count=count)


def test_bad_stats_and_sum():
    x, bn = torch.zeros(2, 8, 5, 5), vectors(8)
    with pytest.raises(RuntimeError, match=r"bn_stats: x has shape \[2, 8\]; \(N, C, H, W\) expected"):
        ops.bn_stats(torch.zeros(2, 8))
    with pytest.raises(RuntimeError, match=r"bn_stats: x of shape .* has more than 2147483647 elements"):
        ops.bn_stats(torch.zeros(()).expand(2**10, 8, 2**10, 2**9))
    with pytest.raises(RuntimeError, match=r"bn_add_bn_act: shortcut has shape \[2, 8, 5, 4\] but x has"):
        ops.bn_add_bn_act(x, *bn, 1e-5, x[..., :4], *bn, 1e-5, True)
    with pytest.raises(RuntimeError, match=r"bn_add_bn_act: shortcut_var has shape \[7\]; \[8\] expected"):
        ops.bn_add_bn_act(x, *bn, 1e-5, x, *bn[:3], bn[3][:7], 1e-5, True)
    with pytest.raises(RuntimeError, match="bn_add_bn_act: shortcut_mean without shortcut_var"):
        ops.bn_add_bn_act(x, *bn, 1e-5, x, *bn[:3], None, 1e-5, True)
