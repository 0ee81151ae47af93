"""Fuse blocks of your own class: convert them, and see how they run.

python examples/own_block.py
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from utils import compare

import resnet_fused


class Block(nn.Module):
    """A BasicBlock that somebody edited: other names, ``F.relu``, and a shortcut only where shapes differ."""

    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv_a = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.norm_a = nn.BatchNorm2d(planes)
        self.conv_b = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.norm_b = nn.BatchNorm2d(planes)
        if stride != 1 or inplanes != planes:
            self.project = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        y = F.relu(self.norm_a(self.conv_a(x)))
        y = self.norm_b(self.conv_b(y))
        return F.relu(y + (self.project(x) if hasattr(self, "project") else x))


torch.manual_seed(0)
model = nn.Sequential(Block(64, 64), Block(64, 128, 2), Block(128, 128)).to(memory_format=torch.channels_last).eval()
x = torch.randn(2, 64, 56, 56).contiguous(memory_format=torch.channels_last)
with torch.no_grad():
    eager, exact = model(x), copy.deepcopy(model).double()(x.double())
    resnet_fused.convert(model, strict=True)  # traces forward, and compares a block of each kind with it
    compare("output", model(x), eager, exact)
    print(f"\n{resnet_fused.explain(model, x)}")

model[1].norm_a.register_forward_hook(lambda module, args, output: output)  # eager has to run now
print(f"\n{resnet_fused.explain(model.train(), x)}")
assert type(resnet_fused.revert(model)[0]) is Block
