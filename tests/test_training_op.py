"""train_chain, the op behind the blocks: its contract with PyTorch, and its gradients for any shape."""

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import RecordedOps
from torch.utils.checkpoint import checkpoint
from training import projection

from resnet_fused import modules, revert
from resnet_fused.chain import eager, layout, train
from resnet_fused.chain.policy import CAPABILITIES
from resnet_fused.chain.spec import ALL_VISIBLE, Chain, Conv, Norm, Pool, Shortcut

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def vector(channels, dtype):
    return (torch.rand(channels, dtype=dtype) + 0.5).requires_grad_()


def conv(c, k, size=3, stride=1, bias=False, groups=1, dtype=torch.float64):
    weight = torch.randn(k, c // groups, size, size, dtype=dtype).mul_(0.3).requires_grad_()
    padding = (size // 2, size // 2)
    return Conv(weight, vector(k, dtype) if bias else None, (stride, stride), padding, (1, 1), groups)


def norm(c, frozen=False, affine=True, dtype=torch.float64):
    statistics = [vector(c, dtype).detach() for _ in range(2)] if frozen else [None, None]
    gamma, beta = (vector(c, dtype), vector(c, dtype)) if affine else (None, None)
    return Norm(gamma, beta, *statistics, 1e-3)


def chains(dtype=torch.float64):
    """Returns name -> arguments of ``pack``, for an x of four channels."""
    n = lambda c, **options: norm(c, dtype=dtype, **options)  # noqa: E731
    c = lambda *shape, **options: conv(*shape, dtype=dtype, **options)  # noqa: E731
    residual = torch.randn(2, 4, 5, 4, dtype=dtype, requires_grad=True)
    return {
        "basic": (([c(4, 3), c(3, 4)], [None, n(3), n(4)]), dict(identity=True)),
        "projection": (([c(4, 6, stride=2), c(6, 6)], [None, n(6), n(6)]), dict(projection=(c(4, 6, 1, 2), n(6)))),
        "mixed": (([c(4, 3), c(3, 4)], [None, n(3, frozen=True), n(4, affine=False)]), dict(identity=True)),
        "bare projection": (([c(4, 4)], [None, n(4)]), dict(projection=(c(4, 4, 1, bias=True), None))),
        "residual": (([c(4, 4, groups=2)], [None, n(4)]), dict(residual=residual)),
        "pre-activation": (([c(4, 3), c(3, 4)], [n(4), n(3), None]), dict(identity=True, relu=False)),
        "pre-activation projection": (
            ([c(4, 3), c(3, 5, bias=True)], [n(4), n(3), None]),
            dict(projection=(c(4, 5, 1), n(5)), relu=False),
        ),
        "recompute": (([c(4, 3, 1), c(3, 4, 1)], [None, n(3), n(4)]), dict(identity=True, recompute=True)),
        "stem": (([c(4, 4, stride=2)], [None, n(4)]), {}),
        "pooled stem": (([c(4, 4)], [None, n(4)]), dict(pool=((3, 2), (2, 1), (1, 0)))),
        "pooled frozen stem": (([c(4, 4)], [None, n(4, frozen=True)]), dict(pool=((2, 2), (2, 2), (0, 0)))),
        "tail": (([], [n(4)]), {}),
        "nothing that learns": (([], [n(4, affine=False)]), {}),
    }


def pack(convs, norms, projection=None, residual=None, identity=False, relu=True, recompute=False, pool=None):
    shortcut = Shortcut(*(projection or ()), residual=residual) if projection or residual is not None else None
    chain = Chain(tuple(convs), tuple(norms), Shortcut() if identity else shortcut, relu, pool and Pool(*pool))
    return layout.pack(chain, ALL_VISIBLE, recompute)


@pytest.mark.parametrize("name", chains())
def test_gradients_by_finite_differences(name):
    (convs, norms), options = chains()[name]
    tensors, ints, eps = pack(convs, norms, **options)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    learning = [t for t in tensors if t.requires_grad]

    def out(x, *given):
        fresh = iter(given)
        return train.train_chain(x, [next(fresh) if t.requires_grad else t for t in tensors], ints, eps, "")[0]

    assert torch.autograd.gradcheck(out, (x, *learning), fast_mode=True)
    assert torch.autograd.gradgradcheck(out, (x, *learning), fast_mode=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("mixed", torch.float32),
        ("residual", torch.float32),
        ("pre-activation projection", torch.bfloat16),
        ("tail", torch.bfloat16),
        ("pooled stem", torch.bfloat16),
    ],
    ids=str,
)
def test_opcheck(name, dtype):
    (convs, norms), options = chains(dtype)[name]
    x = torch.randn(2, 4, 5, 4).to(dtype).requires_grad_()
    torch.library.opcheck(train.train_chain, (x, *pack(convs, norms, **options), ""))


@pytest.mark.parametrize("name", chains())
def test_unpack_inverts_pack(name):
    (convs, norms), options = chains()[name]
    tensors, ints, eps = pack(convs, norms, **options)
    read = layout.unpack(ints, eps)
    proj, proj_norm = options.get("projection", (None, None))
    slots = (*read.convs, read.projection, *read.norms, read.projection_norm)
    for slot, expected in zip(slots, (*convs, proj, *norms, proj_norm), strict=True):
        assert (slot is None) == (expected is None)
        values = (*expected[:5], expected.sync) if isinstance(expected, Norm) else expected or ()
        for place, value in zip(slot or (), values, strict=True):
            assert tensors[place] is value if isinstance(value, torch.Tensor) else place == value
    residual = options.get("residual")
    assert (read.residual is None) == (residual is None)
    assert residual is None or tensors[read.residual] is residual
    assert read.pool == options.get("pool")
    assert (read.identity, read.relu) == (options.get("identity", False), options.get("relu", True))


@pytest.mark.parametrize("name", chains())
def test_eager_twin_computes_the_same_function(name):
    (convs, norms), options = chains()[name]
    tensors, ints, eps = pack(convs, norms, **options)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    y = eager.run(x, layout.unpack(ints, eps).chain(tensors))
    torch.testing.assert_close(train.train_chain(x, tensors, ints, eps, "")[0], y)


@settings(max_examples=25)
@given(
    n=st.integers(1, 4),
    h=st.integers(2, 17),
    w=st.integers(2, 17),
    channels=st.sampled_from([1, 3, 16, 33]),
    stride=st.sampled_from([1, 2]),
    projects=st.booleans(),
    pre=st.booleans(),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_any_shape(n, h, w, channels, stride, projects, pre, memory_format):
    cls = modules.FusedPreActBlock if pre else modules.FusedBasicBlock
    out = channels + 2 if projects else channels
    shortcut = projection(channels, out, stride) if projects else None
    block = cls(channels, out, stride if projects else 1, shortcut).double().to(memory_format=memory_format)
    if n * -(-h // stride) * -(-w // stride) < 8:  # too few values to normalise over: even the reference is noise
        return
    x = torch.randn(n, channels, h, w, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    gradients = []
    for forward in (block.forward, lambda x: cls._eager_class.forward(block, x)):
        y = forward(x)
        direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        gradients.append([y, *torch.autograd.grad((y * direction).sum(), [x, *block.parameters()])])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("name", chains(torch.float32))
def test_eager_mode_equals_the_op_bitwise(name):
    """Without a dispatch mode an autograd.Function runs the chain; with one, the op."""
    (convs, norms), options = chains(torch.float32)[name]
    tensors, ints, eps = pack(convs, norms, **options)
    x = torch.randn(2, 4, 5, 4, requires_grad=True)
    learning = [t for t in (x, *tensors) if t.requires_grad]

    def trained():
        seen = []
        y = train.run_chain(x, tensors, ints, eps, "", seen.extend)
        statistics = [torch.as_tensor(value, dtype=torch.float32) for each in seen for value in each]
        return [y, *statistics, *torch.autograd.grad(y.square().sum(), learning)], y.grad_fn

    eager, function = trained()
    with RecordedOps() as recorded:
        traced, op = trained()
    assert type(function).__name__ == "TrainChainBackward" != type(op).__name__
    assert [op.name() for op in recorded.ours].count("resnet_fused::train_chain") == 1
    assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))


class NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


def test_undefined_gradient_stays_undefined():
    """As in eager. Zero gradients would let weight decay and momentum change the parameters."""
    block = modules.FusedBasicBlock(4, 4)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    NoGradient.apply(block(x)).sum().backward()
    assert x.grad is None and all(p.grad is None for p in block.parameters())


@pytest.mark.parametrize("observed", ["forward", "backward"])
def test_checkpoint_with_a_dispatch_mode_in_one_pass(observed):
    block = modules.FusedBasicBlock(4, 4)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with RecordedOps() if observed == "forward" else contextlib.nullcontext():
        y = checkpoint(block, x, use_reentrant=False)
    with RecordedOps() if observed == "backward" else contextlib.nullcontext():
        y.sum().backward()
    assert x.grad is not None


def test_second_derivatives_of_layers_used_twice():
    block = modules.FusedBasicBlock(4, 4).double()
    block.conv2, block.bn2 = block.conv1, block.bn1
    twin = revert(copy.deepcopy(block))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)

    def penalty(module):
        grads = torch.autograd.grad(module(x).square().sum(), [x, *module.parameters()], create_graph=True)
        return [*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), [x, *module.parameters()])]

    torch.testing.assert_close(penalty(block), penalty(twin))
