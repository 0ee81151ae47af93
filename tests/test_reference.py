"""The eager definitions match torchvision's blocks, or the papers where torchvision has none."""

import pytest
import torch
import torch.nn.functional as F
from support import randomise
from torch import nn
from training import projection

from resnet_fused import reference

tv = pytest.importorskip("torchvision.models.resnet")


PAIRS = [(reference.BasicBlock, tv.BasicBlock), (reference.Bottleneck, tv.Bottleneck)]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["basic", "bottleneck"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("training", [False, True])
def test_blocks_match_torchvision(ours, theirs, stride, training):
    planes, out = 8, 8 * theirs.expansion
    blocks = []
    for cls in (ours, theirs):
        torch.manual_seed(0)
        blocks.append(randomise(cls(16, planes, stride, projection(16, out, stride))).train(training))
    mine, other = blocks
    assert list(mine.state_dict()) == list(other.state_dict())
    assert [name for name, _ in mine.named_modules()] == [name for name, _ in other.named_modules()]
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), other.parameters(), strict=True))
    assert mine.stride == other.stride
    assert mine.expansion == other.expansion
    x = torch.randn(2, 16, 9, 9, requires_grad=True)
    outputs = [block(x) for block in blocks]
    assert torch.equal(*outputs)
    pairs = zip(outputs, blocks, strict=True)
    gradients = [torch.autograd.grad(y.square().sum(), [x, *block.parameters()]) for y, block in pairs]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_bottleneck_takes_torchvisions_arguments():
    arguments = (32, 8, 1, None, 4, 16, 2)
    ours, theirs = reference.Bottleneck(*arguments), tv.Bottleneck(*arguments)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize("cls", [reference.BasicBlock, reference.PreActBlock])
def test_two_conv_blocks_refuse_the_same_as_torchvision(cls):
    with pytest.raises(ValueError, match="groups=1 and base_width=64 only, got 2 and 64"):
        cls(8, 8, groups=2)
    with pytest.raises(ValueError, match="got 1 and 128"):
        cls(8, 8, base_width=128)
    with pytest.raises(NotImplementedError, match="dilation=1 only, got 2"):
        cls(8, 8, dilation=2)


@pytest.mark.parametrize("downsample", [None, "conv", "sequential"])
def test_preact_block_matches_the_paper(downsample):
    conv = nn.Conv2d(8, 12, 1, 2, bias=False)
    stride, planes = (1, 8) if downsample is None else (2, 12)
    shortcut = {None: None, "conv": conv, "sequential": nn.Sequential(conv)}[downsample]
    block = randomise(reference.PreActBlock(8, planes, stride, shortcut)).eval()
    x = torch.randn(2, 8, 6, 6)
    a = F.relu(block.bn1(x))
    out = block.conv2(F.relu(block.bn2(block.conv1(a)))) + (x if shortcut is None else shortcut(a))
    torch.testing.assert_close(block(x), out)
    assert (block(x) < 0).any(), "no ReLU follows the addition"


def test_preact_bottleneck_matches_the_paper():
    block = randomise(reference.PreActBottleneck(16, 4)).eval()
    x = torch.randn(2, 16, 6, 6)
    a = F.relu(block.bn1(x))
    out = block.conv3(F.relu(block.bn3(block.conv2(F.relu(block.bn2(block.conv1(a))))))) + x
    torch.testing.assert_close(block(x), out)


@pytest.mark.parametrize("cls", [reference.PlainBlock, reference.PlainPreActBlock])
def test_plain_blocks_have_no_shortcut(cls):
    base = cls.__mro__[1]
    block = randomise(cls(8, 8)).eval()
    assert list(block.state_dict()) == list(base(8, 8).state_dict())
    x = torch.randn(2, 8, 6, 6)
    if cls is reference.PlainBlock:
        out = F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))))
    else:
        out = block.conv2(F.relu(block.bn2(block.conv1(F.relu(block.bn1(x))))))
    torch.testing.assert_close(block(x), out)


def test_blocks_do_not_modify_their_input():
    for cls in (reference.BasicBlock, reference.Bottleneck, reference.PreActBlock, reference.PreActBottleneck):
        inplanes = 4 * cls.expansion
        x = torch.randn(1, inplanes, 5, 5)
        before = x.clone()
        cls(inplanes, 4).eval()(x)
        assert torch.equal(x, before), cls.__name__


def test_zero_pad_shortcut_is_option_a():
    x = torch.randn(2, 4, 6, 6)
    y = reference.ZeroPadShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert y[:, :2].eq(0).all()
    assert y[:, 6:].eq(0).all()
    odd = reference.ZeroPadShortcut(4, 7)(x)
    assert odd.shape == (2, 7, 6, 6)
    assert torch.equal(odd[:, 1:5], x)
    with pytest.raises(ValueError, match="planes=4 is less than inplanes=8"):
        reference.ZeroPadShortcut(8, 4)


def test_functions_match_the_modules():
    conv, bn = nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6)
    randomise(bn).eval()
    x, residual = torch.randn(2, 4, 9, 9), torch.randn(2, 6, 5, 5)
    norm = (bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    args = (x, conv.weight, conv.bias, *norm, 2, 1)
    torch.testing.assert_close(reference.conv_bn_act(*args, residual=residual), F.relu(bn(conv(x)) + residual))
    torch.testing.assert_close(reference.conv_bn_act(*args, relu=False), bn(conv(x)))
    torch.testing.assert_close(reference.bn_add_act(residual, *norm), F.relu(bn(residual)))
    pooled = F.max_pool2d(F.relu(bn(conv(x))), 3, 2, 1)
    torch.testing.assert_close(reference.conv_bn_relu_pool(*args), pooled)
    proj = nn.Conv2d(3, 6, 1, 2, bias=False)
    z = torch.randn(2, 3, 9, 9)
    joined = reference.conv_bn_proj_act(*args, 1, 1, z, proj.weight, proj_stride=2)
    torch.testing.assert_close(joined, F.relu(bn(conv(x)) + proj(z)))
    projected = reference.conv_bn_proj_act(*args, 1, 1, z, proj.weight, None, *norm, 2, relu=False)
    torch.testing.assert_close(projected, bn(conv(x)) + bn(proj(z)))
