"""Blocks with frozen parts and unusual BatchNorm settings train as eager blocks do."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training import WITH_SHORTCUT, assert_trains_as_eager, identity, projected, x_for

from resnet_fused import modules
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def frozen_norms(block):
    block.bn2.eval()


def frozen_parameters(block):
    block.conv1.requires_grad_(False)
    block.bn2.weight.requires_grad_(False)


def frozen_trunk(block):
    block.requires_grad_(False)
    block.bn2.bias.requires_grad_()


def only_frozen_norms(block):
    block.eval()


def without_affine(block):
    block.bn2 = nn.BatchNorm2d(block.bn2.num_features, affine=False)


def without_statistics(block):
    block.bn2 = nn.BatchNorm2d(block.bn2.num_features, track_running_stats=False)


def without_statistics_in_eval(block):
    without_statistics(block)
    block.eval()


def cumulative_average(block):
    block.bn1.momentum = None
    block.bn1.num_batches_tracked.fill_(6)


def whole_momentum(block):
    block.bn1.momentum = 1.0


def zero_gamma(block):
    """Zeroes gamma of the block's last BatchNorm, as ``zero_init_residual`` does."""
    nn.init.zeros_([m for m in block.children() if isinstance(m, nn.BatchNorm2d)][-1].weight)


def other_eps(block):
    block.bn2.eps = 0.1


def statistics_that_are_off(block):
    """Keeps the buffers but turns off tracking: eval mode uses them, training does not update them."""
    block.bn1.track_running_stats = False


SETTINGS = [
    frozen_norms,
    frozen_parameters,
    frozen_trunk,
    only_frozen_norms,
    without_affine,
    without_statistics,
    without_statistics_in_eval,
    cumulative_average,
    whole_momentum,
    zero_gamma,
    other_eps,
    statistics_that_are_off,
]


@pytest.mark.parametrize("cls", WITH_SHORTCUT)
@pytest.mark.parametrize("projects", [False, True], ids=["identity", "projection"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_block_settings_match_eager(cls, projects, setting):
    block = projected(cls) if projects else identity(cls)
    setting(block)
    assert_trains_as_eager(block, x_for(block))
    x = x_for(block).detach()
    assert_trains_as_eager(block, x)


@pytest.mark.parametrize("cls", WITH_SHORTCUT)
def test_frozen_projection_norm(cls):
    block = projected(cls)
    block.downsample[1].eval()
    assert_trains_as_eager(block, x_for(block))


class Convolutions(TorchDispatchMode):
    """Records the output mask of every convolution_backward: gradients of input, weight and bias."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.convolution_backward.default:
            self.masks.append(tuple(args[-1]))
        return function(*args, **(kwargs or {}))


def test_frozen_parameters_compute_no_gradients():
    block = identity(modules.FusedBottleneck)
    block.conv1.requires_grad_(False)
    block.bn1.requires_grad_(False)
    block.conv3.requires_grad_(False)
    x = x_for(block).detach()
    y = block(x)
    with Convolutions() as seen:
        y.sum().backward()
    assert seen.masks == [(True, False, False), (False, True, False)]
    assert block.conv1.weight.grad is None
