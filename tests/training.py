"""Helpers of the training tests: one step of a block and of its eager twin, both compared with float64."""

import copy

import torch
from criterion import assert_close
from support import randomise
from torch import nn

import resnet_fused
from resnet_fused import modules, reference


def projection(inplanes, planes, stride):
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))


def average_projection(inplanes, planes, stride):  # ResNet-D
    conv = nn.Conv2d(inplanes, planes, 1, bias=False)
    return nn.Sequential(nn.AvgPool2d(stride, stride), conv, nn.BatchNorm2d(planes))


def conv_only(inplanes, planes, stride):
    return nn.Conv2d(inplanes, planes, 1, stride)


def wide_projection(inplanes, planes, stride):
    return nn.Sequential(nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes))


CLASSES = {  # (inplanes, planes) of an identity block
    modules.FusedBasicBlock: (8, 8),
    modules.FusedBottleneck: (16, 4),
    modules.FusedPreActBlock: (8, 8),
    modules.FusedPreActBottleneck: (16, 4),
    modules.FusedPlainBlock: (8, 8),
    modules.FusedPlainPreActBlock: (8, 8),
}
WITH_SHORTCUT = [cls for cls in CLASSES if "Plain" not in cls.__name__]


def identity(cls, scale=1):
    inplanes, planes = CLASSES[cls]
    return randomise(cls(inplanes * scale, planes * scale))


def projected(cls, shortcut=projection, scale=1):
    inplanes, planes = (scale * n for n in CLASSES[cls])
    return randomise(cls(inplanes, 2 * planes, 2, shortcut(inplanes, 2 * planes * cls.expansion, 2)))


# What to freeze -> substrings of the names of those parameters.
FROZEN = {"nothing": [], "weights": ["conv", "downsample.0"], "norms": ["bn", "downsample.1"]}


def freeze(block, what):
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(not any(part in name for part in FROZEN[what]))


def in_channels(block):
    first = block.bn1 if isinstance(block, (reference.PreActBlock, reference.PreActBottleneck)) else block.conv1
    return first.num_features if isinstance(first, nn.modules.batchnorm._BatchNorm) else first.in_channels


def x_for(block, dtype=torch.float32, n=4, h=8, w=6, memory_format=torch.contiguous_format):
    x = torch.randn(n, in_channels(block), h, w).to(dtype)
    return x.contiguous(memory_format=memory_format).requires_grad_()


def eager_twin(block):
    """Returns an eager copy of the block."""
    return resnet_fused.revert(copy.deepcopy(block))


def is_trained(y):
    """Returns whether the fused training path computed y."""
    return "trainchain" in type(y.grad_fn).__name__.lower().replace("_", "")


def step(block, x, direction, **autocast):
    """Returns the output, gradients by name ("x" and every parameter that needs one), and buffers of one step."""
    inputs = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad)
    block.zero_grad()
    with torch.autocast(x.device.type, **{"enabled": False, **autocast}):
        y = block(inputs)
    y.backward(direction.to(y.dtype))
    named = [("x", inputs), *block.named_parameters()]
    return y, {name: t.grad for name, t in named if t.grad is not None}, dict(block.named_buffers())


# kernel, stride, padding
POOLS = [((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 3), (0, 1)), ((1, 1), (2, 2), (0, 0))]


def stem_gradients(net, x):
    """Returns the output of a network's stem, and the gradients of its parameters for one random output gradient."""
    net.zero_grad()
    y = net._stem(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return y.detach(), [net.conv1.weight.grad, net.bn1.weight.grad, net.bn1.bias.grad]


def assert_trains_as_eager(block, x, *, fused=True, **autocast):
    """Compares one step of ``block`` with its eager twin: output, gradients and buffers, by the criterion."""
    twin = eager_twin(block)
    exact = copy.deepcopy(twin).double()
    with torch.no_grad():
        direction = torch.randn_like(copy.deepcopy(exact)(x.double()))
    double = x.detach().double().requires_grad_(x.requires_grad)
    true = step(exact, double, direction)
    expected, actual = step(twin, x, direction, **autocast), step(block, x, direction, **autocast)
    assert is_trained(actual[0]) == fused
    assert not is_trained(expected[0])
    assert actual[0].stride() == expected[0].stride()
    assert_close(actual[0].detach(), expected[0].detach(), true[0].detach())
    assert actual[1].keys() == expected[1].keys() == true[1].keys()
    largest = max((truth.abs().max().item() for truth in true[1].values()), default=0)
    for name, truth in true[1].items():
        truth = truth.masked_fill(truth.abs() < 1e-13 * largest, 0)  # a sum of float64 roundings, such as a bias's
        assert actual[1][name].dtype is expected[1][name].dtype, name
        assert_gradient_close(actual[1][name], expected[1][name], truth)
    assert actual[2].keys() == expected[2].keys()
    for name, truth in true[2].items():
        if truth.is_floating_point():
            assert_close(actual[2][name], expected[2][name], truth)
        else:
            assert torch.equal(actual[2][name], expected[2][name]), name


def assert_gradient_close(actual, eager, truth, eager_truth=None):
    """Applies the criterion, and the same allowance to the relative L2 error and to the angle to the truth."""
    eager_truth = truth if eager_truth is None else eager_truth
    assert_close(actual, eager, truth, eager_truth=eager_truth)
    if truth.norm() == 0:
        return
    slack = 4 * torch.finfo(eager.dtype).eps
    pairs = ((actual, truth), (eager, eager_truth))
    errors = [((t.double() - true).norm() / true.norm()).item() for t, true in pairs]
    assert errors[0] <= 2 * errors[1] + slack, f"relative L2 error {errors[0]:.3e}, eager's {errors[1]:.3e}"
    angles = [1 - torch.cosine_similarity(t.double().flatten(), true.flatten(), 0).item() for t, true in pairs]
    assert angles[0] <= 2 * angles[1] + slack, f"1 - cosine {angles[0]:.3e}, eager's {angles[1]:.3e}"
