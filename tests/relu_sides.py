"""Training judged near the kinks of ReLUs, where rounding decides which of two gradients is an element's own.

Within a rounding of zero it is luck on which side a ReLU's input falls, in eager as here: eager's luck and float64's
are no yardsticks for ours. But a forward pass leaves every ReLU open or closed, and between the kinks all is smooth. So

- what every ReLU lets through is held to float64's (an input that fell on the other side was within the allowed error);
- gradients are held to float64's of the function that was computed: each ReLU as that forward pass, ours or eager's,
  had left it. A backward pass that sees one of them otherwise than its forward pass did is an error of that element's
  whole gradient.

Or data is kept away from the kinks.
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
    """One step of ``block`` by the criterion, for any data."""
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
        del outputs[len(true_outputs) :]  # the backward pass makes ours again
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
    """What the block's ReLUs let through, in order: a list that fills while the block runs, eagerly or fused."""
    outputs = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("bn_add_act", "bn_add_bn_act"):
            patch.setattr(ops, name, keeping(getattr(ops, name), outputs))
        hook = lambda module, inputs, y: outputs.append(y.detach().clone())  # noqa: E731
        # A fused block with hooks inside would run eagerly.
        handle = None if hasattr(block, "_eager_class") else block.relu.register_forward_hook(hook)
        yield outputs
        if handle is not None:
            handle.remove()


def keeping(op, outputs):
    def call(*args, **how):
        y = op(*args, **how)
        if args[-1]:  # its ReLU
            outputs.append(y.clone())
        return y

    return call


class AsLeft(nn.Module):
    """The ReLUs of a block, open where they once let something through."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = iter(outputs)

    def forward(self, y):
        return torch.where(next(self.outputs) > 0, y, 0)


def away_from_kinks(block, x):
    """Makes every channel pass its ReLUs or stay behind them as a whole, and returns an x for it.

    Near zero, one rounding decides whether a gradient passes, and float64 is no yardstick.
    """
    for name, norm in block.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            signs = torch.arange(norm.num_features) % 2 * 2 - 1
            nn.init.uniform_(norm.weight, 0.05, 0.15)
            with torch.no_grad():
                norm.bias.copy_(signs * (4 if name.startswith("downsample") else 1))
    signs = torch.arange(x.shape[1]).view(-1, 1, 1) // 2 % 2 * 8 - 4
    return (0.2 * x.detach() + signs).to(x.dtype).requires_grad_()
