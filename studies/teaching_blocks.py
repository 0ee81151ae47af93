"""The faulty and mended classes of the study ``teaching_errors``."""

import torch.nn.functional as F
from torch import Tensor, nn


class Layers(nn.Module):
    """The layers of a two-convolution block; the blocks below differ in ``forward``."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=padding, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if (inplanes, stride) != (planes, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Block(Layers):
    """As in He et al. 2015 (arXiv:1512.03385)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class Plain(Layers):
    """No shortcut, for comparison."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__(inplanes, planes, stride)
        self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x))


class Unpadded(Block):
    """Raises: the second convolution trims a pixel on each side."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__(inplanes, planes, stride, padding=0)


class Cropped(Unpadded):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x)[:, :, 1:-1, 1:-1])


class Interpolated(Unpadded):
    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        return F.relu(F.interpolate(self.branch(x), size=shortcut.shape[2:]) + shortcut)


class ProjectsOutput(Layers):
    """The shortcut reads ``out``, not ``x``."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__(inplanes, planes, stride)
        if (inplanes, stride) != (planes, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(planes, planes, 1, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out = out + self.shortcut(out)
        return F.relu(out)


class ProjectsOutputInPlace(ProjectsOutput):
    """Raises in the backward pass: the addition overwrites what the shortcut's convolution has saved."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        out += self.shortcut(out)
        return F.relu(out)


class PreActivation(nn.Module):
    """As in He et al. 2016 (arXiv:1603.05027)."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inplanes)
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut = nn.Sequential()
        if (inplanes, stride) != (planes, 1):
            self.shortcut = nn.Conv2d(inplanes, planes, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        out = self.conv1(out)
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class ConvolvesUnnormalised(PreActivation):
    """``bn1`` is computed and thrown away."""

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x))
        out = self.conv1(x)
        return self.conv2(F.relu(self.bn2(out))) + self.shortcut(x)


class Head(nn.Module):
    """(N, C, H, W) -> (N, 10). Made for one size of input: the pooling leaves (N, C, 1, 1) if H and W are ``pool``."""

    def __init__(self, channels: int, pool: int = 4) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(pool)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).flatten(1))


class ViewOfWrongSize(Head):
    """With a pooling that leaves (N, C, 2, 2), four rows per image, each of a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, pool=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).view(-1, self.fc.in_features))


class ReshapeOfWrongSize(ViewOfWrongSize):
    """ "Mended" until it runs: ``reshape`` instead of ``view``, and only as many rows as there are images."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x).reshape(-1, self.fc.in_features))[: len(x)]
