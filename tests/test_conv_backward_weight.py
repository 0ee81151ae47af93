"""conv_backward_weight: Winograd against float64, torch's gradient for other geometries, and chains that call it."""

import pytest
import torch
from criterion import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from op_case import (
    DTYPES,
    OpsOfTorch,
    assert_same_bits_with_any_number_of_threads,
    isa_of_kernels,
    lay_out,
    plan_of,
    wherever_they_can,  # noqa: F401  a fixture
)
from relu_sides import assert_trains_as_computed
from training import CLASSES, assert_trains_as_eager, identity, in_channels

from resnet_fused import functional, ops
from resnet_fused.chain import backward, convolutions

pytestmark = pytest.mark.usefixtures("winograd_isa", "wherever_they_can")

# n, c, h, w, k, padding of 3x3 convolutions of stride 1 that run as Winograd: odd sizes, channels that fill half a
# register pair, no padding and large padding, one image row, and enough tiles for several chunks and parts
SHAPES = [(2, 32, 9, 10, 48, (1, 1)), (1, 32, 12, 13, 32, (0, 0)), (3, 48, 8, 8, 32, (2, 2)), (4, 64, 7, 7, 80, (1, 1))]
SHAPES += [(8, 32, 1, 9, 32, (1, 1)), (2, 32, 16, 5, 32, (3, 0)), (8, 32, 28, 27, 32, (1, 1))]
SHAPES += [(16, 96, 20, 20, 64, (1, 1))]
LARGER = [(2, 32, 27, 30, 48, (1, 1)), (1, 32, 38, 37, 32, (0, 0)), (3, 48, 18, 18, 32, (2, 2))]  # for bfloat16
LARGER += [(80, 64, 7, 7, 80, (1, 1)), (40, 32, 2, 30, 32, (2, 1)), (4, 32, 36, 10, 32, (3, 0))]
LARGER += [(40, 96, 28, 28, 64, (1, 1))]
CASES = [(torch.float32, shape) for shape in SHAPES] + [(torch.bfloat16, shape) for shape in LARGER]


def call(shape, *, pre=False, dtype=torch.float32, layout="channels_last", kernel=3, stride=1, dilation=1, groups=1):
    g = torch.Generator().manual_seed(0)
    n, c, h, w, k, padding = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(n, c, h, w, generator=g)
    weight = torch.full((k, c // groups, kernel, kernel), torch.nan)  # only its shape and layout are used
    out = torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation, groups)
    grad = torch.randn(out.shape, generator=g)
    grad, x, weight = (lay_out(t.to(dtype), layout) for t in (grad, x, weight))
    norm = [torch.rand(c, generator=g).to(wide) + 0.5 for _ in range(4)] if pre else [None] * 4
    return grad, x, *norm, 1e-5, weight, [stride] * 2, list(padding), [dilation] * 2, groups


def torchs(grad, x, gamma, beta, mean, var, eps, weight, stride, padding, dilation, groups):
    """Returns torch's gradient, computed from the activation of our pass."""
    activated = x if mean is None else ops.bn_add_act(x, gamma, beta, mean, var, eps, None, True)
    shape = (stride, padding, dilation, False, [0, 0], groups)
    mask = [False, True, False]
    return torch.ops.aten.convolution_backward.default(grad, activated, weight, None, *shape, mask)[1]


def check(args):
    found = ops.conv_backward_weight(*args)
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    assert_close(found, torchs(*args), torchs(*double))
    return found


@pytest.mark.thinned
@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_winograd(dtype, shape, pre, layout):
    args = call(shape, pre=pre, dtype=dtype, layout=layout)
    found = check(args)
    assert found.stride() == args[7].stride()


@pytest.mark.parametrize(("dtype", "shape"), CASES, ids=str)
def test_winograd_is_what_runs(dtype, shape):
    """Checks that test_winograd runs the Winograd kernels."""
    n, c, h, w, k, padding = shape
    assert plan_of((n, c, h, w), k, padding, dtype).kernel == "winograd"


@given(
    st.tuples(*(st.integers(1, most) for most in (5, 3, 40, 40, 3))),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.booleans(),
)
@settings(max_examples=40)
def test_any_shape_in_bfloat16(sizes, padding, pre):
    n, c, h, w, k = sizes
    check(call((n, 16 * (c + 1), h + 2, w + 2, 16 * (k + 1), padding), pre=pre, dtype=torch.bfloat16))


@given(
    st.tuples(*(st.integers(1, most) for most in (5, 4, 20, 20, 4))),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.booleans(),
)
@settings(max_examples=40)
def test_any_shape(sizes, padding, pre):
    n, c, h, w, k = sizes
    check(call((n, 16 * c, h + 2, w + 2, 16 * k, padding), pre=pre))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", [(1, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 1), (3, 1, 1, 4)], ids=str)
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
def test_other_geometries_use_torchs_gradient(dtype, geometry, pre):
    kernel, stride, dilation, groups = geometry
    shape = (2, 32, 9, 10, 48, (1, 1))
    args = call(shape, pre=pre, dtype=dtype, kernel=kernel, stride=stride, dilation=dilation, groups=groups)
    # slow in torch
    in_float32 = dtype.itemsize == 2 and isa_of_kernels(dtype) in ("AVX2", "AVX-512")
    wide = [a.float() if in_float32 and i in (0, 7) else a for i, a in enumerate(args)]
    if in_float32:
        wide[1] = (args[1] if not pre else ops.bn_add_act(args[1], *args[2:7], None, True)).float()
        wide[2:6] = [None] * 4
    assert torch.equal(ops.conv_backward_weight(*args), torchs(*wide).to(dtype))


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, SHAPES[0]), (torch.bfloat16, LARGER[0])], ids=str)
def test_prologue_equals_a_separate_activation_bitwise(dtype, shape):
    """The prologue computes the same bits as a separate pass."""
    args = call(shape, pre=True, dtype=dtype)
    grad, x, *norm, eps, weight, stride, padding, dilation, groups = args
    activated = ops.bn_add_act(x, *norm, eps, None, True)
    rest = (weight, stride, padding, dilation, groups)
    expected = ops.conv_backward_weight(grad, activated, *[None] * 4, eps, *rest)
    assert torch.equal(ops.conv_backward_weight(*args), expected)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("where", ["grad", "x"])
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, SHAPES[0]), (torch.bfloat16, LARGER[0])], ids=str)
def test_non_finite_values_match_torch(value, where, pre, dtype, shape):
    """Inf and NaN are in the same positions as in torch's gradient."""
    args = call(shape, pre=pre, dtype=dtype)
    args[where == "x"][1, 3, 4, 5] = value
    found, eager = ops.conv_backward_weight(*args), torchs(*args)
    assert torch.equal(found.isnan(), eager.isnan())
    assert torch.equal(found.isinf(), eager.isinf())
    closed = pre and where == "x" and value == -torch.inf  # the ReLU sets it to zero
    assert closed or value == 3e38 or not found.isfinite().all()


@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, SHAPES[-1]), (torch.bfloat16, LARGER[-1])], ids=str)
def test_every_number_of_threads_gives_the_same_bits(dtype, shape):
    """Only our kernels guarantee this; torch's gradient does not."""
    n, c, h, w, k, padding = shape
    plan_of((n, c, h, w), k, padding, dtype)
    args = call(shape, pre=True, dtype=dtype)
    assert_same_bits_with_any_number_of_threads(lambda: ops.conv_backward_weight(*args))


def test_empty_batch_has_zero_gradient():
    args = call((0, 32, 9, 9, 32, (1, 1)))
    assert torch.equal(ops.conv_backward_weight(*args), torch.zeros_like(args[7]))


def test_opcheck():
    for layout in ("contiguous", "channels_last"):
        for pre in (False, True):
            torch.library.opcheck(ops.conv_backward_weight, call(SHAPES[0], pre=pre, layout=layout))


def test_bad_input():
    grad, x, *rest = call(SHAPES[0], pre=True)
    with pytest.raises(RuntimeError, match=r"grad has shape \[1, 48, 9, 10\]; \[2, 48, 9, 10\] expected"):
        ops.conv_backward_weight(grad[:1], x, *rest)
    with pytest.raises(RuntimeError, match="grad has dtype Double but x has Float"):
        ops.conv_backward_weight(grad.double(), x, *rest)
    with pytest.raises(RuntimeError, match=r"pre_gamma has shape \[7\]; \[32\] expected"):
        ops.conv_backward_weight(grad, x, torch.ones(7), *rest[1:])


@pytest.fixture
def calls(monkeypatch):
    """Records of each call of weight_gradient whether our kernel computed the gradient."""
    monkeypatch.delenv("RESNET_FUSED_CPU_ENGINE")
    answers = []

    def counted(*args):
        with OpsOfTorch() as called:
            found = convolutions.weight_gradient(*args)
        answers.append(found is not None and not called.convolved())
        return found

    monkeypatch.setattr(backward, "weight_gradient", counted)
    return answers


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_chains_use_winograd_gradients(cls, calls):
    block = identity(cls, scale=8)
    convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
    x = torch.randn(3, in_channels(block), 24, 24).to(memory_format=torch.channels_last).requires_grad_()
    assert_trains_as_eager(block, x)
    assert len(calls) == len(convs)
    assert sum(calls) == sum(m.kernel_size == (3, 3) for m in convs)


@pytest.mark.thinned
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
def test_chains_in_bfloat16(cls, autocast, calls):
    block = identity(cls, scale=16)  # enough channels for a meaningful largest error
    wide = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d) and min(m.weight.shape[:2]) >= 32]
    x = torch.randn(5, in_channels(block), 24, 24).bfloat16().to(memory_format=torch.channels_last)
    block = block if autocast else block.bfloat16()
    assert_trains_as_computed(block, x.requires_grad_(), enabled=autocast, dtype=torch.bfloat16)
    ours = sum(m.kernel_size == (3, 3) for m in wide) if isa_of_kernels(torch.bfloat16) else 0
    assert sum(calls) == ours


def test_small_bfloat16_images_use_torchs_gradient(calls):
    """A quarter of their 4x4 tiles is empty."""
    block = identity(next(iter(CLASSES)), scale=8).bfloat16()
    x = torch.randn(80, in_channels(block), 7, 7).bfloat16().to(memory_format=torch.channels_last)
    block(x).sum().backward()
    assert len(calls) == 2
    assert not any(calls)


def test_frozen_weights_compute_no_gradient(calls):
    block = identity(next(iter(CLASSES)), scale=8)
    block.conv2.weight.requires_grad_(False)
    x = torch.randn(3, in_channels(block), 24, 24).to(memory_format=torch.channels_last)
    assert_trains_as_eager(block, x)
    assert len(calls) == 1


@pytest.mark.parametrize("of_input", [False, True])
@pytest.mark.parametrize("width", [24, 32, 56])
def test_dilated_depthwise_in_torchs_gradient(width, of_input):
    """In bfloat16 oneDNN's weight gradient is wrong, so eager's is no measure."""
    shape = (2, 32, 28, width)
    x, grad = (torch.randn(shape).bfloat16().to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(32, 1, 3, 3).bfloat16()
    geometry = ([1, 1], [2, 2], [2, 2], 32)
    found = ops.conv_backward_weight(grad, x, None, None, None, None, 0.0, weight, *geometry)
    exact = torch.ops.aten.convolution_backward(
        *(t.double() for t in (grad, x, weight)), None, *geometry[:3], False, [0, 0], 32, [False, True, False]
    )[1]
    assert (found - exact).abs().max() <= 2**-8 * exact.abs().max()
    trained = weight.clone().requires_grad_()
    y = functional.conv_bn_act(x.requires_grad_(of_input), trained, padding=2, dilation=2, groups=32, relu=False)
    y.backward(grad)
    assert (trained.grad - exact).abs().max() <= 2**-8 * exact.abs().max()
