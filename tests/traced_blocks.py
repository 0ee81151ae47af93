"""Blocks with any ``forward``, and everything that a call of them shows."""

import contextlib
import copy

import torch
from support import randomise
from torch import nn

import resnet_fused


class TwoConvs(nn.Module):
    """A block; ``fits`` is what a chain computes, ``differs`` is not."""

    def __init__(self, planes=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, planes, 3, padding=1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1), nn.BatchNorm2d(planes)
        self.relu, self.proj, self.flag = nn.ReLU(), nn.Conv2d(6, planes, 1), False

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def fits(self, x):
        return self.relu(self.branch(x) + x)

    def differs(self, x):
        return self.relu(self.branch(x))


def block_of(forward, **attributes):
    return type("Block", (TwoConvs,), {"forward": forward, **attributes})


def either(condition):
    """A ``forward`` that is a chain unless the condition holds."""
    return lambda self, x: self.differs(x) if condition(self, x) else self.fits(x)


def outcome(block, x, mode):
    """Everything that a call shows."""
    block.train(mode == "training")
    x = x.clone().requires_grad_(mode != "inference")
    given = x * 1
    setting = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with torch.set_grad_enabled(mode in ("training", "gradients")), setting:
        y = block(given)
        if mode in ("training", "gradients") and y.requires_grad:
            y.float().square().sum().backward()
    gradients = [p.grad for p in (x, *block.parameters())]
    return [y.detach(), given.detach(), *block.buffers(), *gradients], y.dtype, y.requires_grad, y.stride()


def assert_same(eager, fused, x, mode, tolerance=1e-9):
    (expected, *rest), (actual, *others) = outcome(eager, x, mode), outcome(fused, x, mode)
    assert rest == others
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert (a.double() - b.double()).norm() <= tolerance * max(b.double().norm(), 1e-3)


def pair(kind):
    eager = randomise(kind()).double()
    return eager, resnet_fused.convert(copy.deepcopy(eager))


def image(dtype=torch.float64, batch=2):
    return torch.randn(batch, 6, 7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
