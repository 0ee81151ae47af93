"""Attributes set by hand: a fused block computes what eager computes, or raises the same error."""

import pytest
import torch
from support import randomise
from torch import nn
from training import (
    CLASSES,
    WITH_SHORTCUT,
    eager_twin,
    identity,
    in_channels,
    projected,
    projection,
)

import resnet_fused
from resnet_fused import models, modules
from resnet_fused.chain import geometry
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")

by_mode = pytest.mark.parametrize("mode", ["train", "eval", "eval_no_grad"])
# A block remembers what its modules held in the last call, so a change between two calls must be seen too.
before_or_between_calls = pytest.mark.parametrize("seen", [False, True], ids=["before", "between"])


def outcome(module, x, mode):
    """Returns output, gradients and buffers in float64, or the type and message of the error."""
    module.double().train(mode == "train")
    x = x.double().requires_grad_(mode != "eval_no_grad")
    try:
        with torch.set_grad_enabled(mode != "eval_no_grad"):
            y = module(x)
            if mode != "eval_no_grad":
                learning = [x, *module.parameters()]
                gradients = torch.autograd.grad(y.square().sum(), learning, allow_unused=True, materialize_grads=True)
                return [y, *gradients, *module.buffers()]
        return [y, *module.buffers()]
    except Exception as error:
        return type(error), str(error)


def assert_same(module, change, x, mode, seen=False):
    twin = eager_twin(module)
    if seen:
        outcome(module, x.clone(), mode), outcome(twin, x.clone(), mode)
    change(module), change(twin)
    x = x.clone()
    found, expected = outcome(module, x.clone(), mode), outcome(twin, x.clone(), mode)
    assert type(found) is type(expected), f"{found}, but eager: {expected}"
    if isinstance(found, tuple):
        # An AttributeError names the class, which differs; for other groups the channel errors differ in wording.
        words = expected[0] is not AttributeError and "groups" not in change.__name__
        assert found == expected if words else found[0] is expected[0]
        return expected
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    return expected


def setting(path, **values):
    def change(block):
        for name, value in values.items():
            setattr(block.get_submodule(path), name, value)

    change.__name__ = f"{path}-" + "-".join(f"{k}={v}" for k, v in values.items())
    return change


GEOMETRIES = [
    dict(stride=1, padding=2, dilation=2),
    dict(stride=(1,), padding=[1], dilation=torch.Size([1])),
    dict(stride=[1, 1], padding=torch.Size([1, 1]), dilation=[1, 1]),
    dict(padding="same"),
    dict(padding="valid"),
    dict(padding=(2, 0), dilation=1),
    dict(stride=0),
    dict(padding=-1),
    dict(stride=(1, 1, 1)),
    dict(stride=1.0),
    dict(padding=True),
    dict(stride=torch.tensor(1), padding=torch.tensor(1)),
    dict(groups=2),
    dict(kernel_size=(5, 5)),
]
NORMS = [
    *(dict(eps=eps) for eps in (1, 0.5, 0, -1.0, None, torch.tensor(1e-3), True)),
    *(dict(momentum=momentum) for momentum in (1, 0, None, True, 2, torch.tensor(0.3), "often")),
    dict(weight=None),
    dict(bias=None),
    dict(weight=None, bias=None),
    dict(running_mean=None),
    dict(running_var=None),
    dict(running_mean=None, running_var=None),
    dict(num_batches_tracked=None),
    dict(track_running_stats=False),
    dict(track_running_stats=False, running_mean=None, running_var=None),
    dict(affine=False),
    dict(num_features=3),
]
OTHERS = [setting("relu", inplace=False), setting("relu", inplace=True)]
CHANGES = [setting("conv2", **g) for g in GEOMETRIES] + [setting("bn2", **n) for n in NORMS] + OTHERS


@pytest.mark.thinned
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", list(CLASSES))
@by_mode
@before_or_between_calls
def test_attributes_of_layers(cls, change, mode, seen):
    block = identity(cls)
    assert_same(block, change, torch.randn(2, in_channels(block), 6, 5), mode, seen)


SHORTCUT_CHANGES = [
    setting("downsample.0", stride=2),
    setting("downsample.0", stride=[2], padding=0, dilation=(1,)),
    setting("downsample.0", stride=1),
    setting("downsample.0", padding=1),
    setting("downsample.0", kernel_size=(3, 3)),
    setting("downsample.1", eps=1, momentum=None),
    setting("downsample.1", weight=None),
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("change", SHORTCUT_CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", WITH_SHORTCUT)
@by_mode
@before_or_between_calls
def test_attributes_of_a_projection(cls, change, mode, seen):
    block = projected(cls)
    assert_same(block, change, torch.randn(2, in_channels(block), 6, 6), mode, seen)


POOLS = [
    *(dict(kernel_size=k, padding=0) for k in (2, (2,), [2, 3], torch.Size([2, 2]), 1)),
    *(dict(stride=s) for s in (None, (), 2, (2,), [1, 2], 0, True)),
    *(dict(padding=p) for p in (0, (1,), [0, 1], 2, None)),
    *(dict(dilation=d) for d in (1, (1,), 2, [1, 2])),
    dict(ceil_mode=True),
    dict(return_indices=True),
]


@pytest.mark.parametrize("values", POOLS, ids=str)
@by_mode
def test_attributes_of_a_stems_pooling(values, mode):
    network = resnet_fused.convert(randomise(models.CifarResNet([1], (8,), num_classes=4)))
    network.maxpool, network._pools = nn.MaxPool2d(3, 2, 1), True
    assert_same(PooledStem(network), setting("network.maxpool", **values), torch.randn(2, 3, 11, 12), mode)


class PooledStem(nn.Module):
    """A stem like that of our small networks, but with pooling."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        n = self.network
        if type(n).__name__ == "FusedCifarResNet":
            return n._stem(x)
        return n.maxpool(n.relu(n.bn1(n.conv1(x))))


def gone(block):
    del block.downsample


def replaced(value):
    def change(block):
        torch.manual_seed(5)
        block.downsample = value(block)

    change.__name__ = value.__name__
    return change


def nothing(block):
    return None


def identity_module(block):
    return nn.Identity()


def acting_in_place(block):
    return nn.Sequential(nn.ReLU(inplace=True))


def projecting_in_place(block):
    return nn.Sequential(nn.ReLU(inplace=True), *projection(in_channels(block), in_channels(block), 1)).double()


def first_channel(block):
    class FirstChannel(nn.Module):
        def forward(self, x):
            return x[:, :1]

    return nn.Sequential(FirstChannel())


def one_pixel(block):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1))


def other_size(block):
    return nn.Sequential(nn.AvgPool2d(2))


def one_channel(block):
    return nn.Conv2d(in_channels(block), 1, 1).double()


def in_float16(block):
    class Half(nn.Module):
        def forward(self, x):
            return x.half()

    return nn.Sequential(Half())


def no_tensor(block):
    return nn.Sequential(nn.AdaptiveMaxPool2d(3, return_indices=True))


def doubling_hook(block):
    module = nn.Identity()
    module.register_forward_hook(lambda _, args, out: out.mul_(2))
    return module


SHORTCUTS = [
    nothing,
    identity_module,
    acting_in_place,
    projecting_in_place,
    first_channel,
    one_pixel,
    other_size,
    one_channel,
    in_float16,
    no_tensor,
    doubling_hook,
]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("change", [gone, *(replaced(s) for s in SHORTCUTS)], ids=lambda c: c.__name__)
@pytest.mark.parametrize("cls", WITH_SHORTCUT)
@pytest.mark.parametrize("projects", [False, True], ids=["identity", "projected"])
@by_mode
@before_or_between_calls
def test_any_shortcut(cls, change, projects, mode, seen):
    block = projected(cls) if projects else identity(cls)
    assert_same(block, change, torch.randn(2, in_channels(block), 6, 6), mode, seen)


@pytest.mark.parametrize("mode", ["eval", "eval_no_grad"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_in_place_shortcut_changes_the_callers_tensor(mode, memory_format):
    found = []
    block = identity(modules.FusedBasicBlock).eval()
    block.downsample = nn.Sequential(nn.ReLU(inplace=True))
    for each in (block, eager_twin(block)):
        torch.manual_seed(1)
        x = torch.randn(2, 8, 6, 6).contiguous(memory_format=memory_format)
        with torch.set_grad_enabled(mode == "eval"):
            y = each(x)
        found.append((x, y.detach()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@by_mode
@pytest.mark.parametrize("cls", WITH_SHORTCUT)
def test_broadcast_identity_matches_eager(cls, mode):
    """Padding makes the output larger than the identity: 1x1 is broadcast, any other size raises eager's error."""
    block = identity(cls)
    for size in (1, 5):
        expected = assert_same(block, setting("conv2", padding=2), torch.randn(2, in_channels(block), size, size), mode)
        assert isinstance(expected, tuple) == (size == 5)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (2, (2, 2)),
        ((2,), (2, 2)),
        ([1, 2], (1, 2)),
        (torch.Size([3, 1]), (3, 1)),
        (0, None),
        (True, None),
        (1.0, None),
        ((1, 2, 3), None),
        ((), None),
        (None, None),
        ("same", None),
        (torch.tensor(1), None),
    ],
)
def test_pairs(value, expected):
    assert geometry.pair(value, 1) == expected
