"""conv_backward_reduce on the CPU: bit-identical to the ops that it replaces; and chains that call it, as on CUDA."""

import pytest
import torch
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
from resnet_fused.chain import backward, forward
from resnet_fused.chain.backward import Backward
from resnet_fused.chain.convolutions import (
    aten_convolution_backward,
    conv_backward_reduce,
    fuses_gradient_sums,
    input_gradient,
)
from resnet_fused.chain.layout import ConvSlots, pack, unpack
from resnet_fused.chain.spec import ALL_VISIBLE, Chain, Conv, Norm

# kernel, padding, dilation, image size; the last is large enough for our own float32 convolution
GEOMETRIES = [(1, 0, 1, 7), (3, 1, 1, 9), (3, 2, 2, 9), (3, 3, 1, 6), (3, 1, 1, 40)]


def call(dtype=torch.float32, layout="channels_last", geometry=GEOMETRIES[1], addend=False):
    g = torch.Generator().manual_seed(0)
    kernel, padding, dilation, size = geometry
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x, weight = torch.randn(3, 16, size, size, generator=g), torch.randn(24, 16, kernel, kernel, generator=g) / 12
    grad = torch.randn(torch.nn.functional.conv2d(x, weight, None, 1, padding, dilation).shape, generator=g)
    grad, x, weight = (lay_out(t.to(dtype), layout) for t in (grad, x, weight))
    norm = [torch.rand(16, generator=g).to(wide) + 0.5 for _ in range(4)]
    other = lay_out(torch.randn(x.shape, generator=g).to(dtype), layout) if addend else None
    return grad, weight, [padding] * 2, [dilation] * 2, x, *norm, 1e-5, other, False


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("addend", [False, True], ids=["alone", "addend"])
def test_op_equals_its_separate_ops_bitwise(dtype, layout, geometry, addend):
    args = call(dtype, layout, geometry, addend)
    grad, weight, padding, dilation, x, *norm, eps, other, _ = args
    conv = ConvSlots(0, None, (1, 1), tuple(padding), tuple(dilation), 1)
    to_x = input_gradient(grad, x, weight, conv, other)
    if to_x is None:
        to_x = aten_convolution_backward(grad, x, weight, conv, [True, False, False])[0]
        to_x = to_x if other is None else to_x.add_(other)
    wanted = (to_x, *ops.bn_act_backward_reduce(to_x, x, *norm, eps, None, True))
    found = ops.conv_backward_reduce(*args)
    assert found[0].stride() == x.stride()
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("addend", [False, True], ids=["alone", "addend"])
def test_opcheck(addend):
    for layout in ("contiguous", "channels_last"):
        torch.library.opcheck(ops.conv_backward_reduce, call(layout=layout, addend=addend))


def test_bad_input():
    args = list(call())
    args[5] = torch.ones(7)
    with pytest.raises(RuntimeError, match=r"gamma has shape \[7\]; \[16\] expected"):
        ops.conv_backward_reduce(*args)
    with pytest.raises(RuntimeError):
        ops.conv_backward_reduce(args[0][:1], *call()[1:])


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Makes backward call conv_backward_reduce wherever it can, as on CUDA; returns the arguments of the calls."""
    calls = []

    def counted(*args):
        calls.append(args)
        return conv_backward_reduce(*args)

    grant(monkeypatch, gradient_sums=True)
    monkeypatch.setattr(backward, "conv_backward_reduce", counted)
    return calls


def gradients(block, x):
    inputs = x.clone().requires_grad_()
    block.zero_grad()
    block(inputs).square().sum().backward()
    return [inputs.grad, *(p.grad for p in block.parameters() if p.requires_grad)]


def expected_calls(block):
    """Returns the expected number of calls: one per BatchNorm before a convolution of stride 1, except projections."""
    pre_activates, strides = "PreAct" in type(block).__name__, [m.stride for m in convolutions(block)]
    return sum(stride == (1, 1) for stride in (strides if pre_activates else strides[1:]))


def convolutions(block):
    return [m for name, m in block.named_children() if name.startswith("conv")]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_chains_match_eager_and_separate_ops(cls, recompute, as_on_cuda, monkeypatch):
    """Gradients match eager.

    On the CPU, where the op calls the separate ops, they are bit-identical to a chain without it.
    """
    for block in [identity(cls), projected(cls)] if cls in WITH_SHORTCUT else [identity(cls)]:
        block.recompute = recompute
        x = torch.randn(3, in_channels(block), 9, 9, requires_grad=True)
        as_on_cuda.clear()
        assert_trains_as_eager(block, x)
        assert len(as_on_cuda) == expected_calls(block) > 0
        found = gradients(block, x.detach())
        with monkeypatch.context() as patch:
            grant(patch, gradient_sums=False)
            before = len(as_on_cuda)
            expected = gradients(block, x.detach())
            assert len(as_on_cuda) == before
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_preact_projection_gradient_is_added_in_the_op(as_on_cuda):
    """The projection and the first convolution read the same tensor, and the op of the latter adds both gradients."""
    block = projected(next(cls for cls in WITH_SHORTCUT if cls.__name__ == "FusedPreActBottleneck"))
    gradients(block, torch.randn(3, in_channels(block), 9, 9))
    assert [args[-1] is not None for args in as_on_cuda] == [False, True]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parameters(cls, frozen, as_on_cuda):
    for block in [identity(cls), projected(cls)] if cls in WITH_SHORTCUT else [identity(cls)]:
        freeze(block, frozen)
        assert_trains_as_eager(block, torch.randn(3, in_channels(block), 9, 9, requires_grad=True))
        assert as_on_cuda


@pytest.mark.parametrize("learns", [False, True])
def test_frozen_statistics(learns, as_on_cuda):
    """With frozen statistics the sums are only gradients of gamma and beta; if those are frozen, none is computed."""
    block = identity(next(iter(CLASSES)))
    block.bn1.eval().requires_grad_(learns)
    assert_trains_as_eager(block, torch.randn(3, in_channels(block), 9, 9, requires_grad=True))
    assert len(as_on_cuda) == learns


def test_grouped_convolutions_use_torchs_gradient():
    conv = ConvSlots(0, None, (1, 1), (1, 1), (1, 1), 2)
    with FakeTensorMode():
        grad, weight = torch.empty(2, 8, 4, 4, device="cuda"), torch.empty(8, 4, 3, 3, device="cuda")
    assert not fuses_gradient_sums(grad, weight, conv)
    assert fuses_gradient_sums(grad, weight, conv._replace(groups=1))
    assert not fuses_gradient_sums(torch.empty(2, 8, 4, 4), weight, conv._replace(groups=1))


def test_ops_of_a_backward_pass_on_cuda():
    """Fake tensors need no GPU.

    The first BatchNorm gets its sums with its gradient, the last one from a separate pass.
    """

    def made(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, device="cuda", dtype=dtype)

    with FakeTensorMode(), RecordedOps() as recorded:
        x, vector = made(4, 16, 9, 9).to(memory_format=torch.channels_last), made(16, dtype=torch.float32)
        conv = Conv(made(16, 16, 3, 3), None, (1, 1), (1, 1), (1, 1), 1)
        norm = Norm(vector, vector, None, None, 1e-5)
        tensors, *numbers = pack(Chain((conv, conv), (None, norm, norm)), ALL_VISIBLE, recompute=False)
        layout = unpack(*numbers)
        out, _, pre_bn, statistics = forward.forward(x, tensors, layout, "")
        recorded.called.clear()
        needs = True, [True] * len(tensors)
        to_x, grads = Backward(x, tensors, layout, "", None, None, pre_bn, statistics, needs).run(torch.empty_like(out))
    assert to_x.shape == x.shape
    assert [g.shape for g in grads] == [t.shape for t in tensors]
    assert recorded.called.count(ops.conv_backward_reduce) == 1
    assert recorded.called.count(ops.bn_act_backward_reduce) == 1
    assert recorded.called.count(ops.bn_act_backward) == 2


def test_compiled_step_calls_the_op(as_on_cuda):
    block = identity(next(cls for cls in WITH_SHORTCUT if cls.__name__ == "FusedBottleneck"))
    x = torch.randn(3, in_channels(block), 9, 9)
    expected = gradients(block, x)
    as_on_cuda.clear()
    found = gradients(torch.compile(block, fullgraph=True, backend="aot_eager"), x)
    assert len(as_on_cuda) == 2, "the backward pass is traced once"
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
