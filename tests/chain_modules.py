"""Modules that are no residual blocks, or none that can be fused as a whole; each has convolutions with a BatchNorm."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from handwritten_blocks import Basic, conv1, conv3
from torch import Tensor, nn


class Case(NamedTuple):
    """A module, and how many convolutions with a BatchNorm run as one op each for channels_last; None: any number."""

    make: Callable[[], nn.Module]
    runs: int | None
    size: tuple[int, int] = (7, 9)


class Squeeze(nn.Module):
    """Squeeze-and-excitation; https://arxiv.org/abs/1709.01507."""

    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, x):
        scale = F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))
        return x * torch.sigmoid(self.fc2(scale))


class SqueezeLinear(nn.Module):
    """The same with linear layers, as in most copies on GitHub."""

    def __init__(self, channels):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels, 2), nn.ReLU(inplace=True), nn.Linear(2, channels), nn.Sigmoid())

    def forward(self, x):
        b, c, _, _ = x.size()
        y = self.pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class SEBottleneck(nn.Module):
    def __init__(self, squeeze=Squeeze):
        super().__init__()
        self.conv1, self.bn1 = conv1(8, 4), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = conv3(4, 4), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = conv1(4, 8), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.se = squeeze(8)

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        out += x
        return self.relu(out)


def vgg():
    return nn.Sequential(
        conv3(8, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        conv3(6, 10, bias=True), nn.BatchNorm2d(10), nn.ReLU(inplace=True), conv3(10, 4), nn.BatchNorm2d(4),
    )  # fmt: skip


class ConvNormAct(nn.Module):
    def __init__(self, cin, cout, kernel=3, act=nn.ReLU, **settings):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, **{"padding": kernel // 2, "bias": False, **settings})
        self.norm = nn.BatchNorm2d(cout)
        self.act = act()

    def forward(self, inputs):
        return self.act(self.norm(self.conv(inputs)))


class Nested(nn.Module):
    """Units in a module that concatenates."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([ConvNormAct(8, 4, 1), ConvNormAct(8, 6), nn.Sequential(ConvNormAct(8, 2, 5))])
        self.last, self.norm = conv1(12, 8), nn.BatchNorm2d(8)

    def forward(self, x):
        y = torch.cat([branch(x) for branch in self.branches], dim=1)
        return F.relu(self.norm(self.last(y)))


class Res2(nn.Module):
    """The core of Res2Net; https://arxiv.org/abs/1904.01169."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(conv3(2, 2) for _ in range(3))
        self.bns = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(3))

    def forward(self, x):
        parts = torch.split(x, 2, 1)
        done = [parts[0]]
        for i in range(3):
            y = parts[i + 1] if i == 0 else parts[i + 1] + done[-1]
            done.append(F.relu(self.bns[i](self.convs[i](y))))
        return torch.cat(done, 1)


class Decoder(nn.Module):
    """A stage of a U-Net: with a skip it concatenates, without it convolves only."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv3(8, 8), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = conv3(16, 8), nn.BatchNorm2d(8)

    def forward(self, x, skip=None):
        y = F.relu(self.bn1(self.conv1(F.interpolate(x, scale_factor=2))))
        if skip is None:
            return y
        return F.relu(self.bn2(self.conv2(torch.cat([y, skip], 1))))


class DenseLayer(nn.Module):
    """torchvision's: the input is a tensor or a list of tensors."""

    def __init__(self, channels=8):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), conv1(channels, 6)
        self.norm2, self.conv2 = nn.BatchNorm2d(6), conv3(6, 4)

    def forward(self, inputs):
        features = [inputs] if isinstance(inputs, Tensor) else inputs
        y = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(y)))


class DenseArguments(DenseLayer):
    def forward(self, *inputs):
        y = self.conv1(F.relu(self.norm1(torch.cat(inputs, 1))))
        return self.conv2(F.relu(self.norm2(y)))


class Activations(nn.Module):
    """ReLU6, SiLU, dropout and biases behind the norms; dilated, strided, grouped and depthwise convolutions."""

    def __init__(self):
        super().__init__()
        self.expand, self.bn1, self.act1 = conv1(8, 12, bias=True), nn.BatchNorm2d(12), nn.ReLU6(inplace=True)
        self.depthwise, self.bn2, self.act2 = conv3(12, 12, groups=12), nn.BatchNorm2d(12), nn.SiLU()
        self.dilated, self.bn3 = conv3(12, 8, padding=2, dilation=2), nn.BatchNorm2d(8)
        self.strided, self.bn4 = conv3(8, 8, 2, groups=2, bias=True), nn.BatchNorm2d(8, affine=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        y = self.act1(self.bn1(self.expand(x)))
        y = self.act2(self.bn2(self.depthwise(y)))
        y = self.drop(F.relu(self.bn3(self.dilated(y))))
        return F.dropout(F.hardswish(self.bn4(self.strided(y))), 0.3, self.training)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv3(8, 6), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = conv1(6, 4), nn.BatchNorm2d(4)

    def forward(self, x):
        low = F.relu(self.bn1(self.conv1(x)))
        return low, self.bn2(self.conv2(low))


class Stem(nn.Module):
    """A network that is not known as a whole: the stem's layers are its children, the stages are fused blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv3(8, 6, 2), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.layer1, self.layer2 = nn.Sequential(Basic(), Basic()), nn.Sequential(Basic(6, 8, 2), Basic(8, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((2, 3)))


class Own(nn.Module):
    """A network whose stages are Sequentials: of blocks, of blocks and other modules, and nested."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 1, 1)
        self.layer1 = nn.Sequential(Basic(), Basic())
        self.layer2 = nn.Sequential(Basic(6, 8, 2), nn.Dropout2d(0.0), Basic(8, 8), conv3(8, 8), Basic(8, 8))
        self.layer3 = nn.Sequential(nn.Sequential(Basic(8, 8), Basic(8, 8)), nn.Sequential(Basic(8, 8)))

    def forward(self, x):
        return self.layer3(self.layer2(self.layer1(self.stem(x))))


class Reused(nn.Module):
    """One convolution with two norms, its input modified afterwards, an unused value, a norm on a pooled vector."""

    def __init__(self):
        super().__init__()
        self.conv, self.first, self.second = conv3(8, 8), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.gate, self.norm = conv1(8, 8), nn.BatchNorm2d(8)

    def forward(self, x):
        x = x * 2
        y = self.conv(x)
        x += 1
        y = self.first(y)
        z = self.second(self.conv(x))
        gate = torch.sigmoid(self.norm(self.gate(F.adaptive_avg_pool2d(y, 1))))
        return F.relu_(y) * gate + z - torch.relu(z)


class NamedRun(nn.Module):
    """Its children have names that other code might use."""

    def __init__(self):
        super().__init__()
        self.run, self.x = conv3(8, 8), nn.BatchNorm2d(8)
        self._eager, self._layer = conv1(8, 8), nn.BatchNorm2d(8)
        self._runs, self._module = nn.Hardtanh(), nn.SiLU()

    def forward(self, x):
        return self._module(self._layer(self._eager(self._runs(self.x(self.run(x))))))


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv3(8, 6), nn.BatchNorm2d(6)

    def between(self, y):
        return y

    def after(self, y):
        return y

    def forward(self, x):
        return F.leaky_relu(self.after(self.bn(self.between(self.conv(x)))), 0.1)


def one(**functions):
    methods = {name: lambda self, y, function=function: function(y) for name, function in functions.items()}
    return type("OneConvolution", (OneConvolution,), methods)


def with_attributes(**functions):
    module = OneConvolution()
    vars(module).update(functions)
    return module


class TensorOfShape(OneConvolution):
    def forward(self, x):
        return self.bn(self.conv(x)) * (torch.as_tensor(x.shape) * 2)[2]


CASES = {
    "se": Case(SEBottleneck, 3),
    "se linear": Case(lambda: SEBottleneck(SqueezeLinear), 3),
    "vgg": Case(vgg, 3),
    "nested": Case(Nested, 4),
    "res2": Case(Res2, 3),
    "activations": Case(Activations, 2),
    "two outputs": Case(TwoOutputs, 2),
    "reused": Case(Reused, 3),
    "names": Case(NamedRun, None),
    "one": Case(OneConvolution, 1),
    "1x1 image": Case(OneConvolution, 0, (1, 1)),
    "contiguous between": Case(one(between=lambda y: y.contiguous()), None),
    "contiguous after": Case(one(after=lambda y: F.relu(y.contiguous())), None),
    "clone between": Case(one(between=lambda y: y.clone()), 1),
    "transposed view": Case(one(after=lambda y: y.flatten(2).transpose(1, 2)), 1),
    "as_tensor between": Case(one(between=torch.as_tensor), 1),
    "tensor of a shape": Case(TensorOfShape, None),
    "function after": Case(lambda: with_attributes(after=lambda y: y * 2), 1),
    "partial after": Case(lambda: with_attributes(after=functools.partial(lambda y, by: y * by[0], by=[2])), 1),
}
