"""Patched layers run as patched: on one module, on a class, in torch.nn.functional."""

import functools
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support import randomise
from torch import nn
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
from resnet_fused import models, modules
from resnet_fused.chain.patches import _CLASSES, is_patched, layers_are_patched
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")

MODES = ["train", "eval", "eval_no_grad"]


def outputs(module, x, mode):
    module.train(mode == "train")
    x = x.clone().requires_grad_(mode != "eval_no_grad")
    with torch.set_grad_enabled(mode != "eval_no_grad"):
        y = module(x)
    return [y] if mode == "eval_no_grad" else [y, *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])]


def assert_runs_as_eager(module, twin, x, mode):
    """Requires bit-identical results, because the module must run eagerly."""
    for a, b in zip(outputs(module, x, mode), outputs(twin, x, mode), strict=True):
        assert torch.equal(a, b)


def circular(conv):
    def convolve(x, weight, bias):
        pads = [p for p in reversed(conv.padding) for _ in range(2)]
        return F.conv2d(F.pad(x, pads, mode="circular"), weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    conv._conv_forward = convolve


def standardised(conv):
    def convolve(x, weight, bias):
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
        return nn.Conv2d._conv_forward(conv, x, weight, bias)

    conv._conv_forward = convolve


def on_instance(name):
    def patch(module):
        original = getattr(type(module), name)
        setattr(module, name, lambda *args: 2 * original(module, *args))

    return patch


def own_statistics(norm):
    mean = norm.running_mean + 1
    del norm.running_mean
    norm.__dict__["running_mean"] = mean


INSTANCE_PATCHES = [
    ("conv2", circular),
    ("conv2", standardised),
    ("conv1", on_instance("forward")),
    ("conv1", on_instance("_call_impl")),
    ("bn1", on_instance("forward")),
    ("bn2", on_instance("_call_impl")),
    ("bn2", own_statistics),
    ("relu", on_instance("forward")),
    ("downsample", on_instance("forward")),
    ("downsample.0", standardised),
    ("downsample.1", on_instance("forward")),
]


@pytest.mark.thinned
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cls", WITH_SHORTCUT)
@pytest.mark.parametrize(("name", "patch"), INSTANCE_PATCHES)
@pytest.mark.parametrize("seen", [False, True], ids=["before", "between"])
def test_patched_module_of_a_block_runs_eagerly(cls, name, patch, mode, seen):
    block = projected(cls)
    if seen:  # a block remembers what its modules held in the last call
        outputs(block, torch.randn(2, in_channels(block), 6, 6), mode)
    twin = eager_twin(block)
    for each in (block, twin):
        patch(each.get_submodule(name))
    assert_runs_as_eager(block, twin, torch.randn(2, in_channels(block), 6, 6), mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("build", [models.small_resnet, models.small_preact_resnet])
@pytest.mark.parametrize(("name", "patch"), [("conv1", standardised), ("bn1", on_instance("forward"))])
def test_patched_module_of_a_stem_or_tail_runs_eagerly(build, name, patch, mode):
    network = resnet_fused.convert(randomise(build()))
    twin = eager_twin(network)
    for each in (network, twin):
        patch(each.get_submodule(name))
    for a, b in zip(outputs(network, x := torch.randn(2, 3, 9, 9), mode), outputs(twin, x, mode), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def doubled(function):
    @functools.wraps(function)
    def patched(*args, **kwargs):
        return 2 * function(*args, **kwargs)

    return patched


CLASS_PATCHES = [
    (nn.Conv2d, "forward"),
    (nn.Conv2d, "_conv_forward"),
    (nn.BatchNorm2d, "forward"),
    (nn.ReLU, "forward"),
    (nn.Sequential, "forward"),
    (nn.Module, "__call__"),
    (nn.Module, "_call_impl"),
    (F, "conv2d"),
    (F, "batch_norm"),
    (F, "relu"),
]


@pytest.mark.thinned
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cls", list(CLASSES))
@pytest.mark.parametrize(("owner", "name"), CLASS_PATCHES, ids=lambda v: getattr(v, "__name__", v))
def test_patched_class_or_function_runs_eagerly(cls, owner, name, mode, monkeypatch):
    block = projected(cls) if cls in WITH_SHORTCUT else identity(cls)
    twin = eager_twin(block)
    x = torch.randn(2, in_channels(block), 6, 6)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, doubled(getattr(owner, name)))
        assert layers_are_patched()
        assert_runs_as_eager(block, twin, x, mode)
    assert not layers_are_patched()
    y = outputs(block, x, mode)[0]
    assert mode == "eval_no_grad" or is_trained(y), "afterwards blocks are fused again"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("owner", "name"), [(nn.Conv2d, "forward"), (nn.MaxPool2d, "forward"), (F, "max_pool2d")])
def test_network_with_a_patched_class_runs_eagerly(owner, name, mode, monkeypatch):
    network = resnet_fused.convert(randomise(models.ResNet(modules.FusedBasicBlock, [1, 1, 1, 1], 5)))
    twin = eager_twin(network)
    monkeypatch.setattr(owner, name, doubled(getattr(owner, name)))
    assert_runs_as_eager(network, twin, torch.randn(2, 3, 40, 40), mode)


def test_class_patched_before_import_runs_eagerly():
    code = """
import functools, torch
from torch import nn
forward = nn.ReLU.forward
nn.ReLU.forward = functools.wraps(forward)(lambda self, x: forward(self, x) + 1)
import resnet_fused
block = resnet_fused.FusedBasicBlock(4, 4).eval()
x = torch.randn(1, 4, 5, 5)
with torch.no_grad():
    print(torch.equal(block(x), resnet_fused.revert(block)(x)))
"""
    root = Path(__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "True"


@pytest.mark.parametrize("cls", _CLASSES)
def test_unpatched_modules_do_not_count_as_patched(cls):
    arguments = {nn.Conv2d: (4, 4, 3), nn.MaxPool2d: (3,)}
    built = cls(*arguments.get(cls, (4,) if "Norm" in cls.__name__ else ()))
    built.a_users_own_attribute = 1
    assert not is_patched(built)
    assert not is_patched(built.train())


def test_compiled_block_with_a_patched_class(monkeypatch):
    torch._dynamo.reset()
    block = identity(modules.FusedBasicBlock).eval()
    twin = eager_twin(block)
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: F.relu(x) + 1)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="eager")(x), twin(x))


def test_torch_compile_emits_no_warning():
    network = resnet_fused.convert(models.resnet18().eval())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        torch.compile(network, fullgraph=True, backend="eager")(torch.randn(1, 3, 64, 64))


class Proxy:
    """Compares equal to what it wraps, like the proxies of wrapt."""

    def __init__(self, wrapped):
        self.wrapped, self.calls = wrapped, 0

    def __eq__(self, other):
        return self.wrapped == other

    def __hash__(self):
        return hash(self.wrapped)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.wrapped(*args, **kwargs)


def test_wrapper_that_compares_equal_is_a_patch(monkeypatch):
    block = modules.FusedBasicBlock(4, 4).eval()
    proxy = Proxy(torch.nn.functional.batch_norm)
    monkeypatch.setattr(torch.nn.functional, "batch_norm", proxy)
    with torch.no_grad():
        block(torch.randn(1, 4, 5, 5))
    assert proxy.calls == 2
