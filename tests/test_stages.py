"""A converted network calls the modules of its stages like eager, with the same inputs."""

import copy

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused import models, reference


class Twice(resnet_fused.FusedBasicBlock):
    def forward(self, x):
        return super().forward(x) * 2


def network(block=reference.BasicBlock):
    torch.manual_seed(1)
    return models.ResNet(block, [1, 1, 1, 1], 10).eval()


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64)


def check(model, eager, x):
    with torch.no_grad():
        torch.testing.assert_close(model(x), eager(x))


def test_subclass_with_its_own_forward_is_called(x):
    model = network(Twice)
    check(resnet_fused.convert(copy.deepcopy(model)), model, x)


def test_forward_replaced_on_a_fused_class_runs(x, monkeypatch):
    model = resnet_fused.convert(network())
    with torch.no_grad():
        before = model(x)
    forward = resnet_fused.FusedBasicBlock.forward
    monkeypatch.setattr(resnet_fused.FusedBasicBlock, "forward", lambda self, x: forward(self, x) * 2)
    with torch.no_grad():
        assert not torch.allclose(model(x), before)


def test_a_stage_that_returns_a_vector(x):
    eager = network()
    eager.layer4 = nn.Sequential(eager.layer4, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    eager.avgpool = nn.Identity()
    check(resnet_fused.convert(copy.deepcopy(eager)), eager, x)


class Pair(nn.Module):
    def forward(self, x):
        return (x, x * 2) if torch.is_tensor(x) else x[0] + x[1]


def test_a_stage_that_returns_a_pair(x):
    eager = network()
    eager.layer3, eager.layer4 = nn.Sequential(eager.layer3, Pair()), nn.Sequential(Pair(), eager.layer4)
    check(resnet_fused.convert(copy.deepcopy(eager)), eager, x)


@pytest.mark.parametrize("gradients", [False, True])
def test_pooling_may_be_a_function(x, gradients):
    eager = network()
    model = resnet_fused.convert(copy.deepcopy(eager))
    for each in (model, eager):
        del each.maxpool
        each.maxpool = lambda y: nn.functional.avg_pool2d(y, 4)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(model(x), eager(x))
    model.maxpool = None
    with pytest.raises(TypeError, match="not callable"):
        model(x)


def test_recompute_keeps_gradients_bitwise(x):
    model = resnet_fused.convert(network()).train()
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, resnet_fused.FusedBasicBlock):
            module.recompute = True
    grads = []
    for each in (model, twin):
        each(x).square().sum().backward()
        grads.append([p.grad for p in each.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("what", ["hook added", "block replaced", "forward replaced"])
def test_stage_changed_during_the_forward_pass(x, what):
    calls = []

    def change(module, _inputs, _output):
        following = module.following[0]
        if what == "hook added":
            following.register_forward_hook(lambda *_: calls.append(what))
        elif what == "block replaced":
            following[0] = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(64, 128, 1, bias=False))
        else:
            following[0].forward = lambda y: nn.functional.avg_pool2d(torch.cat([y, y], 1), 2)

    found = []
    for convert in (False, True):
        model = network()
        model.layer1.following = [model.layer2]  # in a list, so it is not a submodule
        model.layer1.register_forward_hook(change)
        if convert:
            resnet_fused.convert(model)
        torch.manual_seed(2)
        with torch.no_grad():
            found.append(model(x))
    torch.testing.assert_close(*found)
    assert len(calls) == (2 if what == "hook added" else 0)
