"""Visible tensors can be resized as in eager; internal ones come from the pool."""

from typing import ClassVar

import pytest
import torch
from support import needs_compiler
from torch import nn

import resnet_fused
from resnet_fused import functional, models, ops, reference
from resnet_fused.functional import BatchNorm

LARGE = (2, 64, 96, 96)  # 4.5 MiB in float32: large enough for the pool


def assert_resizes(t):
    assert t.nbytes >= 2 << 20, "smaller ones are torch's anyway"
    larger = (t.numel() + 1,)
    assert t.detach().resize_(larger).shape == larger


def norm(channels=64):
    return BatchNorm.of(nn.BatchNorm2d(channels))


def large(last):
    x = torch.randn(LARGE)
    return x.contiguous(memory_format=torch.channels_last) if last else x


FUNCTIONS = {
    "conv_bn_act": lambda x, w: functional.conv_bn_act(x, w, norm(), padding=1, residual=x),
    "pointwise": lambda x, w: functional.conv_bn_act(x, w[:, :, :1, :1], norm()),
    "bn_relu_conv_bn_act": lambda x, w: functional.bn_relu_conv_bn_act(x, norm(), w, norm(), padding=1),
    "conv_bn_proj_act": lambda x, w: functional.conv_bn_proj_act(
        x, w, norm(), x, functional.Projection(w[:, :, :1, :1], norm()), padding=1
    ),
    "conv_bn_relu_pool": lambda x, w: functional.conv_bn_relu_pool(x, w, norm(), stride=1, padding=1, pool_stride=1),
    "bn_add_act": lambda x, w: functional.bn_add_act(x, norm(), residual=x),
    "basic_block": lambda x, w: functional.basic_block(x, w, norm(), w, norm()),
    "preact_block": lambda x, w: functional.preact_block(x, norm(), w, norm(), w),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_function_results_can_be_resized(name, last):
    weight = torch.randn(64, 64, 3, 3) / 24
    with torch.no_grad():
        assert_resizes(FUNCTIONS[name](large(last), weight))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_gradients_can_be_resized(name):
    weight = (torch.randn(64, 64, 3, 3) / 24).requires_grad_()
    x = large(last=True).requires_grad_()
    y = FUNCTIONS[name](x, weight)
    (to_x,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert_resizes(y)
    assert_resizes(to_x)


BLOCKS = [resnet_fused.FusedBasicBlock, resnet_fused.FusedPreActBlock, resnet_fused.FusedBottleneck]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: b.__name__)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_results_of_a_single_block_can_be_resized(block, training, last):
    module = block(64, 64 // block.expansion).train(training)
    if training:
        x = large(last).requires_grad_()
        y = module(x)
        (to_x,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert_resizes(to_x)
    else:
        with torch.no_grad():
            y = module(large(last))
    assert_resizes(y)


def test_large_weight_gradients_can_be_resized():
    block = resnet_fused.FusedBasicBlock(256, 256)
    block(torch.randn(1, 256, 14, 14)).sum().backward()
    assert_resizes(block.conv1.weight.grad)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_network_features_can_be_resized(training):
    network = resnet_fused.convert(models.resnet18()).train(training)
    network.layer2 = network.layer3 = network.layer4 = nn.Identity()
    seen = []
    network.avgpool = nn.Sequential(Watch(seen), nn.AdaptiveAvgPool2d(1))
    network.fc = nn.Identity()
    with torch.set_grad_enabled(training):
        network(torch.randn(4, 3, 192, 192))
    assert_resizes(seen[0])


class Watch(nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(x)
        return x


class Shortcut(nn.Module):
    """A user's shortcut, which may do anything with its input."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen
        self.conv = nn.Conv2d(64, 64, 1, bias=False)

    def forward(self, x):
        self.seen.append(x)
        return self.conv(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("make", ["shortcut", "eager block", "hook"])
def test_tensors_seen_between_fused_blocks_can_be_resized(training, make):
    network = resnet_fused.convert(models.resnet18()).train(training)
    seen = []
    second = network.layer1[1]
    if make == "shortcut":
        second.downsample = Shortcut(seen)
    elif make == "eager block":
        network.layer1[1] = nn.Sequential(Watch(seen), reference.BasicBlock(64, 64))
    else:
        second.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.set_grad_enabled(training):
        network(torch.randn(4, 3, 192, 192))
    assert_resizes(seen[0])


IN_BOTH_FORMATS = {  # dense as contiguous and as channels_last: the kernel's buffer is returned without a copy
    "one channel": lambda w: functional.conv_bn_act(torch.randn(8, 4, 256, 256), w(1, 4, 1, 1), norm(1)),
    "one pixel": lambda w: functional.conv_bn_act(torch.randn(1024, 8, 1, 1), w(512, 8, 1, 1), norm(512)),
    "one channel, pooled": lambda w: functional.conv_bn_relu_pool(
        torch.randn(8, 1, 258, 258), w(1, 1, 3, 3), norm(1), stride=1, padding=1, pool_stride=1
    ),
    "one pixel, pooled": lambda w: functional.conv_bn_relu_pool(
        torch.randn(2048, 2, 4, 4), w(256, 2, 3, 3), norm(256), stride=1, padding=1, pool_kernel=4, pool_stride=4,
        pool_padding=0,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_BOTH_FORMATS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_results_dense_in_both_formats_can_be_resized(name, training):
    assert_resizes(IN_BOTH_FORMATS[name](lambda *shape: torch.randn(shape, requires_grad=training)))


class Conv(nn.Conv2d):
    """A layer that fused blocks do not know, so that its block runs eagerly."""

    seen: ClassVar[list] = []

    def forward(self, x):
        self.seen.append(x)
        return super().forward(x)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)], ids=["eager", "compiled"])
def test_inputs_of_layers_in_eager_blocks_can_be_resized(training, compiled):
    network = resnet_fused.convert(models.CifarResNet([2], (64,))).train(training)
    network.layer1[1].conv1 = Conv(64, 64, 3, padding=1, bias=False)
    network.to(memory_format=torch.channels_last)
    run = torch.compile(network) if compiled else network
    Conv.seen.clear()
    with torch.set_grad_enabled(training):
        run(torch.randn(2, 3, 96, 96).contiguous(memory_format=torch.channels_last))
    assert_resizes(Conv.seen[-1])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_fused_blocks_pass_internal_results(training, monkeypatch):
    """Pooled results are faster: fresh memory costs a page fault every 4 KiB."""
    network = resnet_fused.convert(models.resnet18()).train(training)
    x = torch.randn(4, 3, 192, 192)
    made = []
    name = "bn_add_act" if training else "basic_block"
    end = getattr(ops, name)  # the last op of most blocks
    internal = len(end._schema.arguments) - 1

    def recording(*args, **how):
        made.append(args[internal] if len(args) > internal else how.get("internal", False))
        return end(*args, **how)

    monkeypatch.setattr(ops, name, recording)
    with torch.set_grad_enabled(training):
        network(x)
    assert made, "the path that this test looks at"
    assert made.count(True) >= len(made) - 1, "all but the last block's output"


def test_internal_result_equals_the_public_one():
    x, weight = large(last=True), torch.randn(64, 64, 3, 3) / 24
    args = (weight, None, None, None, None, None, 0.0, (1, 1), (1, 1), (1, 1), 1, None, True, False, False)
    assert torch.equal(ops.conv_bn_act(x, *args), ops.conv_bn_act(x, *args, True))
    pooled = ops.bn_add_act(x, None, None, None, None, 0.0, None, True, True)
    assert torch.equal(pooled, x.relu())
    assert not pooled.untyped_storage().resizable()
