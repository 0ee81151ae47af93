"""Residual blocks as people write them by hand, in many styles; a chain of convolutions computes each of them exactly.

:mod:`handwritten_shortcuts` has more, with unusual shortcuts, pre-activation and norms; :mod:`handwritten_traps` has
blocks that compute something else.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Case(NamedTuple):
    """A block, and whether a chain computes exactly this function in eval and in training mode.

    None: a chain could, but to convert the block is not required.
    """

    make: Callable[[], nn.Module]
    channels: int = 6
    exact_eval: bool | None = True
    exact_train: bool | None = True


def conv3(cin, cout, stride=1, **settings):
    return nn.Conv2d(cin, cout, 3, stride, **{"padding": 1, "bias": False, **settings})


def conv1(cin, cout, stride=1, **settings):
    return nn.Conv2d(cin, cout, 1, stride, **{"bias": False, **settings})


def projection(cin, cout, stride):
    return nn.Sequential(conv1(cin, cout, stride), nn.BatchNorm2d(cout))


class TwoConvs(nn.Module):
    """The layers of many blocks, which differ in ``forward``."""

    def __init__(self, cin=6, cout=6, stride=1, norm=nn.BatchNorm2d, **settings):
        super().__init__()
        self.conv1, self.bn1 = conv3(cin, cout, stride, **settings), norm(cout)
        self.conv2, self.bn2 = conv3(cout, cout, **settings), norm(cout)
        self.relu = nn.ReLU()
        self.downsample = None if (cin, stride) == (cout, 1) else projection(cin, cout, stride)

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Basic(TwoConvs):
    def forward(self, x):
        identity = x
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return F.relu(out)


class SharedReLU(TwoConvs):
    def forward(self, x):
        skip = self.downsample(x) if self.downsample else x
        return self.relu(self.branch(x) + skip)


class RebindsX(TwoConvs):
    def forward(self, x):
        shortcut = x
        x = self.conv1(x)
        x = self.bn1(x)
        x = torch.relu(x)
        x = self.bn2(self.conv2(x))
        x = torch.add(shortcut, x)
        return x.relu()


class InPlaceMethods(TwoConvs):
    def forward(self, x):
        out = self.bn1(self.conv1(x)).relu_()
        return self.bn2(self.conv2(out)).add_(x).relu_()


class ReLUMadeInForward(TwoConvs):
    def forward(self, x):
        act = nn.ReLU(inplace=True)
        return nn.ReLU()(self.bn2(self.conv2(act(self.bn1(self.conv1(x))))) + x)


class AddsOntoTheShortcut(TwoConvs):
    def forward(self, x):
        shortcut = self.downsample(x)
        shortcut += self.branch(x)
        return F.relu(shortcut, inplace=True)


class NoLastReLU(TwoConvs):
    def forward(self, x):
        return x + self.branch(x)


class FunctionalConv(TwoConvs):
    def forward(self, x):
        out = F.relu(self.bn1(F.conv2d(x, self.conv1.weight, stride=1, padding=1)))
        return F.relu(self.bn2(F.conv2d(out, self.conv2.weight, None, 1, 1)) + x)


class FunctionAsAttribute(TwoConvs):
    def __init__(self, act=F.relu):
        super().__init__()
        self.act = act

    def forward(self, inputs):
        out = self.act(self.bn1(self.conv1(inputs)))
        return self.act(self.bn2(self.conv2(out)) + inputs)


class OptionalArgument(TwoConvs):
    def forward(self, x, residual=None):
        if residual is None:
            residual = x
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + residual)


class CallsSuper(TwoConvs):
    def forward(self, x):
        return self.branch(x)


class CallsSuperTwice(CallsSuper):
    def forward(self, x):
        return F.relu(x + super().forward(x))


class Helpers(TwoConvs):
    def skip(self, x):
        return x if self.downsample is None else self.downsample(x)

    def main(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x))

    def forward(self, x):
        return self.relu(self.skip(x) + self.main(x))


class Flagged(TwoConvs):
    """Flags choose the computation; these values give a plain block."""

    def __init__(self, *args, use_relu=True, skip=True, scale=1):
        super().__init__(*args)
        self.use_relu, self.skip, self.scale = use_relu, skip, scale

    def forward(self, x):
        out = self.branch(x)
        if self.scale != 1:
            out = out * self.scale
        if self.skip:
            out = out + (x if self.downsample is None else self.downsample(x))
        return self.relu(out) if self.use_relu else out


class Checkpointed(TwoConvs):
    def __init__(self, with_cp=False):
        super().__init__()
        self.with_cp = with_cp

    def forward(self, x):
        def inner(x):
            return self.branch(x) + x

        if self.with_cp and x.requires_grad:
            return self.relu(checkpoint(inner, x, use_reentrant=False))
        return self.relu(inner(x))


class NamesOfNorms(nn.Module):
    """Registers layers under names that it computes, and finds them by properties."""

    def __init__(self, planes=6):
        super().__init__()
        self.norm1_name, self.norm2_name = "bn1", "bn2"
        self.conv1 = conv3(planes, planes)
        self.add_module(self.norm1_name, nn.BatchNorm2d(planes))
        self.conv2 = conv3(planes, planes)
        self.add_module(self.norm2_name, nn.BatchNorm2d(planes))

    @property
    def norm1(self):
        return getattr(self, self.norm1_name)

    @property
    def norm2(self):
        return getattr(self, self.norm2_name)

    def forward(self, x):
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + x)


class ListedOrder(TwoConvs):
    """Walks a list of names."""

    def __init__(self):
        super().__init__()
        self.order = ["conv1", "bn1", "relu", "conv2", "bn2"]

    def forward(self, x):
        out = x
        for name in self.order:
            out = getattr(self, name)(out)
        return self.relu(out + x)


class StridesFirst(nn.Module):
    """Caffe's bottleneck."""

    def __init__(self, cin=6, planes=4, cout=8, stride=2):
        super().__init__()
        self.conv1, self.bn1 = conv1(cin, planes, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv3(planes, planes), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv1(planes, cout), nn.BatchNorm2d(cout)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if (cin, stride) != (cout, 1):
            self.shortcut = projection(cin, cout, stride)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.shortcut(x)
        return self.relu(y)


class Bodied(nn.Module):
    """All layers are in a Sequential."""

    def __init__(self, body, shortcut=None, last=None):
        super().__init__()
        self.body = body
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.last = nn.ReLU() if last is None else last

    def forward(self, x):
        return self.last(self.shortcut(x) + self.body(x))


class IteratesBody(Bodied):
    def forward(self, x):
        out = x
        for layer in self.body:
            out = layer(out)
        return self.last(out + self.shortcut(x))


class SlicesBody(Bodied):
    def forward(self, x):
        out = self.body[:3](x)
        out = self.body[3:](out)
        out += self.shortcut(x)
        return F.relu_(out)


class ReducesBody(Bodied):
    def forward(self, x):
        return F.relu(functools.reduce(lambda value, layer: layer(value), self.body, x) + x)


def body(cin=6, cout=6, stride=1, **settings):
    layers = [conv3(cin, cout, stride, **settings), nn.BatchNorm2d(cout), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, conv3(cout, cout, **settings), nn.BatchNorm2d(cout))


def odd_kernels():
    first = nn.Conv2d(6, 8, (3, 1), (2, 1), (1, 0), bias=False)
    second = nn.Conv2d(8, 8, (1, 5), (1, 2), (0, 2))
    main = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.BatchNorm2d(8))
    return Bodied(main, nn.Sequential(conv3(6, 8, 2), nn.BatchNorm2d(8)))


def separable():
    layers = [conv3(6, 6, groups=6), conv1(6, 6), nn.BatchNorm2d(6), nn.ReLU()]
    return Bodied(nn.Sequential(*layers, conv3(6, 6, groups=6), conv1(6, 6), nn.BatchNorm2d(6)))


class NamedLayers(nn.Module):
    def __init__(self, planes=6):
        super().__init__()
        self.layers = nn.ModuleDict(
            {"a": conv3(planes, planes), "norm_a": nn.BatchNorm2d(planes), "act": nn.ReLU()}
            | {"b": conv3(planes, planes), "norm_b": nn.BatchNorm2d(planes)}
        )

    def forward(self, x):
        out = x
        for layer in self.layers.values():
            out = layer(out)
        return self.layers["act"](out + x)


class Loop(nn.Module):
    """A number of convolutions with one loop."""

    def __init__(self, depth=4, planes=4):
        super().__init__()
        self.depth = depth
        self.convs = nn.ModuleList([conv3(planes, planes) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(planes) for _ in range(depth)])

    def forward(self, x):
        out = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            out = norm(conv(out))
            if i < self.depth - 1:
                out = F.relu(out)
        return F.relu(out + x)


class ControlFlow(TwoConvs):
    def forward(self, x):
        out, pending = x, list(self.named_children())
        while pending:
            name, layer = pending.pop(0)
            if name == "downsample" or layer is None:
                continue
            try:
                out = layer(out) if not isinstance(layer, nn.ReLU) else out
            except TypeError:
                raise ValueError(name) from None
            if name == "bn1":
                out = self.relu(out)
        out = out + x
        return self.relu(out)


class ConvBNReLU(nn.Module):
    """A unit with its own forward."""

    def __init__(self, cin, cout, kernel=3, stride=1, act=True):
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x):
        return self.act(self.normalise(self.conv(x)))

    def normalise(self, x):
        return self.bn(x)


class Units(nn.Module):
    def __init__(self, cin=6, cout=8, stride=2):
        super().__init__()
        self.unit1 = ConvBNReLU(cin, cout, 3, stride)
        self.unit2 = ConvBNReLU(cout, cout, act=False)
        self.skip = ConvBNReLU(cin, cout, 1, stride, act=False) if stride != 1 else nn.Identity()
        self.act = nn.ReLU()

    def forward(self, hidden_state):
        residual = hidden_state
        hidden_state = self.unit2(self.unit1(hidden_state))
        residual = self.skip(residual)
        hidden_state += residual
        return self.act(hidden_state)


class ConvBN(nn.Sequential):
    def __init__(self, cin, cout, kernel=3):
        super().__init__(nn.Conv2d(cin, cout, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(cout))


def nested_sequentials():
    return Bodied(nn.Sequential(nn.Sequential(ConvBN(6, 6, 1), nn.ReLU()), ConvBN(6, 6), nn.ReLU(), ConvBN(6, 6, 1)))


class Residual(nn.Module):
    """Adds its input to what any function computes."""

    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


class ResidualOfAny(Residual):
    def forward(self, x, *args, **kwargs):
        return self.fn(x, *args, **kwargs) + x


part = functools.partial
BLOCKS = {
    "basic": Case(Basic),
    "basic-projected": Case(part(Basic, 6, 8, 2)),
    "shared-relu": Case(part(SharedReLU, 6, 8)),
    "rebinds-x": Case(RebindsX),
    "inplace-methods": Case(InPlaceMethods),
    "relu-made-in-forward": Case(ReLUMadeInForward),
    "adds-onto-shortcut": Case(part(AddsOntoTheShortcut, 6, 8, 2)),
    "no-last-relu": Case(NoLastReLU),
    "functional-conv": Case(FunctionalConv),
    "function-as-attribute": Case(FunctionAsAttribute),
    "optional-argument": Case(OptionalArgument),
    "calls-super": Case(CallsSuperTwice),
    "helpers": Case(part(Helpers, 6, 8, 2)),
    "flags": Case(part(Flagged, 6, 8, 2)),
    "checkpoint-off": Case(Checkpointed),
    "names-of-norms": Case(NamesOfNorms),
    "listed-order": Case(ListedOrder),
    "caffe-bottleneck": Case(StridesFirst),
    "empty-sequential": Case(part(StridesFirst, 8, 4, 8, 1), 8),
    "sequential": Case(lambda: Bodied(body(6, 8, 2), projection(6, 8, 2))),
    "iterates": Case(lambda: IteratesBody(body())),
    "slices": Case(lambda: SlicesBody(body(6, 8, 2), projection(6, 8, 2))),
    "reduces": Case(lambda: ReducesBody(body())),
    "odd-kernels": Case(odd_kernels),
    "separable": Case(separable),
    "module-dict": Case(NamedLayers),
    "loop-of-4": Case(Loop, 4),
    "loop-of-1": Case(part(Loop, 1), 4),
    "control-flow": Case(ControlFlow),
    "units": Case(Units),
    "units-identity": Case(part(Units, 8, 8, 1), 8),
    "nested-sequentials": Case(nested_sequentials),
    "residual-of-function": Case(lambda: Residual(body())),
    "residual-of-any": Case(lambda: ResidualOfAny(body()), 6, None, None),
    "bias": Case(part(Basic, 6, 8, 2, bias=True)),
    "groups": Case(lambda: Bodied(body(8, 8, groups=4)), 8),
    "dilation": Case(part(SharedReLU, dilation=2, padding=2)),
}
