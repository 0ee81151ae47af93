"""Fused training of every block: outputs, gradients and running averages match eager."""

import contextlib
import copy

import pytest
import torch
from criterion import assert_close
from op_case import OpsOfTorch, isa_of_kernels
from relu_sides import assert_trains_as_computed, away_from_kinks
from support import needs_compiler, randomise
from torch import nn
from training import (
    CLASSES,
    WITH_SHORTCUT,
    assert_trains_as_eager,
    average_projection,
    conv_only,
    eager_twin,
    identity,
    in_channels,
    is_trained,
    projected,
    projection,
    step,
    wide_projection,
    x_for,
)

from resnet_fused import models, modules, ops, reference
from resnet_fused.chain import backward, convolutions, forward, layout, train
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def blocks():
    for cls in CLASSES:
        yield pytest.param(lambda scale=1, cls=cls: identity(cls, scale), id=f"{cls.__name__}-identity")
    for cls in WITH_SHORTCUT:
        for shortcut in (projection, conv_only, wide_projection):
            build = lambda scale=1, cls=cls, shortcut=shortcut: projected(cls, shortcut, scale)  # noqa: E731
            yield pytest.param(build, id=f"{cls.__name__}-{shortcut.__name__}")
    for cls in (modules.FusedBasicBlock, modules.FusedBottleneck):
        for shortcut in (average_projection, reference.ZeroPadShortcut):
            build = lambda scale=1, cls=cls, shortcut=shortcut: projected(cls, shortcut, scale)  # noqa: E731
            yield pytest.param(build, id=f"{cls.__name__}-{shortcut.__name__}")
    for cls in (modules.FusedBottleneck, modules.FusedPreActBottleneck):
        grouped = lambda scale=1, cls=cls: randomise(cls(16, 4, 1, None, 4, 128, 2))  # noqa: E731
        yield pytest.param(grouped, id=f"{cls.__name__}-grouped-dilated")


@pytest.mark.parametrize("build", list(blocks()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_step_matches_eager(build, dtype):
    if dtype is torch.float32:
        block = build()
        assert_trains_as_eager(block, x_for(block))
        return
    block = build(4).to(dtype)  # enough values for a meaningful largest error
    assert_trains_as_eager(block, away_from_kinks(block, x_for(block, dtype)))


@pytest.mark.parametrize("build", list(blocks()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_one_step_of_any_data_matches_float64(build, dtype, memory_format):
    block = build(4).to(dtype)
    assert_trains_as_computed(block, x_for(block, dtype, memory_format=memory_format))


@pytest.mark.parametrize("cls", list(CLASSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_any_data_matches_float64(cls, dtype):
    block = identity(cls, 4)
    assert_trains_as_computed(block, x_for(block, dtype), dtype=dtype, enabled=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_relu_mask_differing_in_backward_is_caught(dtype, monkeypatch):
    # Without bfloat16 instructions eager's error is too large to notice a single wrong element, so change 2 %.
    share = 0.02 if dtype is torch.bfloat16 else 0

    class Mistaken(backward.Backward):
        def __init__(self, x, tensors, layout, group, out, *others):
            nearly_closed = (out > 0) & (out <= out[out > 0].float().quantile(share))
            super().__init__(x, tensors, layout, group, torch.where(nearly_closed, 0, out), *others)

    block = identity(modules.FusedBasicBlock, 4).to(dtype)
    x = x_for(block, dtype)
    assert_trains_as_computed(block, x)
    monkeypatch.setattr(train, "Backward", Mistaken)
    with pytest.raises(AssertionError, match="error"):
        assert_trains_as_computed(block, x)


@pytest.mark.parametrize("build", list(blocks()))
def test_one_step_with_recomputed_convolutions(build):
    block = build()
    x = x_for(block)
    direction = torch.randn_like(copy.deepcopy(block)(x))
    other = copy.deepcopy(block)
    other.recompute = True
    for a, b in zip(step(block, x, direction)[1].values(), step(other, x, direction)[1].values(), strict=True):
        assert torch.equal(a, b)


def test_projected_stride_1_bottleneck_recomputes_convolution(monkeypatch):
    block = randomise(modules.FusedBottleneck(16, 16, 1, projection(16, 64, 1)))
    x = x_for(block)
    first = everything(copy.deepcopy(block), x)
    convolved = []
    convolve = convolutions.convolve
    monkeypatch.setattr(
        backward, "convolve", lambda *args, **how: (convolved.append(args[2]), convolve(*args, **how))[1]
    )
    again = everything(copy.deepcopy(block), x)
    assert len(convolved) == 1
    monkeypatch.setattr(forward, "_is_recomputed", lambda *_: False)
    saved = everything(copy.deepcopy(block), x)
    assert len(convolved) == 1
    for a, b, c in zip(first, again, saved, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize("cls", list(CLASSES))
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_formats(cls, x_format, weight_format):
    block = identity(cls).to(memory_format=weight_format)
    assert_trains_as_eager(block, x_for(block, memory_format=x_format))


@pytest.mark.parametrize("cls", list(CLASSES))
def test_strided_inputs(cls):
    block = identity(cls)
    whole = torch.randn(4, in_channels(block), 12, 12)
    for x in (whole[::2, :, 1:9, ::2], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1)):
        twin = eager_twin(block)
        y, expected = block(x), twin(x)
        torch.testing.assert_close(y, expected)
        for network, out in ((block, y), (twin, expected)):
            network.zero_grad()
            out.sum().backward()  # an expanded gradient
        for a, b in zip(block.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def recorded_weights(monkeypatch):
    """Returns a list of the weights' shapes in all coming convolutions and input gradients that our kernels compute."""
    shapes = []

    def recorded(op):
        def call(*args, **how):
            with OpsOfTorch() as called:
                found = op(*args, **how)
            if not called.convolved():
                shapes.append(args[1].shape)
            return found

        return call

    for name in ("conv_forward", "conv_backward_input"):
        monkeypatch.setattr(ops, name, recorded(getattr(ops, name)))
    return shapes


@pytest.mark.parametrize("cls", [modules.FusedBasicBlock, modules.FusedPreActBlock])
def test_large_float32_layers_use_our_convolutions(cls, monkeypatch):
    block = identity(cls)
    x = x_for(block, n=4, h=17, w=16, memory_format=torch.channels_last)
    assert x[:, 0].numel() >= 1024  # csrc/cpu/plan.cpp
    called = recorded_weights(monkeypatch)
    assert_trains_as_eager(block, x)
    ours = 4 if isa_of_kernels(torch.float32) else 0
    assert len(called) == ours, "two forward, and two gradients of their inputs"
    block(x[:3]).sum().backward()
    assert len(called) == ours, "too few pixels"


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
def test_large_pointwise_results_use_our_convolutions(autocast, monkeypatch):
    # Above that all do.
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "avx512_bf16" if autocast else "avx2")
    block = projected(modules.FusedBottleneck)
    x = x_for(block, n=4, h=34, w=32, memory_format=torch.channels_last)
    called = recorded_weights(monkeypatch)
    how = {"enabled": autocast, "dtype": torch.bfloat16}
    assert_trains_as_eager(block, x, **how)
    assert not any(tuple(shape[2:]) == (1, 1) for shape in called)
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")  # as if they were larger
    assert_trains_as_eager(block, x, **how)
    pointwise = [shape for shape in called if tuple(shape[2:]) == (1, 1)]
    assert len(pointwise) == 5, "three forward, and two gradients of inputs: the projection has a stride of 2"


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
def test_16_bits_slow_in_torch_train_in_float32(isa, dtype, groups, monkeypatch):
    """Where a processor lacks the type's instructions, PyTorch's convolutions get float32."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", isa)
    if isa_of_kernels(dtype) not in ("AVX2", "AVX-512"):
        pytest.skip("this processor has instructions for the type, or no AVX2")
    block = randomise(modules.FusedBottleneck(32, 16, 2, projection(32, 64, 2), groups=groups)).to(dtype)
    x = x_for(block, dtype, n=4, h=17, w=18, memory_format=torch.channels_last)
    with convolution_dtypes() as seen:
        y = block(x)
        y.backward(torch.ones_like(y))
    assert len(seen) >= 5 and set(seen) == {"float"}
    assert_trains_as_computed(block, x)


@contextlib.contextmanager
def convolution_dtypes():
    """Yields a list that receives the dtype of every convolution and gradient that torch computes meanwhile."""
    found = []
    with torch.profiler.profile(record_shapes=True) as profile:
        yield found
    names = ("aten::convolution", "aten::convolution_backward")
    for event in profile.profiler.kineto_results.events():
        if event.name() in names:
            found.append(event.dtypes()[0])


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("channels", [(16, 16), (20, 33)])
def test_input_gradient_as_convolution_matches_eager(padding, channels, monkeypatch):
    c, k = channels
    weight = torch.randn(k, c, 3, 3).contiguous(memory_format=torch.channels_last)
    slots = layout.ConvSlots(0, None, (1, 1), (padding, padding), (1, 1), 1)
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "winograd")
    x = torch.randn(4, c, 20, 19).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = nn.functional.conv2d(x, weight, None, 1, padding)
    grad = torch.randn_like(y)
    found = convolutions.input_gradient(grad, x.detach(), weight, slots)
    (expected,) = torch.autograd.grad(y, x, grad)
    if padding == 3:  # the convolution would need negative padding
        assert found is None
        return
    exact = x.detach().double().requires_grad_()
    doubles = nn.functional.conv2d(exact, weight.double(), None, 1, padding)
    (truth,) = torch.autograd.grad(doubles, exact, grad.double())
    assert found.stride() == expected.stride()
    assert_close(found, expected, truth)


def test_without_gradients_statistics_still_update():
    block = identity(modules.FusedBasicBlock)
    twin = eager_twin(block)
    x = x_for(block)
    with torch.no_grad():
        y, expected = block(x), twin(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, expected)
    for a, b in zip(block.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("cls", list(CLASSES))
def test_running_averages_over_many_steps(cls):
    block = identity(cls)
    twin = eager_twin(block)
    for _ in range(5):
        x = 3 + torch.randn(4, in_channels(block), 5, 5)
        block(x), twin(x)
    for (name, a), b in zip(block.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def test_one_value_per_channel_raises_eagers_error():
    block = identity(modules.FusedBasicBlock)
    for network in (block, eager_twin(block)):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            network(torch.randn(1, 8, 1, 1))


@pytest.mark.parametrize("cls", list(CLASSES))
def test_steps_are_bitwise_reproducible(cls):
    block = identity(cls, scale=4)
    x = x_for(block, n=8, h=17, w=13)
    torch.set_num_threads(2)
    first, second = (everything(copy.deepcopy(block), x) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def everything(block, x, call=None):
    """Returns output, gradients and buffers after one step of ``block``, run through ``call`` if given."""
    y = (block if call is None else call)(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *block.parameters()]), *block.buffers()]


@pytest.mark.parametrize("cls", list(CLASSES))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(cls, dtype):
    block = identity(cls, 4)  # enough values for a meaningful largest error
    x = away_from_kinks(block, x_for(block, dtype))
    assert_trains_as_eager(block, x, dtype=dtype, enabled=True)


def test_autocast_of_float32_activations():
    """A projection reads the rounded input. An identity is added unrounded, which only eager does."""
    block = projected(modules.FusedBasicBlock)
    assert_trains_as_eager(block, away_from_kinks(block, x_for(block)), dtype=torch.bfloat16, enabled=True)
    block = identity(modules.FusedBasicBlock)
    assert_trains_as_eager(block, x_for(block), fused=False, dtype=torch.bfloat16, enabled=True)
    block = identity(modules.FusedPreActBlock)
    assert_trains_as_eager(block, x_for(block), fused=False, dtype=torch.bfloat16, enabled=True)


def test_gradient_scaling():
    """Scaling keeps small float16 gradients from vanishing; a step with overflowing gradients is skipped."""
    block = projected(modules.FusedBasicBlock)
    optimiser = torch.optim.SGD(block.parameters(), 0.01)
    x = x_for(block)
    for scale, expected in ((2.0**12, True), (2.0**40, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        before = block.conv1.weight.detach().clone()
        with torch.autocast("cpu", torch.float16):
            y = block(x)
        assert is_trained(y)
        optimiser.zero_grad()
        scaler.scale(1e-6 * y.float().square().sum()).backward()
        scaler.step(optimiser)
        scaler.update()
        assert torch.equal(block.conv1.weight, before) != expected
        assert (scaler.get_scale() == scale) == expected


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    block = projected(modules.FusedBottleneck)
    plain = copy.deepcopy(block)
    x = x_for(block)
    y = torch.utils.checkpoint.checkpoint(block, x, use_reentrant=reentrant)
    gradients = torch.autograd.grad(plain(x).square().sum(), [x, *plain.parameters()])
    y.square().sum().backward()
    for a, b in zip([x.grad, *(p.grad for p in block.parameters())], gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("build", list(blocks()))
def test_second_derivatives_match_eager(build):
    block = build().double()
    twin = eager_twin(block)
    x = x_for(block, torch.float64)
    found = []
    for network in (block, twin):
        network(x)  # changes the running averages, which must not matter
        learning = [x, *network.parameters()]
        y = network(x)
        direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        first = torch.autograd.grad((y * direction).sum(), learning, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append([*first, *torch.autograd.grad(penalty, learning, allow_unused=True, materialize_grads=True)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("cls", "dynamic"), [(cls, "PreAct" in cls.__name__ or cls is modules.FusedBottleneck) for cls in CLASSES]
)
def test_a_compiled_training_step(cls, dynamic):
    block = projected(cls) if cls in WITH_SHORTCUT else identity(cls)
    twin = copy.deepcopy(block)
    optimisers = [torch.optim.SGD(each.parameters(), 0.1, momentum=0.9) for each in (block, twin)]

    torch._dynamo.reset()  # all cases compile the same code, each for another block
    compiled = torch.compile(lambda x: block(x).square().mean(), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (2, 3):
        x = torch.randn(n, in_channels(block), 6, 6)
        losses = [compiled(x), twin(x).square().mean()]
        for loss, optimiser in zip(losses, optimisers, strict=True):
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        torch.testing.assert_close(*losses)
    for (name, a), b in zip(block.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@pytest.mark.parametrize("preact", [False, True])
def test_a_compiled_training_step_of_a_whole_network(preact):
    """Stem, blocks with and without projection, tail and loss compile to one graph that updates running averages."""
    torch._dynamo.reset()
    network = models.cifar_resnet(8, preact=preact)
    twin = eager_twin(network)
    optimisers = [torch.optim.SGD(each.parameters(), 0.1, momentum=0.9) for each in (network, twin)]
    step_of = lambda x, labels: nn.functional.cross_entropy(network(x), labels)  # noqa: E731
    compiled = torch.compile(step_of, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x, labels = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
        losses = [compiled(x, labels), nn.functional.cross_entropy(twin(x), labels)]
        for loss, optimiser in zip(losses, optimisers, strict=True):
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    for (name, a), b in zip(network.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


@needs_compiler
def test_inductor_trains():
    block = identity(modules.FusedBasicBlock)
    twin = copy.deepcopy(block)
    compiled = torch.compile(block, fullgraph=True)
    x = x_for(block)
    for a, b in zip(everything(block, x, compiled), everything(twin, x), strict=True):
        torch.testing.assert_close(a, b)
