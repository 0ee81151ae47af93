"""conv_stats on the CPU: bit-identical to the ops that it replaces; and the chains that call it, as on CUDA."""

import pytest
import torch
from criterion import assert_close
from op_case import DTYPES, lay_out
from support import RecordedOps, grant
from torch._subclasses.fake_tensor import FakeTensorMode
from training import (
    CLASSES,
    FROZEN,
    WITH_SHORTCUT,
    assert_trains_as_eager,
    freeze,
    identity,
    in_channels,
    projected,
)

from resnet_fused import ops
from resnet_fused.chain import backward, convolutions, forward
from resnet_fused.chain.layout import ConvSlots, pack, unpack
from resnet_fused.chain.spec import ALL_VISIBLE, Chain, Conv, Norm, Shortcut

# kernel, stride, padding, dilation, groups; the second is large enough for our own float32 convolution
GEOMETRIES = [(1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (3, 1, 2, 2, 4)]


def call(dtype=torch.float32, layout="channels_last", geometry=GEOMETRIES[1], pre=True, bias=True, c=16, size=24):
    g = torch.Generator().manual_seed(0)
    kernel, stride, padding, dilation, groups = geometry
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = lay_out(torch.randn(3, c, size, size, generator=g).to(dtype), layout)
    weight = lay_out((torch.randn(24, c // groups, kernel, kernel, generator=g) / 12).to(dtype), layout)
    norm = [torch.rand(c, generator=g).to(wide) + 0.5 for _ in range(4)] if pre else [None] * 4
    offset = torch.randn(24, generator=g).to(dtype) if bias else None
    pairs = [[v, v] for v in (stride, padding, dilation)]
    return x, *norm, 1e-5, weight, offset, *pairs, groups, False, False


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
def test_op_equals_its_separate_ops_bitwise(dtype, layout, geometry, pre):
    args = call(dtype, layout, geometry, pre)
    x, *norm, eps, weight, bias, stride, padding, dilation, groups, _, _ = args
    activated = ops.bn_add_act(x, *norm, eps, None, True) if pre else x
    slots = ConvSlots(0, 1, tuple(stride), tuple(padding), tuple(dilation), groups)
    pre_bn = forward.convolve(activated, [weight, bias], slots)
    for a, b in zip(ops.conv_stats(*args), (pre_bn, *ops.bn_stats(pre_bn)), strict=True):
        assert a.dtype == b.dtype
        assert a.stride() == b.stride()
        assert torch.equal(a, b)


@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
def test_opcheck(pre):
    for layout in ("contiguous", "channels_last"):
        torch.library.opcheck(ops.conv_stats, call(layout=layout, pre=pre, bias=not pre))


def test_bad_input():
    args = list(call())
    args[1] = torch.ones(7)
    with pytest.raises(RuntimeError, match=r"gamma has shape \[7\]; \[16\] expected"):
        ops.conv_stats(*args)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Makes chains run as on CUDA and returns a counter of the conv_stats calls.

    The chain calls conv_stats before every BatchNorm. Other convolutions normalise their input in the prologue.
    """
    calls = []
    conv_stats = forward.conv_stats

    def counted(*args):
        calls.append(args)
        return conv_stats(*args)

    for module in (forward, backward):
        monkeypatch.setattr(module, "conv_stats", counted)
    grant(monkeypatch, statistics_epilogue=True, norm_prologue=True)
    return calls


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_chains_of_conv_stats_match_eager(cls, recompute, as_on_cuda):
    blocks = [identity(cls), projected(cls)] if cls in WITH_SHORTCUT else [identity(cls)]
    for block in blocks:
        block.recompute = recompute
        x = torch.randn(3, in_channels(block), 9, 9, requires_grad=True)
        assert_trains_as_eager(block, x)
    assert as_on_cuda


@pytest.mark.parametrize("frozen", ["first", "last", "all"])
def test_only_training_norms_compute_statistics(frozen, as_on_cuda):
    """A BatchNorm that uses running statistics does not request batch statistics."""
    block = identity(next(iter(CLASSES)))
    for name in {"first": ["bn1"], "last": ["bn2"], "all": ["bn1", "bn2"]}[frozen]:
        getattr(block, name).eval()
    assert_trains_as_eager(block, torch.randn(3, in_channels(block), 9, 9, requires_grad=True))
    assert len(as_on_cuda) == (0 if frozen == "all" else 1)


@pytest.mark.parametrize("cls", WITH_SHORTCUT, ids=lambda cls: cls.__name__)
def test_chain_with_conv_stats_is_bit_identical(cls, as_on_cuda, monkeypatch):
    """A chain with conv_stats is bit-identical to one without: a whole block, forward and backward.

    On the CPU conv_stats calls the separate ops. Convolutions without conv_stats would use this library on one side and
    torch on the other; here both sides use torch.
    """
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    block = projected(cls)
    x = torch.randn(3, in_channels(block), 9, 9)

    def gradients():
        inputs = x.clone().requires_grad_()
        block.zero_grad()
        block(inputs).square().sum().backward()
        return [inputs.grad, *(p.grad for p in block.parameters())]

    found = gradients()
    assert as_on_cuda
    grant(monkeypatch, statistics_epilogue=False, norm_prologue=False)
    assert all(torch.equal(a, b) for a, b in zip(found, gradients(), strict=True))


ROTATED = [(1, 1, 0, 1), (3, 1, 1, 1), (3, 1, 0, 1), (3, 1, 2, 2), (5, 1, 1, 1)]  # kernel, stride, padding, dilation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", ROTATED, ids=str)
def test_input_gradient_as_convolution_matches_eager(dtype, geometry, monkeypatch):
    grant(monkeypatch, gradient_addend=True)
    kernel, stride, padding, dilation = geometry
    slots = ConvSlots(0, None, (stride, stride), (padding, padding), (dilation, dilation), 1)
    x, weight = torch.randn(2, 8, 12, 11).to(dtype), (torch.randn(24, 8, kernel, kernel) / 8).to(dtype)
    grad = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, *slots[2:5]))
    grad_addend = torch.randn_like(x)
    actual = convolutions.input_gradient(grad, x, weight, slots, grad_addend)

    def eager(to):
        rest = (None, *slots[2:5], False, (0, 0), 1, [True, False, False])
        tensors = (t.to(to) for t in (grad, x, weight))
        return torch.ops.aten.convolution_backward.default(*tensors, *rest)[0] + grad_addend.to(to)

    assert_close(actual, eager(dtype), eager(torch.float64))


@pytest.mark.parametrize("slots", [(2, 1, 1, 1), (1, 3, 1, 1), (1, 1, 1, 4)], ids=["stride", "padding", "groups"])
def test_strided_or_grouped_gradients_are_not_convolutions(slots):
    stride, padding, dilation, groups = slots
    conv = ConvSlots(0, None, (stride, stride), (padding, padding), (dilation, dilation), groups)
    assert not convolutions.is_convolution(torch.empty(8, 8, 3, 3), conv)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("frozen", FROZEN)
def test_shortcut_gradient_is_added_in_the_convolution(cls, frozen, as_on_cuda, monkeypatch):
    calls = []

    def counted(*args):
        found = convolutions.input_gradient(*args)
        if found is not None and args[4] is not None:
            calls.append(args)
        return found

    grant(monkeypatch, gradient_addend=True)
    monkeypatch.setattr(backward, "input_gradient", counted)
    has_shortcut = cls in WITH_SHORTCUT
    for block in [identity(cls), projected(cls)] if has_shortcut else [identity(cls)]:
        freeze(block, frozen)
        x = torch.randn(3, in_channels(block), 9, 9, requires_grad=True)
        assert_trains_as_eager(block, x)
    # In an identity block the branches join at x, which its first convolution reads. In bottlenecks the projection
    # reads x too.
    pre_activates, bottleneck = "PreAct" in cls.__name__, "Bottleneck" in cls.__name__
    assert len(calls) == (has_shortcut and not pre_activates) + (has_shortcut and bottleneck)


def forward_on_cuda(stride, norms, frozen=False):
    """Runs a chain of two convolutions on fake tensors, which need no GPU; returns the output and the ops it called."""

    def made(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, device="cuda", dtype=dtype)

    with FakeTensorMode(), RecordedOps() as recorded:
        x, vector = made(4, 16, 9, 9).to(memory_format=torch.channels_last), made(16, dtype=torch.float32)
        weight, narrow = made(16, 16, 3, 3), made(16, 16, 1, 1)
        convs = [Conv(weight, None, (s, s), (1, 1), (1, 1), 1) for s in (1, stride)]
        statistics = vector if frozen else None
        norm = Norm(vector, vector, statistics, statistics, 1e-5)
        ends = norm if norms[-1] else None
        projection = Shortcut(Conv(narrow, None, (stride, stride), (0, 0), (1, 1), 1), ends)
        placed = tuple(norm if each else None for each in norms)
        chain = Chain(tuple(convs), placed, projection if stride == 2 else Shortcut())
        tensors, *numbers = pack(chain, ALL_VISIBLE, recompute=False)
        out, _, pre_bn, found = forward.forward(x, tensors, unpack(*numbers), "")
    assert out.device.type == "cuda"
    assert out.shape == (4, 16, 9 // stride + stride - 1, 9 // stride + stride - 1)
    assert all(t.dtype == torch.bfloat16 for t in pre_bn.values())
    return recorded.called, pre_bn, found


@pytest.mark.parametrize("stride", [1, 2])
def test_ops_of_a_chain_on_cuda(stride):
    """conv_stats computes the input of every BatchNorm, and no activation is materialised."""
    called, pre_bn, statistics = forward_on_cuda(stride, [False, True, True])
    assert len(pre_bn) == 1 + stride
    mean, var, count = statistics[1]
    assert (mean.shape, var.shape, count) == ((16,), (16,), 4 * 9 * 9)
    assert called.count(ops.conv_stats) == 1 + stride
    assert ops.bn_stats not in called
    assert called.count(ops.bn_add_act) + called.count(ops.bn_add_bn_act) == 1


@pytest.mark.parametrize("stride", [1, 2])
def test_ops_of_a_preact_chain_on_cuda(stride):
    """The last convolution normalises its input and adds the shortcut.

    The only pass left computes the statistics of x.
    """
    called, pre_bn, _ = forward_on_cuda(stride, [True, True, False])
    assert list(pre_bn) == [1]
    assert called.count(ops.bn_stats) == called.count(ops.conv_stats) == 1
    assert called.count(ops.bn_relu_conv_bn_act) == stride  # the projection is a separate convolution
    assert not {ops.bn_add_act, ops.bn_add_bn_act, torch.ops.aten.add_.Tensor} & set(called)


def test_ops_of_a_frozen_chain_on_cuda():
    called, pre_bn, _ = forward_on_cuda(1, [False, True, True], frozen=True)
    assert list(pre_bn) == [1, 2]
    assert ops.conv_stats not in called
    assert called.count(ops.bn_relu_conv_bn_act) == called.count(ops.bn_add_act) == 1
