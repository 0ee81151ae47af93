"""Training ops on a GPU compared with their definition in float64, and blocks trained with them."""

from __future__ import annotations

import pytest
import torch
from criterion import assert_close
from op_case import DTYPES, lay_out
from relu_sides import away_from_kinks
from training import (
    CLASSES,
    POOLS,
    WITH_SHORTCUT,
    assert_trains_as_eager,
    identity,
    in_channels,
    projected,
    stem_gradients,
)

from resnet_fused import convert, models, ops, reference
from resnet_fused.chain.policy import CAPABILITIES

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
LAYOUTS = ["contiguous", "channels_last"]
SHAPES = [(4, 72, 9, 14), (1, 1, 5, 3), (3, 33, 1, 1), (2, 130, 20, 21), (32, 256, 28, 28), (2, 2056, 3, 3)]
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_layout = pytest.mark.parametrize("layout", LAYOUTS)


def vectors(channels, dtype, seed=1):
    """gamma, beta, mean, var"""
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(channels, generator=g) + low).to(dtype) for low in (0.5, -0.5, -0.5, 0.5)]


class Backward:
    """A random call of the backward ops. No ReLU input is so close to 0 that rounding decides its sign."""

    def __init__(self, shape, dtype, layout, mask="relu"):
        self.bn = vectors(shape[1], torch.float64 if dtype == torch.float64 else torch.float32)
        x = torch.randn(shape).to(dtype)
        before = reference.bn_add_act(x.double(), *(v.double() for v in self.bn), 1e-5, relu=False)
        x[before.abs() < 0.04] = 4
        self.x = lay_out(x, layout)
        self.grad = lay_out(torch.randn(shape).to(dtype), layout)
        self.relu = mask != "none"
        self.out = lay_out(torch.randn(shape).relu().to(dtype), layout) if mask == "out" else None

    @property
    def args(self):
        return (self.grad, self.x, *self.bn, 1e-5, self.out, self.relu)

    def sums(self):
        return (*reference.bn_act_backward_reduce(*self.args), float(self.x.numel() // self.x.shape[1]))


def on_gpu(values):
    return [v.cuda() if isinstance(v, torch.Tensor) else v for v in values]


def close(actual, truth, dtype):
    """Allows float32 rounding errors in sums, and a rounding to ``dtype`` in activations."""
    single = actual.dtype in (torch.float32, torch.float64)
    rtol = 1e-12 if actual.dtype == torch.float64 else 2e-6 if single else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(actual.double(), truth, rtol=rtol, atol=rtol * max(1.0, truth.abs().max().item()))


def check(op, *args):
    """Checks the GPU's results against float64 on the CPU, and that a repeat is bit-identical."""
    actual, again = getattr(ops, op)(*on_gpu(args)), getattr(ops, op)(*on_gpu(args))
    truth = getattr(reference, op)(*(a.double() if isinstance(a, torch.Tensor) else a for a in args))
    actual, again, truth = ((r,) if isinstance(r, torch.Tensor) else r for r in (actual, again, truth))
    for a, b, t in zip(actual, again, truth, strict=True):
        assert torch.equal(a, b)
        close(a.cpu(), t, args[0].dtype)
    return actual


@by_dtype
@by_layout
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mask", ["none", "relu", "out"])
def test_ops(dtype, layout, shape, mask):
    case = Backward(shape, dtype, layout, mask)
    assert check("bn_stats", case.x)[0].is_cuda
    check("bn_act_backward_reduce", *case.args)
    dx = check("bn_act_backward", *case.args, *case.sums())[0]
    check("bn_act_backward", *case.args, None, None, 0.0)
    y = check("bn_add_bn_act", case.x, *case.bn, 1e-5, case.grad, *vectors(shape[1], case.bn[0].dtype), 1e-3, True)[0]
    assert dx.stride() == y.stride() == case.x.stride()


@by_layout
@pytest.mark.parametrize("mean", [1e3, -1e5])
def test_large_means_do_not_cancel(layout, mean):
    x = (torch.randn(32, 40, 56, 56) + mean).contiguous(memory_format=FORMATS[layout])
    for a, t in zip(ops.bn_stats(x.cuda()), reference.bn_stats(x.double()), strict=True):
        torch.testing.assert_close(a.cpu().double(), t, rtol=2**-22, atol=0)


@by_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
@pytest.mark.parametrize("geometry", [(64, 72, 3, 1, 1), (64, 128, 1, 2, 0), (3, 64, 7, 2, 3)], ids=str)
def test_conv_stats(dtype, layout, pre, geometry):
    """The pre-BN output meets the criterion, the statistics match the stored output, and a repeat is bit-identical."""
    c, k, kernel, stride, padding = geometry
    x = torch.randn(8, c, 28, 28).to(dtype)
    weight = (torch.randn(k, c, kernel, kernel) / (c * kernel**2) ** 0.5).to(dtype)
    norm = vectors(c, torch.float32) if pre else [None] * 4
    pairs = ([stride] * 2, [padding] * 2, [1, 1])
    x, weight, *norm = on_gpu([lay_out(x, layout), weight, *norm])
    found = ops.conv_stats(x, *norm, 1e-5, weight, None, *pairs, 1, False, False)
    again = ops.conv_stats(x, *norm, 1e-5, weight, None, *pairs, 1, False, False)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))

    def eager(to):
        bn = [None if v is None else v.to(to if to == torch.float64 else v.dtype) for v in norm]
        activated = reference.bn_add_act(x.to(to), *bn, 1e-5, None, True) if pre else x.to(to)
        return torch.nn.functional.conv2d(activated, weight.to(to), None, stride, padding)

    assert_close(found[0], eager(dtype), eager(torch.float64))
    assert found[0].stride() == eager(dtype).stride()
    for a, t in zip(found[1:], reference.bn_stats(found[0].double()), strict=True):
        close(a, t, dtype)


def meaningful_strides(t):
    """Returns the strides of dimensions of more than one element; the others are arbitrary."""
    return [stride for stride, size in zip(t.stride(), t.shape, strict=True) if size > 1]


@by_dtype
@by_layout
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(4, 64, 29, 30), (2, 33, 9, 14), (1, 1, 5, 3), (32, 64, 112, 112)], ids=str)
def test_pooling(dtype, layout, pool, shape):
    """Values and gradients match the CPU's; the argmax may differ between nearly equal elements."""
    bn = vectors(shape[1], torch.float64 if dtype == torch.float64 else torch.float32)
    x = lay_out(torch.randn(shape).to(dtype), layout)
    expected, expected_argmax = ops.bn_relu_max_pool(x, *bn, 1e-5, *pool)
    args = on_gpu([x, *bn])
    out, argmax = ops.bn_relu_max_pool(*args, 1e-5, *pool)
    again = ops.bn_relu_max_pool(*args, 1e-5, *pool)
    assert torch.equal(out, again[0])
    assert torch.equal(argmax, again[1])
    assert out.stride() == expected.stride()
    assert argmax.stride() == expected_argmax.stride()
    close(out.cpu(), expected.double(), dtype)
    assert (argmax.cpu() != expected_argmax).sum() <= 1e-3 * argmax.numel() + 1
    grad = lay_out(torch.randn(expected.shape).to(dtype), layout)
    dx = ops.bn_relu_max_pool_backward(grad.cuda(), argmax, args[0], *pool)
    assert meaningful_strides(dx) == meaningful_strides(x)
    assert torch.equal(dx.cpu(), ops.bn_relu_max_pool_backward(grad, argmax.cpu(), x, *pool)), "sums in one order"


def test_pooling_ties_and_nan_match_the_cpu():
    """The argmax is the last NaN, else the first maximum, or none for a closed ReLU."""
    nan, inf = float("nan"), float("inf")
    values = torch.tensor([1, 3, 3, -1, -2, nan, inf, -inf, 0, -0.0])
    one, zero = torch.ones(16), torch.zeros(16)
    x = values[torch.randint(10, (4, 16, 15, 17))].to(memory_format=torch.channels_last)
    for pool in POOLS:
        args = (x, one, zero, zero, one, 0.0, *pool)
        for found, expected in zip(ops.bn_relu_max_pool(*on_gpu(args)), ops.bn_relu_max_pool(*args), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_network_stem_trains_with_fused_pooling(dtype):
    """Saves one byte per pooled value; errors against float64 are limited by eager's."""
    net = convert(models.resnet18()).train()
    wide = models.resnet18().train().double()
    wide.load_state_dict(net.state_dict())
    plain = models.resnet18().train()
    plain.load_state_dict(net.state_dict())
    net, plain = (n.cuda().to(memory_format=torch.channels_last) for n in (net, plain))
    x = torch.randn(8, 3, 64, 64).to(memory_format=torch.channels_last)
    kept = []
    with (
        torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        y, found = stem_gradients(net, x.cuda())
    assert [t.dtype for t in kept if t.shape == y.shape] == [torch.uint8]
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16):
        plain_y, eagers = stem_gradients(plain, x.cuda())
    truth_y, truths = stem_gradients(wide, x.double())
    assert (y.cpu() - truth_y).norm() <= 1.1 * (plain_y.cpu() - truth_y).norm() + 1e-6 * truth_y.norm()
    for a, b, t in zip(found, eagers, truths, strict=True):
        assert (a.cpu() - t).norm() <= 2 * (b.cpu() - t).norm() + 1e-6 * t.norm()


@by_layout
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("grad_addend", [False, True], ids=["alone", "grad_addend"])
@pytest.mark.parametrize("tf32", [False, True], ids=["exact", "tf32"])
@pytest.mark.parametrize("geometry", [(64, 72, 3, 1), (256, 64, 1, 0), (33, 64, 3, 1), (64, 64, 3, 3)], ids=str)
def test_conv_backward_reduce(dtype, layout, grad_addend, tf32, geometry):
    """The gradient meets the criterion, the sums match the stored gradient, and a repeat is bit-identical."""
    c, k, kernel, padding = geometry
    case = Backward((8, c, 28, 28), dtype, layout)
    weight = lay_out((torch.randn(k, c, kernel, kernel) / (c * kernel**2) ** 0.5).to(dtype), layout)
    size = 28 + 2 * padding - kernel + 1
    grad, other = torch.randn(8, k, size, size).to(dtype), case.grad if grad_addend else None
    x, weight, grad, other, *norm = on_gpu([case.x, weight, lay_out(grad, layout), other, *case.bn])
    args = (grad, weight, [padding] * 2, [1, 1], x, *norm, 1e-5, other, tf32)
    found, again = ops.conv_backward_reduce(*args), ops.conv_backward_reduce(*args)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert found[0].stride() == x.stride()

    def eager(to):
        rest = (None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1, [True, False, False])
        to_x = torch.ops.aten.convolution_backward(grad.to(to), x.to(to), weight.to(to), *rest)[0]
        return to_x if other is None else to_x + other.to(to)

    if dtype == torch.float32 and tf32:
        torch.testing.assert_close(found[0], eager(torch.float64).float(), rtol=1e-2, atol=1e-2)
    else:
        assert_close(found[0], eager(dtype), eager(torch.float64))
    held = (found[0].double(), x.double(), *(v.double() for v in norm), 1e-5)
    for a, t in zip(found[1:], reference.bn_act_backward_reduce(*held), strict=True):
        close(a, t, dtype)
    alone = ops.conv_backward_input(grad, weight, [padding] * 2, [1, 1], other, tf32)
    assert alone.stride() == x.stride()
    if dtype == torch.float32 and tf32:
        torch.testing.assert_close(alone, eager(torch.float64).float(), rtol=1e-2, atol=1e-2)
    else:
        assert_close(alone, eager(dtype), eager(torch.float64))


def test_cuda_trains_fused():
    assert CAPABILITIES["cuda"].trains
    assert CAPABILITIES["cuda"].pools


@by_layout
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_identity_blocks(cls, layout):
    block = identity(cls, 8).cuda().to(memory_format=FORMATS[layout])
    x = torch.randn(4, in_channels(block), 14, 14, device="cuda").contiguous(memory_format=FORMATS[layout])
    assert_trains_as_eager(block, x.requires_grad_())


@by_layout
@pytest.mark.parametrize("cls", WITH_SHORTCUT, ids=lambda cls: cls.__name__)
def test_projected_blocks(cls, layout):
    block = projected(cls, scale=8).cuda().to(memory_format=FORMATS[layout])
    x = torch.randn(4, in_channels(block), 14, 14, device="cuda").contiguous(memory_format=FORMATS[layout])
    assert_trains_as_eager(block, x.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_autocast(cls, dtype):
    """x has autocast's dtype, as the output of a previous layer has."""
    block = identity(cls, 8)
    x = away_from_kinks(block, torch.randn(4, in_channels(block), 14, 14).to(dtype)).detach()
    block = block.cuda().to(memory_format=torch.channels_last)
    x = x.cuda().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert_trains_as_eager(block, x, enabled=True, dtype=dtype)


def test_backward_ops_can_be_captured_in_a_graph():
    case = Backward((4, 64, 14, 14), torch.bfloat16, "channels_last")
    args = on_gpu(case.args)
    expected = ops.bn_act_backward(*args, *ops.bn_act_backward_reduce(*args), 784.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.bn_act_backward(*args, *ops.bn_act_backward_reduce(*args), 784.0)
    captured.zero_()
    graph.replay()
    assert torch.equal(captured, expected)
