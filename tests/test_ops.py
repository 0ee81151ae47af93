"""torch.ops.resnet_fused.* against the reference in float64, every CPU engine, every shape that breaks kernels."""

import os

import pytest
import torch
from criterion import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_fused import ops, reference

ENGINES = ["", "direct", "onednn", "composed"]  # "": what the plan prefers


@pytest.fixture(params=ENGINES, ids=lambda e: e or "preferred")
def engine(request, monkeypatch):
    """Leaves out every engine that the plan prefers to this one."""
    if request.param:
        monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", request.param)
    return request.param


class Case:
    """One random conv_bn_act call: its arguments, its eager value and its truth."""

    def __init__(self, n, c, h, w, k, r, s, stride, padding, dilation, groups=1, *, dtype=torch.float32,
                 layout="contiguous", residual=False, relu=True, bias=False, affine=True, seed=0):  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.x = lay_out(torch.randn(n, c, h, w, generator=g).to(dtype), layout)
        fan_in = c // groups * r * s
        self.weight = (torch.randn(k, c // groups, r, s, generator=g) / fan_in**0.5).to(dtype)
        if layout == "channels_last":
            self.weight = self.weight.to(memory_format=torch.channels_last)
        self.bias = torch.randn(k, generator=g).to(dtype) if bias else None
        gamma, beta = torch.rand(k, generator=g) + 0.5, torch.randn(k, generator=g)
        mean, var = torch.randn(k, generator=g), torch.rand(k, generator=g) + 0.5
        self.bn = [gamma if affine else None, beta if affine else None, mean, var]
        self.eps = 1e-5
        self.geometry = (list(stride), list(padding), list(dilation), groups)
        self.relu = relu
        self.residual = None
        if residual:
            self.residual = lay_out(torch.randn(self._output_shape(), generator=g).to(dtype), layout)

    def _output_shape(self):
        stride, padding, dilation, groups = self.geometry
        meta = torch.conv2d(self.x.to("meta"), self.weight.to("meta"), None, stride, padding, dilation, groups)
        return meta.shape

    def args(self):
        return (self.x, self.weight, self.bias, *self.bn, self.eps, *self.geometry, self.residual, self.relu)

    def fused(self, keep_packed=False):
        return ops.conv_bn_act(*self.args(), keep_packed)

    def eager(self, dtype=None):
        cast = (lambda t: t) if dtype is None else (lambda t: None if t is None else t.to(dtype))
        x, weight, bias, residual = map(cast, (self.x, self.weight, self.bias, self.residual))
        bn = [cast(t) for t in self.bn]
        return reference.conv_bn_act(x, weight, bias, *bn, self.eps, *self.geometry, residual, self.relu)

    def check(self, keep_packed=False):
        y, eager = self.fused(keep_packed), self.eager()
        baseline = eager
        if os.environ.get("RESNET_FUSED_CPU_ENGINE") == "onednn":
            # oneDNN sums in another order for each layout; ours runs it in NHWC, so eager's error is that of NHWC
            x, self.x = self.x, lay_out(self.x, "channels_last")
            baseline, self.x = self.eager(), x
        assert_close(y, baseline, self.eager(torch.float64))
        return y, eager


def layout_of(x):
    """Strides, of the dimensions that have more than one element: the others say nothing."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def lay_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every second column of a wider tensor
        wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "expanded":  # one image for the whole batch, one row for all rows
        return x[:1, :, :1].expand(x.shape)
    return x


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
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_shape(engine, n, c, k, h, w, kernel, stride, padding, dilation, **rest):
    r, s = kernel
    if h + 2 * padding[0] <= dilation[0] * (r - 1) or w + 2 * padding[1] <= dilation[1] * (s - 1):
        return  # refused: test_bad_input
    if engine != "direct" and (padding[0] > dilation[0] * (r - 1) or padding[1] > dilation[1] * (s - 1)):
        return  # torch 2.13's own channels_last convolution crashes on windows that are all padding
    y, eager = Case(n, c, h, w, k, r, s, stride, padding, dilation, **rest).check()
    if y.numel():
        assert layout_of(y) == layout_of(eager)


WINOGRAD = [(1, 64, 56, 64), (4, 128, 28, 128), (3, 256, 14, 256), (8, 512, 7, 512), (2, 48, 15, 80), (1, 32, 23, 32)]


@pytest.mark.parametrize(("n", "c", "size", "k"), WINOGRAD)
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_three_by_three(engine, n, c, size, k, padding):
    case = Case(n, c, size, size, k, 3, 3, (1, 1), (padding,) * 2, (1, 1), residual=True, layout="channels_last")
    case.check()


def test_winograd_is_what_runs():
    """Guards the test above: its shapes are the ones that the plan gives to Winograd, where AVX-512 exists."""
    if "no AVX-512" in ops.explain_cpu([1, 8, 8, 8], [8, 8, 1, 1], [1, 1], [0, 0], [1, 1], 1, "float32"):
        pytest.skip("this processor has no AVX-512")
    for n, c, size, k in WINOGRAD:
        plan = ops.explain_cpu([n, c, size, size], [k, c, 3, 3], [1, 1], [1, 1], [1, 1], 1, "float32")
        assert plan.startswith("winograd"), plan


# Strides between pixels that fall on one set of L1, tails of register blocks, one image split across threads
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n", "c", "h", "w", "k", "r", "stride"),
    [(2, 1024, 14, 14, 256, 1, 1), (1, 2048, 7, 7, 512, 1, 1), (2, 512, 28, 28, 64, 1, 2), (1, 512, 7, 7, 512, 3, 1),
     (3, 3, 64, 64, 64, 7, 2), (1, 64, 1, 200, 64, 1, 1), (1, 16, 9, 31, 24, 3, 1)],
)  # fmt: skip
def test_resnet_shapes(engine, dtype, n, c, h, w, k, r, stride):
    case = Case(n, c, h, w, k, r, r, (stride,) * 2, (r // 2,) * 2, (1, 1), dtype=dtype, layout="channels_last", residual=True)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "change",
    ["gamma 0", "var 0", "eps 0", "no BatchNorm", "bn in x's dtype", "strided bn"],
)
def test_batch_norm_corners(engine, dtype, change):
    case = Case(2, 32, 14, 14, 48, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, residual=True)
    gamma, beta, mean, var = case.bn
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gamma", [1.0, 0.0])
def test_zero_variance_and_zero_eps(engine, dtype, gamma):
    """1 / sqrt(0): infinities and NaN where eager has them."""
    case = Case(1, 32, 12, 12, 32, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype)
    case.eps = 0.0
    case.bn[3][::5] = 0
    case.bn[0][::5] = gamma
    case.check()


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


def test_overflow_on_the_way():
    """Winograd adds inputs before it multiplies: values near the largest float overflow there and nowhere else."""
    case = Case(1, 64, 56, 56, 64, 3, 3, (1, 1), (1, 1), (1, 1), relu=False)
    case.x.fill_(2e38)
    case.weight.fill_(1e-3)
    case.bn[3].fill_(1.0)
    assert torch.isfinite(case.eager()).all()
    case.check()


def projection_args(dtype, layout, c=32, k=64, size=14, proj_c=16, stride=2):
    main = Case(2, c, size, size, k, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, layout=layout)
    proj = Case(2, proj_c, size * stride, size * stride, k, 1, 1, (stride,) * 2, (0, 0), (1, 1), dtype=dtype, layout=layout, seed=1)
    return (*main.args()[:-2], proj.x, proj.weight, proj.bias, *proj.bn, proj.eps, [stride, stride], True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("not_finite", [False, True])
def test_projection(engine, dtype, layout, not_finite):
    args = projection_args(dtype, layout)
    if not_finite:  # Winograd gives up after the shortcut was already in the output
        args[0][0, 0, 3, 3] = float("inf")
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    eager = reference.conv_bn_proj_act(*args)
    y = ops.conv_bn_proj_act(*args, False)
    assert_close(y, eager, reference.conv_bn_proj_act(*double))
    assert layout_of(y) == layout_of(eager)


@given(
    n=st.integers(1, 2), c=st.sampled_from([3, 16]), k=st.sampled_from([8, 24, 64]), h=st.integers(8, 40), w=st.integers(8, 40),
    conv=st.sampled_from([(7, 2, 3), (3, 1, 1), (1, 1, 0)]), pool=st.sampled_from([(3, 2, 1), (2, 2, 0), (3, 1, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), layout=st.sampled_from(["contiguous", "channels_last"]),
    nan=st.booleans(),
)  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pool(engine, n, c, k, h, w, conv, pool, dtype, layout, nan):
    kernel, stride, padding = conv
    if ((h + 2 * padding - kernel) // stride + 1) + 2 * pool[2] < pool[0] or ((w + 2 * padding - kernel) // stride + 1) + 2 * pool[2] < pool[0]:
        return
    case = Case(n, c, h, w, k, kernel, kernel, (stride,) * 2, (padding,) * 2, (1, 1), dtype=dtype, layout=layout)
    if nan:
        case.x[0, 0, h // 2, w // 2] = float("nan")
    args = (*case.args()[:-2], *([p, p] for p in pool))
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    eager = reference.conv_bn_relu_pool(*args)
    y = ops.conv_bn_relu_pool(*args, False)
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
        truth = reference.bn_add_act(x.double(), *(t.double() for t in bn), 1e-5, None if r is None else r.double(), True)
        assert_close(y, eager, truth)
        if layout in ("contiguous", "channels_last") and y.numel():
            assert layout_of(y) == layout_of(eager)


# ---- packed weights


def stale_cases():
    def step(w):
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], lr=0.1).step()

    def set_data(w):
        w.data = w.data * 1.5

    def data_edit(w):
        w.data.mul_(1.5)  # passes the version counter by

    def in_place(w):
        with torch.no_grad():
            w[1, 2, 0, 0] += 3  # one element

    def copy(w):
        with torch.no_grad():
            w.copy_(w * 0.5)

    return [step, set_data, data_edit, in_place, copy]


@pytest.mark.parametrize("edit", stale_cases(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_edited_between_calls(engine, edit, dtype):
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype)
    case.weight = torch.nn.Parameter(case.weight)
    with torch.no_grad():
        case.check(keep_packed=True)
    edit(case.weight)
    with torch.no_grad():
        before = case.fused(keep_packed=True)
        assert_close(before, case.eager(), case.eager(torch.float64))
    ops.forget_packed([case.weight.detach()])


def test_batch_norm_edited_between_calls(engine):
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=True)
    for t in case.bn:
        t.data[3] *= 2
        case.check(keep_packed=True)
    ops.forget_packed([case.weight])


def test_an_address_that_comes_back():
    """Freed and allocated again at one address with one version: the kept copy holds the storage, so it cannot."""
    for _ in range(20):
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.weight[5, 5, 1, 1] = torch.rand(())
        case.check(keep_packed=True)
        ops.forget_packed([case.weight])


def test_weights_made_in_inference_mode(engine):
    with torch.inference_mode():
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.check(keep_packed=True)
        case.weight.mul_(2)
        case.check(keep_packed=True)
        ops.forget_packed([case.weight])


def test_forgetting_gives_the_memory_back(engine):
    before = ops.packed_bytes()
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=False)
    assert ops.packed_bytes() == before
    case.check(keep_packed=True)
    kept = ops.packed_bytes() - before
    assert (kept == 0) == (engine == "composed")
    case.check(keep_packed=True)
    assert ops.packed_bytes() - before == kept
    ops.forget_packed([case.weight])
    assert ops.packed_bytes() == before


# ---- the contract with torch


def test_opcheck():
    case = Case(2, 8, 9, 9, 16, 3, 3, (2, 2), (1, 1), (1, 1), layout="channels_last", residual=True)
    torch.library.opcheck(ops.conv_bn_act, (*case.args(), False))
    torch.library.opcheck(ops.conv_bn_proj_act, (*projection_args(torch.float32, "contiguous"), False))
    pool = ([3, 3], [2, 2], [1, 1], False)
    torch.library.opcheck(ops.conv_bn_relu_pool, (*case.args()[:-2], *pool))
    torch.library.opcheck(ops.bn_add_act, (case.residual, *case.bn, 1e-5, None, True))


@pytest.mark.parametrize("change", ["rank", "channels", "dtype", "residual", "padding", "stride", "kernel", "bn", "bn half",
                                    "eps", "groups", "integer", "overflow"])  # fmt: skip
def test_bad_input(change):
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1), residual=True)
    expect = {"rank": r"x has shape \[8, 9, 9\]", "channels": "7 channels", "dtype": "BFloat16", "residual": r"\[1, 16, 9, 9\]",
              "padding": r"padding is \[-1, 1\]", "stride": r"stride is \[0, 1\]", "kernel": "larger than the input 2x9",
              "bn": r"gamma has shape \[15\]", "bn half": "mean without var", "eps": "eps is -1", "groups": "groups is 3",
              "integer": "dtype Int", "overflow": "2147483647"}  # fmt: skip
    if change == "rank":
        case.x = case.x[0]
    elif change == "channels":
        case.x = case.x[:, :7]
    elif change == "dtype":
        case.weight = case.weight.bfloat16()
    elif change == "residual":
        case.residual = case.residual[:1]
    elif change == "padding":
        case.geometry = ([1, 1], [-1, 1], [1, 1], 1)
    elif change == "stride":
        case.geometry = ([0, 1], [1, 1], [1, 1], 1)
    elif change == "kernel":
        case.x, case.geometry = case.x[:, :, :2], ([1, 1], [0, 0], [1, 1], 1)
    elif change == "bn":
        case.bn[0] = case.bn[0][:15]
    elif change == "bn half":
        case.bn[3] = None
    elif change == "eps":
        case.eps = -1.0
    elif change == "groups":
        case.geometry = ([1, 1], [1, 1], [1, 1], 3)
    elif change == "integer":
        case.x = case.x.int()
    else:
        case.x = torch.zeros(()).expand(2**10, 8, 2**10, 2**9)
    with pytest.raises(RuntimeError, match=expect[change]):
        case.fused()


def test_mixed_devices():
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1))
    case.weight = case.weight.to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        case.fused()


def test_explain_names_the_engine_and_why_not_the_others(monkeypatch):
    plan = ops.explain_cpu([1, 64, 8, 8], [64, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1, "float64")
    assert plan.startswith("composed") and "not onednn: " in plan and "not direct: " in plan
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    plan = ops.explain_cpu([1, 64, 8, 8], [64, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1, "float32")
    assert plan.startswith("composed") and "RESNET_FUSED_CPU_ENGINE is composed" in plan
    assert os.environ["RESNET_FUSED_CPU_ENGINE"] == "composed"
    with pytest.raises(RuntimeError, match="int8"):
        ops.explain_cpu([1, 64, 8, 8], [64, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1, "int8")
