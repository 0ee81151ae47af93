"""Hand-written residual blocks with unusual shortcuts, pre-activation and norms; a chain computes them exactly."""

import pytest
import torch
import torch.nn.functional as F
from handwritten_blocks import Basic, Bodied, Case, Residual, TwoConvs, body, conv1, conv3, part
from torch import nn


def resnet_d():
    pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    return Bodied(body(6, 8, 2), nn.Sequential(pool, conv1(6, 8), nn.BatchNorm2d(8)))


def deep_shortcut():
    """Either side could be the main path."""
    return Bodied(body(6, 8, 2), body(6, 8, 2))


class Lambda(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def option_a():
    return Bodied(body(4, 8, 2), Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0)))


class WithoutProjection(TwoConvs):
    def __init__(self, *args):
        super().__init__(*args)
        del self.downsample


class ConcatenatesZeros(WithoutProjection):
    def forward(self, x):
        identity = F.avg_pool2d(x, 1, 2)
        identity = torch.cat([identity, torch.zeros_like(identity)], dim=1)
        return F.relu(self.branch(x) + identity)


class SubsamplesByPooling(WithoutProjection):
    def forward(self, x):
        return F.relu(self.branch(x) + F.max_pool2d(x, 1, 2))


class DiveIntoDeepLearning(nn.Module):
    """conv3 is the shortcut, without BatchNorm."""

    def __init__(self, cin=6, planes=8, use_1x1conv=True, strides=2):
        super().__init__()
        self.conv1 = nn.Conv2d(cin, planes, kernel_size=3, padding=1, stride=strides)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1)
        self.conv3 = nn.Conv2d(cin, planes, kernel_size=1, stride=strides) if use_1x1conv else None
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)

    def forward(self, X):
        Y = F.relu(self.bn1(self.conv1(X)))
        Y = self.bn2(self.conv2(Y))
        if self.conv3:
            X = self.conv3(X)
        Y += X
        return F.relu(Y)


class PreActivation(nn.Module):
    """Projects the activated tensor; it has an attribute ``shortcut`` only then."""

    def __init__(self, cin=6, cout=6, stride=1):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv3(cin, cout, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv3(cout, cout)
        if (cin, stride) != (cout, 1):
            self.shortcut = conv1(cin, cout, stride)

    def forward(self, x):
        out = F.relu(self.bn1(x))
        shortcut = self.shortcut(out) if hasattr(self, "shortcut") else x
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out += shortcut
        return out


class WideResNet(nn.Module):
    """Projects x itself."""

    def __init__(self, cin=6, cout=8, stride=2, p=0.0):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(cin), conv3(cin, cout, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(cout), conv3(cout, cout)
        self.dropout = nn.Dropout(p)
        self.shortcut = nn.Sequential() if (cin, stride) == (cout, 1) else nn.Sequential(conv1(cin, cout, stride))

    def forward(self, x):
        out = self.conv1(F.relu(self.bn1(x)))
        out = self.conv2(self.dropout(F.relu(self.bn2(out))))
        return out + self.shortcut(x)


class ActivatesX(PreActivation):
    """Where the channels change, it adds a projection of the activated tensor, and the activated tensor elsewhere."""

    def forward(self, x):
        x = torch.relu(self.bn1(x))
        out = self.conv2(torch.relu_(self.bn2(self.conv1(x))))
        return torch.add(x if not hasattr(self, "shortcut") else self.shortcut(x), out)


def preact_bottleneck():
    layers = [nn.BatchNorm2d(8), nn.ReLU(), conv1(8, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv3(4, 4)]
    return Residual(nn.Sequential(*layers, nn.BatchNorm2d(4), nn.ReLU(), conv1(4, 8)))


class Tower(nn.Module):
    """A block of a chess network: BatchNorms without gamma and beta."""

    def __init__(self, planes=8):
        super().__init__()
        self.conv1 = nn.Conv2d(planes, planes, 3, padding=1)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(planes, affine=False) for _ in range(2))

    def forward(self, planes):
        out = self.norms[0](self.conv1(planes)).relu()
        return (planes + self.norms[1](self.conv2(out))).relu()


class MONAI:
    """The network of MONAI's shortcut A: its blocks call a method of it."""

    def __init__(self):
        self.state = {"stride": 2}

    def pool(self, x, planes):
        out = F.avg_pool2d(x, 1, self.state["stride"])
        zeros = torch.zeros(out.size(0), planes - out.size(1), *out.shape[2:], dtype=out.dtype, device=out.device)
        return torch.cat([out.data, zeros], dim=1)


def bound_method():
    block = Basic(4, 8, 2)
    block.downsample = None
    del block._modules["downsample"]
    block.downsample = part(MONAI().pool, planes=8)
    return block


class AsTensor(PreActivation):
    """MONAI's HighResBlock."""

    def forward(self, x):
        return self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))) + torch.as_tensor(F.pad(x, (0, 0)))


def frozen(planes):
    norm = pytest.importorskip("torchvision.ops").FrozenBatchNorm2d(planes)
    for name, buffer in norm.named_buffers():
        buffer.uniform_(0.5, 1.5) if name in ("weight", "running_var") else buffer.normal_(0, 0.3)
    return norm


def settings_of_norms():
    norms = nn.BatchNorm2d(6, eps=1e-3, momentum=None), nn.BatchNorm2d(6, momentum=0.7, affine=False)
    return Bodied(nn.Sequential(conv3(6, 6), norms[0], nn.ReLU(), conv3(6, 6), norms[1]))


SHORTCUTS = {
    "resnet-d": Case(resnet_d),
    "deep-shortcut": Case(deep_shortcut),
    "option-a": Case(option_a, 4),
    "concatenates-zeros": Case(part(ConcatenatesZeros, 4, 8, 2), 4),
    "max-pooled-shortcut": Case(part(SubsamplesByPooling, 6, 6, 2)),
    "d2l": Case(DiveIntoDeepLearning),
    "preact": Case(PreActivation),
    "preact-projected": Case(part(PreActivation, 6, 8, 2)),
    "preact-one-conv": Case(lambda: Residual(nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv3(6, 6)))),
    "preact-bottleneck": Case(preact_bottleneck, 8),
    "preact-activated": Case(ActivatesX),
    "wide-resnet": Case(WideResNet),
    "wide-resnet-identity": Case(part(WideResNet, 8, 8, 1), 8),
    "bound-method": Case(bound_method, 4),
    "as-tensor": Case(AsTensor),
    "chess-tower": Case(Tower, 8),
    "settings-of-norms": Case(settings_of_norms),
    "partial-norm": Case(part(Basic, norm=part(nn.BatchNorm2d, track_running_stats=False))),
    "sync-norm": Case(part(Basic, norm=nn.SyncBatchNorm)),
    "frozen-norm": Case(part(Basic, 6, 6, 1, frozen)),
}
