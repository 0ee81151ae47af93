"""Compares a converted hand-written block with its eager twin, in float64 and in every mode."""

import copy
import random
from typing import NamedTuple

import pytest
import torch
from handwritten_blocks import BLOCKS, Basic, Units, part
from handwritten_shortcuts import SHORTCUTS, DiveIntoDeepLearning, PreActivation, WideResNet, resnet_d
from handwritten_traps import TRAPS
from support import randomise
from torch import nn

import resnet_fused

CASES = {**BLOCKS, **SHORTCUTS, **TRAPS}

PROJECTED = {
    "basic": part(Basic, 6, 8, 2),
    "d2l": DiveIntoDeepLearning,
    "pooled": resnet_d,
    "preact": part(PreActivation, 6, 8, 2),
    "wide": WideResNet,
    "units": Units,
}
projected = pytest.mark.parametrize("make", PROJECTED.values(), ids=PROJECTED)

SIZES = ((6, 6), (7, 9))
FORMATS = (torch.contiguous_format, torch.channels_last)

# Relative to the norm of eager's value. A gradient may be 0 up to rounding, such as that of a bias before a BatchNorm;
# SMALL is far below the norm of any other tensor here.
TOLERANCE, SMALL = 1e-9, 1e-3


class Mode(NamedTuple):
    training: bool
    grad: bool


MODES = {"eval": Mode(False, False), "eval-grad": Mode(False, True), "train": Mode(True, True)}
ALL_MODES = tuple(MODES.values())


def build(name):
    """A new block of this case, with random BatchNorms."""
    torch.manual_seed(0)
    return randomise(CASES[name].make())


def input_of(channels=6, size=(6, 6), memory_format=torch.contiguous_format, dtype=torch.float64):
    return torch.randn(3, channels, *size, dtype=dtype).contiguous(memory_format=memory_format)


def channels_of(block):
    norm = next((m for m in block.modules() if isinstance(m, nn.BatchNorm2d)), None)
    conv = next(m for m in block.modules() if isinstance(m, nn.Conv2d))
    first = next(m for m in block.modules() if m is norm or m is conv)
    return first.in_channels if first is conv else first.num_features


def step(block, x, mode, prepare=None):
    """Everything that one call gives or changes, by name. ``prepare(block)`` runs after the mode was set."""
    block.train(mode.training)
    if prepare is not None:
        prepare(block)
    block.zero_grad()
    leaf = x.detach().clone().requires_grad_(mode.grad)
    inputs = leaf * 1 if mode.grad else leaf  # forward may modify it
    torch.manual_seed(3)  # forward may draw random numbers
    random.seed(3)
    with torch.set_grad_enabled(mode.grad):
        y = block(inputs)
    found = {"output": y.detach(), "input": inputs.detach().clone()}
    if mode.grad:
        direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=y.dtype)
        y.backward(direction)
        named = [("input", leaf), *block.named_parameters()]
        found |= {f"gradient of {name}": t.grad for name, t in named if t.grad is not None}
    return found | {name: buffer.clone() for name, buffer in block.named_buffers()}


def assert_same(actual, expected, what=""):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape and actual[name].dtype == value.dtype, f"{name}{what}"
        if not value.is_floating_point():
            assert torch.equal(actual[name], value), f"{name}{what}"
            continue
        error, norm = (actual[name] - value).norm().item(), value.norm().item()
        assert error <= TOLERANCE * max(norm, SMALL), f"{name}{what}: error {error:.3e}, norm {norm:.3e}"


def compare(eager, fused, *, modes=ALL_MODES, sizes=SIZES[1:], formats=FORMATS[:1], prepare=None):
    """Steps both blocks, which are in float64."""
    for mode in modes:
        for size in sizes:
            for memory_format in formats:
                x = input_of(channels_of(eager), size, memory_format)
                expected, actual = (step(block, x, mode, prepare) for block in (eager, fused))
                assert_same(actual, expected, f" ({mode}, size {size}, {memory_format})")


def how(block, x, mode):
    """How the block runs: "inference", "training" or "eager"."""
    block.train(mode.training)
    leaf = x.detach().clone().requires_grad_(mode.grad)
    with torch.set_grad_enabled(mode.grad):
        runs = resnet_fused.explain(block, leaf * 1)
    return runs[""].how if "" in runs else "eager"


def runs_fused(block):
    """Whether the block, in float64, runs fused in eval and in training mode."""
    x = input_of(channels_of(block))
    return all(how(block, x, mode) != "eager" for mode in (MODES["eval"], MODES["train"]))


def pair(make):
    """A new eager block and its converted copy, in float64 and already called in every mode."""
    torch.manual_seed(0)
    eager = randomise(make()).double()
    fused = copy.deepcopy(eager)
    resnet_fused.convert(fused, strict=True)
    assert runs_fused(fused)
    compare(eager, fused)
    return eager, fused
