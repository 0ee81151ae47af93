"""A block or function with a tensor too large for the kernels' 32-bit indices runs eagerly."""

import pytest
import torch
from support import RecordedOps, randomise
from torch import nn

from resnet_fused import _indexing, functional, modules
from resnet_fused._indexing import indexable, window
from resnet_fused.chain import read
from resnet_fused.functional import BatchNorm, Projection


def test_index_limit_is_31_bits():
    x = torch.empty(1, 1, 1, 1).expand(2**10, 64, 2**7, 2**7)  # takes no memory
    narrow, wide = torch.empty(127, 64, 1, 1), torch.empty(1, 1, 1, 1).expand(128, 64, 1, 1)
    assert indexable(x, [window(narrow, 1, 0, 1)])
    assert not indexable(x, [window(wide, 1, 0, 1)])
    assert indexable(x, [window(wide, (2, 1), 0, 1)])
    assert not indexable(x, [window(wide, 1, 0, 1), window(narrow, 1, 0, 1)])
    assert not indexable(x, [window(narrow, 1, (1, 0), 1)])
    assert indexable(x, [window(torch.empty(127, 64, 3, 3), 1, (2, 2), 2)])
    assert not indexable(torch.empty(1, 1, 1, 1).expand(2**11, 64, 2**7, 2**7))


def block(kind, change=None):
    torch.manual_seed(0)
    made = randomise(kind()).eval().to(memory_format=torch.channels_last)
    if change is not None:
        change(made)
    return made


def pads_much(made):
    made.conv1.padding, made.conv2.stride, made.conv2.padding = (8, 8), (2, 2), (0, 0)


class Stem(modules.stem.FusedStem, nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(64, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.maxpool = nn.MaxPool2d(2, 1, 1)

    def forward(self, x):
        return self._stem(x)


# Name of the largest tensor -> (block, change, number of elements of that tensor), for an input of 64 channels of 8x8.
BLOCKS = {
    "bottleneck, middle": (lambda: modules.FusedBottleneck(64, 16, base_width=512), None, 128 * 64),
    "preact bottleneck, middle": (lambda: modules.FusedPreActBottleneck(64, 16, base_width=512), None, 128 * 64),
    "plain block, padding": (lambda: modules.FusedPlainBlock(64, 64), pads_much, 64 * 22 * 22),
    "plain preact block, padding": (lambda: modules.FusedPlainPreActBlock(64, 64), pads_much, 64 * 22 * 22),
    "basic block, input": (lambda: modules.FusedBasicBlock(64, 64), None, 64 * 64),
    "stem, input": (Stem, None, 64 * 64),
}


@pytest.mark.parametrize("which", BLOCKS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_blocks_past_the_limit_run_eagerly(which, training, monkeypatch):
    kind, change, most = BLOCKS[which]
    made = block(kind, change).train(training)
    x = torch.randn(1, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    outputs = []
    for limit, fused in ((most, True), (most - 1, False)):
        monkeypatch.setattr(_indexing, "MAX_ELEMENTS", limit)
        read.forget(made)  # shapes are checked once
        with RecordedOps() as recorded, torch.set_grad_enabled(training):
            outputs.append(made(x))
        assert bool(recorded.ours) == fused
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)


def norm(channels):
    return BatchNorm.of(randomise(nn.BatchNorm2d(channels)).eval())


def test_functions_past_the_limit_run_eagerly(monkeypatch):
    x, wide = torch.randn(1, 4, 8, 8), torch.randn(1, 16, 16, 16)
    w1, w3, to_wide = torch.randn(4, 4, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(4, 16, 1, 1)
    for call, most, eager in (
        (lambda: functional.conv_bn_act(x, w1, norm(4), padding=4), 4 * 256, None),
        (lambda: functional.conv_bn_act(wide, to_wide), 16 * 256, lambda: torch.relu(torch.conv2d(wide, to_wide))),
        (lambda: functional.bn_relu_conv_bn_act(x, norm(4), w1, padding=4), 4 * 256, None),
        (
            lambda: functional.conv_bn_relu_pool(x, w1, stride=1, padding=0, pool_kernel=2, pool_stride=1),
            4 * 81,
            lambda: torch.nn.functional.max_pool2d(torch.relu(torch.conv2d(x, w1)), 2, 1, 1),
        ),
        (
            lambda: functional.conv_bn_proj_act(x, w3, None, wide, Projection(to_wide, stride=2), padding=1),
            16 * 256,
            lambda: torch.relu(torch.conv2d(x, w3, None, 1, 1) + torch.conv2d(wide, to_wide, None, 2)),
        ),
        (lambda: functional.bn_add_act(wide, None), 16 * 256, lambda: torch.relu(wide)),
        (lambda: functional.basic_block(x, w3, norm(4), w3, norm(4)), 4 * 64, None),
    ):
        outputs, ops_called = [], []
        for limit in (most, most - 1):
            monkeypatch.setattr(_indexing, "MAX_ELEMENTS", limit)
            torch.manual_seed(1)  # the same BatchNorms for both limits
            with RecordedOps() as recorded, torch.no_grad():
                outputs.append(call())
            ops_called.append(set(recorded.ours))
        # if only the projection is too large, another op may still fuse the convolution with the addition
        assert ops_called[0] and ops_called[0].isdisjoint(ops_called[1])
        torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-4)
        if eager is not None:
            torch.testing.assert_close(outputs[1], eager(), rtol=1e-4, atol=1e-4)
