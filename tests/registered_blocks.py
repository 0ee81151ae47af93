"""Blocks of users' classes and their specs; half of them are built like those of kuangliu's pytorch-cifar."""

import torch.nn.functional as F
from torch import nn

from resnet_fused import BlockSpec
from resnet_fused.chain.spec import IDENTITY


def conv(inplanes, planes, kernel=3, stride=1):
    return nn.Conv2d(inplanes, planes, kernel, stride, kernel // 2, bias=False)


class PostActivation(nn.Module):
    """What the blocks of pytorch-cifar's ResNets share: F.relu, and an empty Sequential as identity shortcut."""

    def add_shortcut(self, inplanes, outplanes, stride):
        self.shortcut = nn.Sequential()
        if stride != 1 or inplanes != outplanes:
            self.shortcut = nn.Sequential(conv(inplanes, outplanes, 1, stride), nn.BatchNorm2d(outplanes))


class BasicBlock(PostActivation):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(in_planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes), nn.BatchNorm2d(planes)
        self.add_shortcut(in_planes, planes, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)


class Bottleneck(PostActivation):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv(in_planes, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.add_shortcut(in_planes, 4 * planes, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.shortcut(x)
        return F.relu(y)


class PreActivation(nn.Module):
    """What pytorch-cifar's pre-activation blocks share: without a projection they have no attribute shortcut."""

    def add_shortcut(self, inplanes, outplanes, stride):
        if stride != 1 or inplanes != outplanes:
            self.shortcut = nn.Sequential(conv(inplanes, outplanes, 1, stride))


class PreActBlock(PreActivation):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_planes), conv(in_planes, planes, 3, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes)
        self.add_shortcut(in_planes, planes, stride)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        added = self.shortcut(a) if hasattr(self, "shortcut") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        y += added
        return y


class PreActBottleneck(PreActivation):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(in_planes), conv(in_planes, planes, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(planes), conv(planes, planes, 3, stride)
        self.bn3, self.conv3 = nn.BatchNorm2d(planes), conv(planes, 4 * planes, 1)
        self.add_shortcut(in_planes, 4 * planes, stride)

    def forward(self, x):
        a = F.relu(self.bn1(x))
        added = self.shortcut(a) if hasattr(self, "shortcut") else x
        y = self.conv2(F.relu(self.bn2(self.conv1(a))))
        y = self.conv3(F.relu(self.bn3(y)))
        y += added
        return y


class Nested(nn.Module):
    """Its layers are in a Sequential, with ReLU modules."""

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        layers = [conv(in_planes, planes, 3, stride), nn.BatchNorm2d(planes), nn.ReLU()]
        self.body = nn.Sequential(*layers, conv(planes, planes), nn.BatchNorm2d(planes))
        self.last = nn.ReLU()
        self.proj = nn.Identity() if stride == 1 else nn.Sequential(conv(in_planes, planes, 1, stride))

    def forward(self, x):
        return self.last(self.body(x) + self.proj(x))


class ThreeReLUs(nn.Module):
    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.conv1, self.bn1, self.relu1 = conv(in_planes, planes, 1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.conv2, self.bn2, self.relu2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = conv(planes, planes, 1), nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.down = None if stride == 1 else conv(in_planes, planes, 1, stride)

    def forward(self, x):
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + (x if self.down is None else self.down(x)))


class AddsItsInput(nn.Module):
    """No attribute holds the shortcut."""

    def __init__(self, in_planes, planes, stride=1):
        super().__init__()
        self.first, self.norm = conv(in_planes, planes), nn.BatchNorm2d(planes)
        self.second = nn.Conv2d(planes, planes, 3, padding=1, groups=2)

    def forward(self, x):
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


def preact(count):
    def spec(block):
        return BlockSpec(
            convs=tuple(f"conv{i + 1}" for i in range(count)),
            norms=(*(f"bn{i + 1}" for i in range(count)), None),
            relus=(),
            shortcut="shortcut" if hasattr(block, "shortcut") else IDENTITY,
            relu=False,
        )

    return spec


BASIC = BlockSpec(("conv1", "conv2"), (None, "bn1", "bn2"), relus=(), shortcut="shortcut")
SPECS = {
    BasicBlock: BASIC,
    Bottleneck: BlockSpec(("conv1", "conv2", "conv3"), (None, "bn1", "bn2", "bn3"), relus=(), shortcut="shortcut"),
    PreActBlock: preact(2),
    PreActBottleneck: preact(3),
    Nested: BlockSpec(("body.0", "body.3"), (None, "body.1", "body.4"), relus=("body.2", "last"), shortcut="proj"),
    ThreeReLUs: BlockSpec(
        convs=("conv1", "conv2", "conv3"),
        norms=(None, "bn1", "bn2", "bn3"),
        relus=("relu1", "relu2", "relu3"),
        shortcut="down",
    ),
    AddsItsInput: BlockSpec(("first", "second"), (None, "norm", None), relus=(), shortcut=IDENTITY),
}
SHAPES = {Bottleneck: (16, 4, 8), PreActBottleneck: (16, 4, 8)}  # (inputs, planes of an identity, of a projection)
