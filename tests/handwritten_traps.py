"""Hand-written residual blocks that nearly compute a chain: in one mode only, with a side effect, or something else."""

import random

import torch
import torch.nn.functional as F
from handwritten_blocks import Basic, Bodied, Case, Checkpointed, TwoConvs, body, conv1, conv3, part, projection
from handwritten_shortcuts import Lambda, PreActivation, WideResNet
from torch import nn
from torch.nn.utils import parametrizations


class DropsOut(TwoConvs):
    def __init__(self, p=0.3):
        super().__init__()
        self.p = p

    def forward(self, x):
        out = F.dropout(self.branch(x), self.p, self.training)
        return F.relu(out + x)


class StochasticDepth(TwoConvs):
    def __init__(self, p=0.5):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.training and torch.rand(1).item() < self.p:
            return x
        return F.relu(self.branch(x) + x)


class DropPath(nn.Module):
    def __init__(self, p):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.p == 0.0 or not self.training:
            return x
        keep = torch.rand((x.shape[0], 1, 1, 1), dtype=x.dtype) > self.p
        return x * keep / (1 - self.p)


class DropsPath(TwoConvs):
    def __init__(self, p=0.4):
        super().__init__()
        self.drop_path = DropPath(p)

    def forward(self, x):
        return F.relu(x + self.drop_path(self.branch(x)))


class ScalesBySurvival(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        if not self.training:
            out = 0.8 * out
        return F.relu(out + x)


class HalvesInTraining(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        if self.training:
            out = out * 0.5
        return F.relu(out + x)


class OneConvInEval(TwoConvs):
    def forward(self, x):
        if self.training:
            return F.relu(self.branch(x) + x)
        return F.relu(self.bn1(self.conv1(x)) + x)


class SkipsAtRandom(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        return F.relu(out + x) if random.random() < 0.5 else F.relu(out)


class AddsNoise(TwoConvs):
    def forward(self, x):
        return F.relu(self.branch(x) + x + 0.1 * torch.randn_like(x))


class SqueezesAndExcites(TwoConvs):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)

    def forward(self, x):
        out = self.branch(x)
        scale = torch.sigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(out, 1)))))
        return F.relu(out * scale + x)


class ReLUBeforeAdd(TwoConvs):
    def forward(self, x):
        return F.relu(self.branch(x)) + x


class NormAfterAdd(TwoConvs):
    def forward(self, x):
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))) + x))


class NormAfterReLU(TwoConvs):
    def forward(self, x):
        return F.relu(self.bn2(self.conv2(self.bn1(F.relu(self.conv1(x))))) + x)


class SkipsTheInside(TwoConvs):
    """Adds what the second convolution reads, not x."""

    def forward(self, x):
        inside = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inside)) + inside)


class Concatenates(TwoConvs):
    def forward(self, x):
        return F.relu(torch.cat([self.branch(x), x], dim=1))


class Subtracts(TwoConvs):
    def forward(self, x):
        return F.relu(x - self.branch(x))


class AddsHalf(TwoConvs):
    def forward(self, x):
        return F.relu(torch.add(x, self.branch(x), alpha=0.5))


class TenthOfBranch(TwoConvs):
    def forward(self, x):
        return F.relu(0.1 * self.branch(x) + x)


class TwiceX(TwoConvs):
    def forward(self, x):
        return F.relu(self.branch(x) + 2 * x)


class AddsMean(TwoConvs):
    """The addition broadcasts."""

    def forward(self, x):
        return F.relu(self.branch(x) + x.mean((2, 3), keepdim=True))


class LayerScale(TwoConvs):
    def __init__(self, *shape):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, 0.3))

    def forward(self, x):
        return F.relu(x + self.gamma * self.branch(x))


class LearnsBeta(nn.Module):
    """A block of a chess network: gamma is 1, beta a Parameter of the block."""

    def __init__(self, planes=6):
        super().__init__()
        self.conv, self.bn = conv3(planes, planes), nn.BatchNorm2d(planes, affine=False)
        self.beta = nn.Parameter(torch.linspace(-0.2, 0.2, planes))

    def forward(self, x):
        out = self.bn(self.conv(x)) + self.beta.view(1, -1, 1, 1).expand_as(x)
        return F.relu(out + x)


class IgnoresDownsample(TwoConvs):
    """Counts on BatchNorm's side effect, if at all."""

    def __init__(self):
        super().__init__()
        self.downsample = projection(6, 6, 1)

    def forward(self, x):
        self.downsample(x)
        return F.relu(self.branch(x) + x)


class ThrowsNormAway(PreActivation):
    """Normalises x, then convolves x itself."""

    def forward(self, x):
        F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(x)))) + x


class ModifiesX(TwoConvs):
    def forward(self, x):
        out = self.conv1(F.relu_(x))
        return self.bn2(self.conv2(F.relu(self.bn1(out)))) + x


class AddsIntoX(TwoConvs):
    def forward(self, x):
        out = self.branch(x.clone())
        x += out
        return F.relu(x)


class ModifiesXInTheShortcut(TwoConvs):
    def __init__(self):
        super().__init__()
        self.downsample = nn.Sequential(nn.ReLU(inplace=True), conv1(6, 6), nn.BatchNorm2d(6))

    def forward(self, x):
        identity = self.downsample(x)
        return F.relu(self.branch(x) + identity)


class TestsChannels(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        if x.shape[1] != out.shape[1]:
            x = self.downsample(x)
        return F.relu(out + x)


class TestsSize(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        return F.relu(out + x) if x.shape[-1] % 2 == 0 else F.relu(out)


class TestsValues(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        return F.relu(out + x) if x.mean() > 0 else F.relu(out - x)


class TestsType(TwoConvs):
    """A tracer's proxy is no tensor."""

    def forward(self, x):
        out = self.branch(x)
        if isinstance(x, torch.Tensor):
            out = out * 2
        return F.relu(out + x)


class TestsGradMode(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        if torch.is_grad_enabled():
            out = out * 2
        return F.relu(out + x)


class ShortcutWithoutGrad(TwoConvs):
    def forward(self, x):
        with torch.no_grad():
            identity = self.downsample(x)
        return F.relu(self.branch(x) + identity)


class Detaches(TwoConvs):
    def forward(self, x):
        return F.relu(self.branch(x) + x.detach())


class Autocasts(TwoConvs):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            out = self.branch(x)
        return F.relu(out + x)


class DoublesGradient(TwoConvs):
    def forward(self, x):
        out = self.branch(x)
        if out.requires_grad:
            out.register_hook(lambda gradient: 2 * gradient)
        return F.relu(out + x)


class RemembersOutput(TwoConvs):
    last = None

    def forward(self, x):
        self.last = F.relu(self.branch(x) + x)
        return self.last


class CountsCalls(TwoConvs):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return F.relu(self.branch(x) + x)


class CountsInBuffer(TwoConvs):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls += 1
        return F.relu(self.branch(x) + x)


class AppendsToList(TwoConvs):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(len(self.seen))
        return F.relu(self.branch(x) + x)


class OverridesCall(Basic):
    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


class FrozenByHand(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.register_buffer("weight", torch.linspace(0.5, 1.5, planes))
        self.register_buffer("bias", torch.linspace(-0.3, 0.3, planes))

    def forward(self, x):
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class DoublingNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class ConvWithNorm(nn.Conv2d):
    """A unit that is itself the convolution."""

    def __init__(self, *args, norm, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = self.norm(x)
        return x if self.activation is None else self.activation(x)


class ConvsWithNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = ConvWithNorm(6, 6, 3, padding=1, bias=False, norm=nn.BatchNorm2d(6), activation=F.relu_)
        self.conv2 = ConvWithNorm(6, 6, 3, padding=1, bias=False, norm=nn.BatchNorm2d(6))

    def forward(self, x):
        return F.relu_(self.conv2(self.conv1(x)) + x)


class Pyramid(PreActivation):
    """No ReLU follows the first BatchNorm."""

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(self.bn1(x))))) + x


def with_activation(act):
    return lambda: Bodied(nn.Sequential(*(act if isinstance(m, nn.ReLU) else m for m in body())), last=act)


def with_layer(index, make):
    """A block whose Sequential has another layer at this position."""

    def block():
        layers = body()
        layers[index] = make()
        return Bodied(layers)

    return block


def changed(make, change):
    def block():
        built = make()
        change(built)
        return built

    return block


def weight_norm(block):
    parametrizations.weight_norm(block.conv1)


def spectral_norm(block):
    parametrizations.spectral_norm(block.conv1)


def shares_conv(block):
    block.conv2 = block.conv1


def shares_norm(block):
    block.bn2 = block.bn1


def scaled_x():
    return Bodied(body(), Lambda(lambda x: x * 0.5))


NEVER = {"exact_eval": False, "exact_train": False}
MAYBE = {"exact_eval": None, "exact_train": None}
EVAL = {"exact_train": False}
TRAPS = {
    "dropout": Case(part(WideResNet, p=0.3), **EVAL),
    "functional-dropout": Case(DropsOut, **EVAL),
    "functional-dropout-of-0": Case(part(DropsOut, 0.0)),
    "stochastic-depth": Case(StochasticDepth, **EVAL),
    "drop-path": Case(DropsPath, **EVAL),
    "drop-path-of-0": Case(part(DropsPath, 0.0)),
    "halves-in-training": Case(HalvesInTraining, **EVAL),
    "scales-by-survival": Case(ScalesBySurvival, 6, False, None),
    "one-conv-in-eval": Case(OneConvInEval, **MAYBE),
    "skips-at-random": Case(SkipsAtRandom, **NEVER),
    "adds-noise": Case(AddsNoise, **NEVER),
    "squeeze-excitation": Case(SqueezesAndExcites, **NEVER),
    "leaky-relu": Case(with_activation(nn.LeakyReLU(0.1)), **NEVER),
    "relu6": Case(with_activation(nn.ReLU6()), **NEVER),
    "no-inner-relu": Case(with_activation(nn.Identity()), **NEVER),
    "relu-before-add": Case(ReLUBeforeAdd, **NEVER),
    "norm-after-add": Case(NormAfterAdd, **NEVER),
    "norm-after-relu": Case(NormAfterReLU, **NEVER),
    "skips-the-inside": Case(SkipsTheInside, **NEVER),
    "concatenates": Case(Concatenates, **NEVER),
    "subtracts": Case(Subtracts, **NEVER),
    "adds-half": Case(AddsHalf, **NEVER),
    "tenth-of-branch": Case(TenthOfBranch, **NEVER),
    "twice-x": Case(TwiceX, **MAYBE),
    "scaled-x": Case(scaled_x, **MAYBE),
    "adds-mean": Case(AddsMean, **MAYBE),
    "scalar-parameter": Case(LayerScale, **NEVER),
    "layer-scale": Case(part(LayerScale, 6, 1, 1), **NEVER),
    "beta-parameter": Case(LearnsBeta, **MAYBE),
    "ignores-downsample": Case(IgnoresDownsample, 6, None, False),
    "throws-norm-away": Case(ThrowsNormAway, **NEVER),
    "modifies-x": Case(ModifiesX, **NEVER),
    "adds-into-x": Case(AddsIntoX, **NEVER),
    "modifies-x-in-shortcut": Case(ModifiesXInTheShortcut, **NEVER),
    "tests-channels": Case(part(TestsChannels, 6, 8), **MAYBE),
    "tests-size": Case(TestsSize, **MAYBE),
    "tests-values": Case(TestsValues, **NEVER),
    "tests-type": Case(TestsType, **NEVER),
    "tests-grad-mode": Case(TestsGradMode, 6, None, False),
    "shortcut-without-grad": Case(part(ShortcutWithoutGrad, 6, 8, 2), 6, None, False),
    "detaches": Case(Detaches, 6, None, False),
    "autocasts": Case(Autocasts, **NEVER),
    "doubles-gradient": Case(DoublesGradient, 6, None, False),
    "remembers-output": Case(RemembersOutput, **NEVER),
    "counts-calls": Case(CountsCalls, **NEVER),
    "counts-in-buffer": Case(CountsInBuffer, **NEVER),
    "appends-to-list": Case(AppendsToList, **NEVER),
    "overrides-call": Case(OverridesCall, **NEVER),
    "checkpoint-on": Case(part(Checkpointed, with_cp=True), 6, None, False),
    "frozen-by-hand": Case(part(Basic, norm=FrozenByHand), **NEVER),
    "doubling-norm": Case(part(Basic, norm=DoublingNorm), **NEVER),
    "group-norm": Case(part(Basic, norm=part(nn.GroupNorm, 2)), **NEVER),
    "circular-padding": Case(part(Basic, padding_mode="circular"), **NEVER),
    "string-padding": Case(part(Basic, padding="same"), **MAYBE),
    "standardised-conv": Case(with_layer(0, part(StandardisedConv, 6, 6, 3, padding=1)), **NEVER),
    "convs-with-norms": Case(ConvsWithNorms, **MAYBE),
    "transposed-conv": Case(with_layer(3, part(nn.ConvTranspose2d, 6, 6, 3, padding=1)), **NEVER),
    "pyramid": Case(Pyramid, **NEVER),
    "weight-norm": Case(changed(Basic, weight_norm), **MAYBE),
    "spectral-norm": Case(changed(Basic, spectral_norm), 6, None, False),
    "shared-conv": Case(changed(Basic, shares_conv), **MAYBE),
    "shared-norm": Case(changed(Basic, shares_norm), **MAYBE),
}
