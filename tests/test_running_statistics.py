"""Running statistics change exactly when eager's do: empty batches, checkpointing, older graphs."""

import copy

import pytest
import torch
from criterion import assert_close
from support import randomise
from torch import nn
from torch.utils.checkpoint import checkpoint
from training import (
    CLASSES,
    WITH_SHORTCUT,
    eager_twin,
    identity,
    in_channels,
    is_trained,
    projected,
)

import resnet_fused
from resnet_fused import functional, models, modules
from resnet_fused.chain import statistics
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def blocks():
    for cls in CLASSES:
        yield pytest.param(lambda cls=cls: (identity(cls), CLASSES[cls][0]), id=f"{cls.__name__}-identity")
    for cls in WITH_SHORTCUT:
        yield pytest.param(lambda cls=cls: (projected(cls), CLASSES[cls][0]), id=f"{cls.__name__}-projected")


def networks():
    for name, build in {
        "resnet18": lambda: models.resnet18(10),
        "cifar": models.small_resnet,
        "preact": models.small_preact_resnet,
        "plain": lambda: models.cifar_resnet(8, residual=False),
    }.items():
        yield pytest.param(lambda build=build: (resnet_fused.convert(randomise(build())), 3), id=name)


def assert_same_buffers(module, twin, **tolerance):
    for (name, a), b in zip(module.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, **tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("build", [*blocks(), *networks()])
@pytest.mark.parametrize("momentum", [0.1, None], ids=["momentum", "cumulative"])
def test_empty_batch_counts_and_keeps_the_averages(build, momentum):
    module, channels = build()
    module.double()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = momentum
    twin = eager_twin(module)
    results = []
    for each in (module, twin):
        x = torch.randn(0, channels, 16, 16, dtype=torch.float64).requires_grad_()
        y = each(x)
        y.sum().backward()
        results.append((y, x.grad, *(p.grad for p in each.parameters())))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
        assert a.shape == b.shape
    assert_same_buffers(module, twin, rtol=0, atol=0)
    with torch.no_grad():
        module(x), twin(x)
    assert_same_buffers(module, twin, rtol=0, atol=0)
    x = torch.randn(4, channels, 32, 32, dtype=torch.float64)  # training continues
    module(x), twin(x)
    assert_same_buffers(module, twin)


@pytest.mark.parametrize("build", [*blocks(), *networks()])
@pytest.mark.parametrize("grad", [False, True])
def test_an_empty_batch_in_eval_mode(build, grad):
    module, channels = build()
    module.eval()
    twin = eager_twin(module)
    x = torch.randn(0, channels, 16, 16)
    with torch.set_grad_enabled(grad):
        y, expected = module(x.requires_grad_(grad)), twin(x)
    assert y.shape == expected.shape
    if grad:
        wanted = [x, *module.parameters()]
        gradients = torch.autograd.grad(y.sum(), wanted)
        assert [g.shape for g in gradients] == [t.shape for t in wanted]
        assert not any(g.any() for g in gradients)
    assert_same_buffers(module, twin, rtol=0, atol=0)


def test_an_empty_batch_is_differentiable_twice():
    block = projected(modules.FusedBasicBlock)
    x = torch.randn(0, 8, 6, 6).requires_grad_()
    gradients = torch.autograd.grad(block(x).sum(), [x, *block.parameters()], create_graph=True)
    sum(g.sum() for g in gradients).backward()
    assert not any(p.grad.any() for p in block.parameters() if p.grad is not None)


def test_empty_batches_of_the_functions():
    weight, norm = torch.randn(6, 4, 3, 3).requires_grad_(), functional.BatchNorm(torch.randn(6), torch.rand(6))
    x = torch.randn(0, 4, 7, 8).requires_grad_()
    y = functional.conv_bn_act(x, weight, norm, padding=1)
    assert y.shape == (0, 6, 7, 8)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    pooled = functional.conv_bn_relu_pool(x, weight, norm, padding=1)
    assert pooled.shape == (0, 6, 2, 2)
    pooled.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_a_compiled_step_of_an_empty_batch():
    torch._dynamo.reset()
    block = identity(modules.FusedBasicBlock)
    before = copy.deepcopy(dict(block.named_buffers()))
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    compiled(torch.randn(0, 8, 6, 6)).sum().backward()
    for name, buffer in block.named_buffers():
        assert torch.equal(buffer, before[name] + (1 if "batches" in name else 0)), name


def eval_then_train(module, u, v, wanted):
    """Returns an eval-mode loss, and the gradients of its sum with a training-mode loss.

    The training-mode forward pass updates the statistics before the backward pass of the eval-mode loss.
    """
    module.eval()
    a = module(u).square().mean()
    module.train()
    b = module(v).square().mean()
    return a, torch.autograd.grad(a + b, wanted)


@pytest.mark.parametrize("build", [*blocks(), *networks()])
def test_eval_graph_is_right_after_a_training_step(build):
    module, channels = build()
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.5  # changes the buffers a lot
    module.double()
    twin = eager_twin(module)
    torch.manual_seed(1)
    u, v = torch.randn(2, 2, channels, 16, 16, dtype=torch.float64)
    found = [eval_then_train(each, u, v, list(each.parameters())) for each in (module, twin)]
    torch.testing.assert_close(found[0][0], found[1][0])
    for (name, _), a, b in zip(module.named_parameters(), found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("cls", [modules.FusedBasicBlock, modules.FusedPreActBlock])
def test_second_derivatives_after_a_training_step(cls):
    block = projected(cls).double()
    twin = eager_twin(block)
    torch.manual_seed(1)
    u = torch.randn(2, 8, 6, 6, dtype=torch.float64).requires_grad_()
    v = 3 + torch.randn(2, 8, 6, 6, dtype=torch.float64)
    found = []
    for each in (block, twin):
        each.eval()
        loss = each(u).square().mean()
        each.train()
        each(v)
        first = torch.autograd.grad(loss, [u, *each.parameters()], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        found.append([*first, *torch.autograd.grad(penalty, [u, *each.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_restored_statistics_give_the_same_gradients(dtype):
    block = identity(modules.FusedBasicBlock).to(dtype).eval()
    x = torch.randn(2, 8, 6, 6, dtype=dtype).requires_grad_()
    y = block(x)
    assert is_trained(y)
    first = torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()], retain_graph=True)
    with torch.no_grad():
        for norm in (block.bn1, block.bn2):
            used = norm.running_var.clone()
            norm.running_var.data.mul_(4)
            norm.running_var.data.copy_(used)
    again = torch.autograd.grad(y.float().square().sum(), [x, *block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_buffer_versions_match_eager():
    block = identity(modules.FusedBasicBlock)
    twin = eager_twin(block)
    x = torch.randn(2, 8, 6, 6)
    for each in (block, twin):
        before = {name: buffer._version for name, buffer in each.named_buffers()}
        each(x)
        moved = {name for name, buffer in each.named_buffers() if buffer._version != before[name]}
        assert moved == {"bn1.num_batches_tracked", "bn2.num_batches_tracked"}


def test_in_place_change_of_statistics_is_an_error():
    block = identity(modules.FusedBasicBlock).eval()
    y = block(torch.randn(2, 8, 6, 6).requires_grad_())
    block.bn1.running_mean.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("where", ["each", "all", "followed"])
@pytest.mark.parametrize("cls", list(CLASSES))
def test_checkpointing_updates_twice_as_eager_does(cls, where, reentrant):
    blocks = nn.Sequential(*(identity(cls) for _ in range(3)))
    if where == "followed":
        blocks.append(nn.Conv2d(in_channels(blocks[0]), 4, 1))
    twin = eager_twin(blocks)
    x = torch.randn(2, in_channels(blocks[0]), 6, 6)
    for each in (blocks, twin):
        y = x.clone().requires_grad_()
        for part in each if where == "each" else (each,):
            y = checkpoint(part, y, use_reentrant=reentrant)
        y.square().sum().backward()
    assert_same_buffers(blocks, twin, rtol=1e-5, atol=1e-6)
    # In a pre-activation block a convolution follows bn2, so recomputation reaches bn2 in eager too.
    assert int(blocks[2].bn2.num_batches_tracked) == 2


@pytest.mark.parametrize("build", list(networks()))
def test_a_checkpointed_network(build):
    network = build()[0].double()
    twin = eager_twin(network)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    for each in (network, twin):
        checkpoint(each, x.clone().requires_grad_(), use_reentrant=False).square().sum().backward()
    assert_same_buffers(network, twin)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_norm_without_a_counter_updates_as_in_eager(momentum):
    block = modules.FusedBasicBlock(8, 8)
    block.bn1.num_batches_tracked, block.bn1.momentum = None, momentum
    twin = copy.deepcopy(block)
    assert resnet_fused.report(resnet_fused.revert(copy.deepcopy(block)))[""].status == "convertible"
    x = torch.randn(2, 8, 5, 5)
    assert is_trained(block(x))
    twin._eager_class.forward(twin, x)
    torch.testing.assert_close(block.bn1.running_mean, twin.bn1.running_mean)
    torch.testing.assert_close(block.bn1.running_var, twin.bn1.running_var)


def test_failed_step_leaves_no_pending_updates():
    """The pending updates of a failed block must not apply to another block."""
    block, other = identity(modules.FusedBasicBlock), identity(modules.FusedBasicBlock)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(torch.randn(1, 8, 1, 1))
    x = torch.randn(2, 8, 6, 6)
    twin = eager_twin(other)
    other(x), twin(x)
    assert_same_buffers(other, twin)
    y = functional.conv_bn_act(x, torch.randn(8, 8, 1, 1).requires_grad_())
    assert y.requires_grad
    assert_same_buffers(other, twin)


def test_running_averages_meet_the_criterion():
    block = identity(modules.FusedBasicBlock)
    twin = eager_twin(block)
    exact = copy.deepcopy(twin).double()
    x = 5 + torch.randn(4, 8, 6, 6)
    block(x), twin(x), exact(x.double())
    for (name, a), b, truth in zip(block.named_buffers(), twin.buffers(), exact.buffers(), strict=True):
        if "batches" not in name:
            assert_close(a, b, truth)


@pytest.mark.parametrize("momenta", [(0.1, 0.3), (None, None), (0.1, None), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_running_averages_of_several_norms(momenta, dtype):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(channels, momentum=m).to(dtype) for channels, m in zip((5, 8), momenta, strict=True)]
    expected, exact = copy.deepcopy(norms), [copy.deepcopy(norm).double() for norm in norms]
    for _ in range(3):
        batches = [5 + torch.randn(3, norm.num_features, 4, 2, dtype=dtype) for norm in norms]
        statistics.update_running(norms, [statistics.batch_statistics(x, "") for x in batches])
        for norm, double, x in zip(expected, exact, batches, strict=True):
            norm(x), double(x.double())
    for ours, eager, truth in zip(norms, expected, exact, strict=True):
        assert_close(ours.running_mean, eager.running_mean, truth.running_mean)
        assert_close(ours.running_var, eager.running_var, truth.running_var)
        assert ours.num_batches_tracked == eager.num_batches_tracked == 3


def test_norm_used_twice_updates_twice():
    norm = nn.BatchNorm2d(8)
    twin = copy.deepcopy(norm)
    batches = [torch.randn(2, 8, 3, 3), 5 + torch.randn(2, 8, 3, 3)]
    statistics.update_running([norm, norm], [statistics.batch_statistics(x, "") for x in batches])
    for x in batches:
        twin(x)
    torch.testing.assert_close(norm.state_dict(), twin.state_dict())


def test_infinite_average_stays_infinite():
    """As in eager. An update by the difference of the averages would give NaN."""
    norm = nn.BatchNorm2d(2)
    norm.running_var.fill_(float("inf"))
    statistics.update_running([norm], [statistics.batch_statistics(torch.randn(2, 2, 3, 3), "")])
    assert norm.running_var.isinf().all()


def test_norms_that_share_buffers_update_them_in_turn():
    norms = [nn.BatchNorm2d(8), nn.BatchNorm2d(8)]
    norms[1].running_mean, norms[1].running_var = norms[0].running_mean, norms[0].running_var
    twins = copy.deepcopy(norms)
    batches = [torch.randn(2, 8, 3, 3), 5 + torch.randn(2, 8, 3, 3)]
    statistics.update_running(norms, [statistics.batch_statistics(x, "") for x in batches])
    for twin, x in zip(twins, batches, strict=True):
        twin(x)
    torch.testing.assert_close(norms[1].running_mean, twins[1].running_mean)
    torch.testing.assert_close(norms[1].running_var, twins[1].running_var)
