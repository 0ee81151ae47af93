"""Compares modules of ``convert(model, chains=True)`` with their eager twins."""

import copy

import torch
from handwritten_parity import assert_same
from support import ops_of, randomise
from torch import Tensor

import resnet_fused

LAST = torch.channels_last


def pair(make, dtype=torch.float64):
    """An eager module in eval mode and its converted copy."""
    torch.manual_seed(0)
    eager = randomise(make()).to(dtype).eval()
    return eager, converted(copy.deepcopy(eager))


def converted(module):
    return resnet_fused.convert(module, chains=True)


def image(size=(7, 9), memory_format=LAST, dtype=torch.float64, channels=8):
    torch.manual_seed(1)
    return torch.randn(3, channels, *size).to(dtype).contiguous(memory_format=memory_format)


def call(module, *args, grad=False, **kwargs):
    """The outputs, by index."""
    torch.manual_seed(2)  # of dropout
    with torch.set_grad_enabled(grad):
        y = module(*(x.clone() if isinstance(x, Tensor) else x for x in args), **kwargs)
    return dict(enumerate((y,) if isinstance(y, Tensor) else y))


def check(eager, fused, *args, **kwargs):
    """Compares outputs and their strides; without gradients."""
    args = args or (image(),)
    expected, actual = (call(module, *args, **kwargs) for module in (eager, fused))
    assert_same(actual, expected)
    for i, y in expected.items():
        assert actual[i].stride() == y.stride()


def step(module, x):
    """Everything that a call with gradients gives or changes."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    outputs = call(module, leaf, grad=True)
    sum(y.square().sum() for y in outputs.values()).backward()
    found = {i: y.detach() for i, y in outputs.items()} | {"gradient of x": leaf.grad}
    found |= {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return found | {name: buffer.clone() for name, buffer in module.named_buffers()}


def fused_ops(module, x=None):
    return len(ops_of(module, image() if x is None else x))


def explained(module, *args):
    with torch.no_grad():
        return resnet_fused.explain(module, *(args or (image(),)))[""]
