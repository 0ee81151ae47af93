"""Changes to a block, and callers, that make it train eagerly."""

import pytest
import torch
from torch import nn
from training import eager_twin, identity, is_trained, x_for

from resnet_fused import modules
from resnet_fused.chain import policy
from resnet_fused.chain.policy import CAPABILITIES

pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")


def hook_on_conv(block):
    block.conv1.register_forward_hook(lambda module, inputs, output: output + 1)


def backward_hook_on_conv(block):
    block.conv1.register_full_backward_hook(lambda module, *gradients: None)


def other_norm(block):
    block.bn2 = nn.GroupNorm(2, block.bn2.num_features)


def other_activation(block):
    block.relu = nn.LeakyReLU()


def replaced_forward(block):
    block.conv2.forward = lambda y: 3 * nn.Conv2d.forward(block.conv2, y)


def weight_norm(block):
    torch.nn.utils.parametrizations.weight_norm(block.conv2)


def reflecting_conv(block):
    block.conv2.padding_mode = "reflect"


def same_padding(block):
    block.conv2.padding = "same"


def switched_off(block):
    block.fused_training = False


def callable_shortcut(block):
    del block.downsample
    block.downsample = lambda y: y * 5


@pytest.mark.parametrize("cls", [modules.FusedBasicBlock, modules.FusedBottleneck, modules.FusedPreActBlock])
@pytest.mark.parametrize(
    "change",
    [
        hook_on_conv,
        backward_hook_on_conv,
        other_norm,
        other_activation,
        replaced_forward,
        weight_norm,
        reflecting_conv,
        same_padding,
        callable_shortcut,
        switched_off,
    ],
)
def test_unsupported_changes_train_eagerly(cls, change):
    block = identity(cls)
    change(block)
    x = x_for(block)
    y = block(x)
    assert not is_trained(y)
    assert torch.equal(y, type(block)._eager_class.forward(block, x))


def test_global_hooks_and_subclasses_train_eagerly():
    block = identity(modules.FusedBasicBlock)
    x = x_for(block)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not is_trained(block(x))
    finally:
        handle.remove()
    assert is_trained(block(x))

    class Tagged(torch.Tensor):
        pass

    assert type(block(x.detach().as_subclass(Tagged))) is Tagged


def test_func_transforms_train_eagerly():
    block = identity(modules.FusedBasicBlock).requires_grad_(False)
    block.bn1.track_running_stats = block.bn2.track_running_stats = False
    twin = eager_twin(block)
    x = torch.randn(2, 8, 4, 4)
    gradient = torch.func.grad(lambda x: block(x).square().sum())(x)
    assert torch.equal(gradient, torch.func.grad(lambda x: twin(x).square().sum())(x))
    assert policy.setting(x).dtype is torch.float32
    torch.func.vmap(lambda x: pytest.fail("transformed") if isinstance(policy.setting(x[None]), policy.Setting) else x)(
        x
    )
