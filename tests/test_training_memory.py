"""Bytes that a block saves for backward, counted with autograd's hooks and compared with eager."""

import copy

import pytest
import torch
from torch import nn
from training import eager_twin, projection

from resnet_fused import convert, models, modules
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def saved(module, x):
    """Returns address -> bytes of the storages that autograd saves for ``module(x)``, without the module's own."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x)
    alive = y  # keeps the graph, so that no address is reused while counting
    assert alive is not None
    return found


def ratio(block, x):
    twin = eager_twin(block)
    return sum(saved(block, x).values()) / sum(saved(twin, x).values())


WIDE = modules.FusedBottleneck
CASES = {
    "basic": (lambda: modules.FusedBasicBlock(32, 32), 0.82),
    "basic with projection": (lambda: modules.FusedBasicBlock(32, 64, 2, projection(32, 64, 2)), 0.87),
    "bottleneck": (lambda: WIDE(64, 16), 0.90),
    "bottleneck with projection": (lambda: WIDE(64, 32, 2, projection(64, 128, 2)), 0.86),
    "bottleneck with projection of stride 1": (lambda: WIDE(16, 16, 1, projection(16, 64, 1)), 0.86),
    "dilated bottleneck with projection": (lambda: WIDE(32, 16, 1, projection(32, 64, 1), dilation=2), 0.86),
    "pre-activation": (lambda: modules.FusedPreActBlock(32, 32), 0.55),
    "pre-activation bottleneck": (lambda: modules.FusedPreActBottleneck(64, 16), 0.55),
    "bottleneck, recompute": (lambda: recomputing(WIDE(64, 16)), 0.57),
    "bottleneck with projection, recompute": (lambda: recomputing(WIDE(64, 32, 2, projection(64, 128, 2))), 0.45),
    "basic with projection, recompute": (lambda: recomputing(CASES["basic with projection"][0]()), 0.73),
}


def recomputing(block):
    block.recompute = True
    return block


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_saved_bytes_stay_below_the_limit(name, memory_format):
    build, limit = CASES[name]
    block = build()
    x = torch.randn(8, next(block.parameters()).shape[-3 if "pre" not in name else 0], 16, 16)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    assert ratio(block, x) <= limit


@pytest.mark.parametrize("autocast", [False, True])
def test_saved_tensors_are_the_documented_ones(autocast):
    block = modules.FusedBasicBlock(32, 32)
    x = torch.randn(4, 32, 16, 16).to(torch.bfloat16 if autocast else torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        storages = saved(block, x)
    weights = [w.numel() * 2 for w in (block.conv1.weight, block.conv2.weight)] if autocast else []  # cast copies
    vectors = [c * 4 for c in (32, 32) * 2]  # mean, variance of each BatchNorm
    assert sorted(storages.values()) == sorted([x.nbytes] * 4 + weights + vectors)


def test_nothing_is_saved_without_gradients():
    block = modules.FusedBasicBlock(8, 8).requires_grad_(False)
    assert not saved(block, torch.randn(2, 8, 4, 4))


def test_networks_save_less_than_eager():
    """Besides its input a stem saves only the output of its convolution; blocks share outputs and inputs."""
    network = models.small_resnet(10)
    fused = convert(copy.deepcopy(network))
    x = torch.randn(8, 3, 32, 32)
    assert sum(saved(fused, x).values()) <= 0.85 * sum(saved(network, x).values())


@pytest.mark.parametrize("pools", [False, True])
def test_stem_saves_its_input_and_pre_bn_output(pools):
    """With pooling it also saves one byte per pooled value."""

    class Stem(modules.FusedStem):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
            self.relu = nn.ReLU(inplace=True)
            self.maxpool = nn.MaxPool2d(3, 2, 1) if pools else nn.Identity()

        def forward(self, x):
            return self._stem(x)

    x = torch.randn(4, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    pooled = [4 * 32 * 8 * 8] if pools else []
    assert sorted(saved(Stem(), x).values()) == sorted([x.nbytes, 4 * 32 * 16 * 16 * 4, *pooled, 128, 128])
