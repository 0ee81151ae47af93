"""Checks training near the kinks of ReLUs, where rounding decides whether an element passes its gradient.

If the input of a ReLU is within rounding error of zero, float64, eager and the fused block may disagree about its sign.
Their gradients of that element then cannot be compared. But a forward pass fixes the mask of every ReLU, and for fixed
masks the block is a smooth function. So the tests check two things:

- The output of every ReLU is close to the float64 output. An input with the other sign is within the allowed error.
- Gradients are close to float64 gradients that use the masks of the same forward pass, ours or eager's. A backward pass
  that uses another mask than its forward pass is off by the whole gradient of that element.

Alternatively, ``away_from_kinks`` keeps the data away from the kinks.
"""

import contextlib
import copy

import pytest
import torch
from criterion import assert_close
from torch import nn
from training import assert_gradient_close, eager_twin, is_trained, step

from resnet_fused import ops


def assert_trains_as_computed(block, x, **autocast):
    """Checks one training step of ``block`` by the criterion. Works for any data."""
    twin = eager_twin(block)
    exact = copy.deepcopy(twin).double()
    double = x.detach().double().requires_grad_(x.requires_grad)
    true = copy.deepcopy(exact)
    with torch.no_grad(), outputs_of_relus(true) as true_outputs:
        direction = torch.randn_like(true(double))
    found = []
    for network in (twin, block):
        with outputs_of_relus(network) as outputs:
            y, gradients, _ = step(network, x, direction, **autocast)
        assert is_trained(y) == (network is block)
        del outputs[len(true_outputs) :]  # the backward pass recomputes the ReLU output
        as_left = copy.deepcopy(exact)
        as_left.relu = AsLeft(outputs)
        found.append((outputs, gradients, step(as_left, double, direction)[1]))
    (eagers, expected, eager_truth), (ours, actual, truth) = found
    for outputs in zip(ours, eagers, true_outputs, strict=True):
        assert_close(*outputs)
    assert actual.keys() == expected.keys() == truth.keys()
    for name, gradient in actual.items():
        assert_gradient_close(gradient, expected[name], truth[name], eager_truth[name])


@contextlib.contextmanager
def outputs_of_relus(block):
    """Returns a list that collects the outputs of the block's ReLUs, in order, when the block runs (eager or fused)."""
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bn_add_act", "bn_add_bn_act"):
            patch.setattr(ops, name, keeping(getattr(ops, name), outputs))
        hook = lambda module, inputs, y: outputs.append(y.detach().clone())  # noqa: E731
        # A fused block whose submodules have hooks would run eagerly.
        handle = None if hasattr(block, "_eager_class") else block.relu.register_forward_hook(hook)
        yield outputs
        if handle is not None:
            handle.remove()


def keeping(op, outputs):
    def call(*args, **how):
        y = op(*args, **how)
        if args[-1]:  # whether the op applies ReLU
            outputs.append(y.clone())
        return y

    return call


class AsLeft(nn.Module):
    """Replaces the ReLUs of a block by the recorded masks of an earlier forward pass."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, y):
        return torch.where(next(self.outputs) > 0, y, 0)


def away_from_kinks(block, x):
    """Shifts every channel so that its ReLU passes all of it or none of it; returns a matching x.

    Near zero, rounding decides whether a gradient passes, so float64 is no reference there.
    """
    for name, norm in block.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            signs = torch.arange(norm.num_features) % 2 * 2 - 1
            nn.init.uniform_(norm.weight, 0.05, 0.15)
            with torch.no_grad():
                norm.bias.copy_(signs * (4 if name.startswith("downsample") else 1))
    signs = torch.arange(x.shape[1]).view(-1, 1, 1) // 2 % 2 * 8 - 4
    return (0.2 * x.detach() + signs).to(x.dtype).requires_grad_()
