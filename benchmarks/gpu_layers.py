"""The layers of ``gpu_kernels`` by name: tensors, contenders, and the float64 reference.

``64@56`` is the 3x3 convolution of 64 channels at 56x56 with BatchNorm, residual and ReLU; ``1x1 64-256@56`` a
bottleneck's, with a residual where it widens; ``downsample`` the last convolution of a block fused with the shortcut
projection; ``stem`` the first convolution with its max-pooling; ``stats`` a training convolution that also computes the
mean and variance of its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_fused import functional, ops, reference

from .folding import folded

STAGES = {"64@56": (64, 56), "128@28": (128, 28), "256@14": (256, 14), "512@7": (512, 7)}
HALVED = 2  # the stride of a projection
Parts = dict[str, Tensor]


@dataclass
class Layer:
    """A convolution with BatchNorm, ReLU and perhaps a residual; channels_last."""

    x: Tensor
    weight: Tensor
    bn: functional.BatchNorm
    residual: Tensor | None = None
    stride: int = 1

    @property
    def padding(self) -> int:
        return self.weight.shape[2] // 2

    def ours(self) -> Any:
        """Runs resnet_fused."""
        return functional.conv_bn_act(
            self.x, self.weight, self.bn, stride=self.stride, padding=self.padding, residual=self.residual
        )

    def eager(self) -> Any:
        """Runs PyTorch, in place where possible."""
        y = _eager_bn(F.conv2d(self.x, self.weight, None, self.stride, self.padding), self.bn)
        return F.relu_(y if self.residual is None else y.add_(self.residual))

    def cudnn(self) -> Callable[[], Any] | None:
        """Runs the fused cuDNN kernel exposed by torch, BatchNorm folded beforehand; None if there is none."""
        weight, bias = self.folded()
        return lambda: self.fused_by_cudnn(weight, bias, self.residual)

    def folded(self) -> tuple[Tensor, Tensor]:
        return _rounded(*folded(self.weight, self.bn), self.x.dtype)

    def fused_by_cudnn(self, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
        shape = ([self.stride] * 2, [self.padding] * 2, [1, 1], 1)
        if residual is None:
            return torch.cudnn_convolution_relu(self.x, weight, bias, *shape)
        return torch.cudnn_convolution_add_relu(self.x, weight, residual, 1.0, bias, *shape)

    def parts(self, result: Any, picked: list[int]) -> Parts:
        """Returns the tensors to compare, of the picked images."""
        return {"y": result[picked]}

    def expected(self, picked: list[int]) -> Parts:
        """The same in float64."""
        return {"y": self.convolved(picked, None if self.residual is None else self.residual[picked].double())}

    def convolved(self, picked: list[int], residual: Tensor | None) -> Tensor:
        x, pairs = self.x[picked].double(), ([self.stride] * 2, [self.padding] * 2, [1, 1])
        return reference.conv_bn_act(
            x, self.weight.double(), None, *_exact(self.bn), self.bn.eps, *pairs, 1, residual, True
        )

    def output_shape(self) -> tuple[int, int, int, int]:
        n, _, height, width = self.x.shape
        return n, len(self.weight), -(-height // self.stride), -(-width // self.stride)

    def work(self) -> tuple[int, int]:
        """FLOPs, and bytes with each tensor moved once."""
        out = torch.Size(self.output_shape()).numel()
        tensors = [t for t in (self.x, self.weight, self.residual) if t is not None]
        moved = sum(t.numel() * t.element_size() for t in tensors) + out * self.x.element_size()
        return 2 * out * self.weight[0].numel(), moved


@dataclass
class Downsample(Layer):
    """A convolution fused with a projection shortcut: a strided 1x1 convolution and its BatchNorm."""

    source: Tensor = field(kw_only=True)
    projection: functional.Projection = field(kw_only=True)

    def ours(self) -> Any:
        return functional.conv_bn_proj_act(
            self.x, self.weight, self.bn, self.source, self.projection, stride=self.stride, padding=self.padding
        )

    def eager(self) -> Any:
        bn = self.projection.bn
        assert bn is not None
        shortcut = _eager_bn(F.conv2d(self.source, self.projection.weight, None, HALVED), bn)
        y = _eager_bn(F.conv2d(self.x, self.weight, None, self.stride, self.padding), self.bn)
        return F.relu_(y.add_(shortcut))

    def cudnn(self) -> Callable[[], Any] | None:
        projection = _rounded(*folded(self.projection.weight, self.projection.bn), self.x.dtype)
        weight, bias = self.folded()
        return lambda: self.fused_by_cudnn(weight, bias, F.conv2d(self.source, *projection, HALVED))

    def expected(self, picked: list[int]) -> Parts:
        projection = self.projection
        assert projection.bn is not None
        shortcut = reference.conv_bn_act(
            self.source[picked].double(), projection.weight.double(), None, *_exact(projection.bn), projection.bn.eps,
            [HALVED] * 2, [0, 0], [1, 1], 1, None, False,
        )  # fmt: skip
        return {"y": self.convolved(picked, shortcut)}

    def work(self) -> tuple[int, int]:
        flops, moved = super().work()
        read = self.source[:, :, ::HALVED, ::HALVED]  # the pixels that a strided 1x1 convolution reads
        more = 2 * torch.Size(self.output_shape()).numel() * self.source.shape[1]
        return flops + more, moved + (read.numel() + self.projection.weight.numel()) * self.x.element_size()


class Stem(Layer):
    """A convolution followed by 3x3 max-pooling with stride 2."""

    def ours(self) -> Any:
        return functional.conv_bn_relu_pool(self.x, self.weight, self.bn, stride=self.stride, padding=self.padding)

    def eager(self) -> Any:
        return F.max_pool2d(super().eager(), 3, 2, 1)

    def cudnn(self) -> Callable[[], Any] | None:
        weight, bias = self.folded()
        return lambda: F.max_pool2d(self.fused_by_cudnn(weight, bias, None), 3, 2, 1)

    def expected(self, picked: list[int]) -> Parts:
        return {"y": F.max_pool2d(self.convolved(picked, None), 3, 2, 1)}

    def work(self) -> tuple[int, int]:
        flops, moved = super().work()
        convolved = torch.Size(self.output_shape()).numel()
        return flops, moved - (convolved - convolved // 4) * self.x.element_size()


class Stats(Layer):
    """A convolution without epilogue, and the mean and variance of its rounded output."""

    def ours(self) -> Any:
        pairs = ([self.stride] * 2, [self.padding] * 2, [1, 1])
        return ops.conv_stats(self.x, None, None, None, None, 0.0, self.weight, None, *pairs, 1, False, True)

    def eager(self) -> Any:
        """Uses F.batch_norm's statistics kernel on CUDA: mean and 1 / sqrt(variance)."""
        y = F.conv2d(self.x, self.weight, None, self.stride, self.padding)
        if y.is_cuda:
            mean, rstd = torch.batch_norm_stats(y, 0.0)
            return y, mean, rstd, True
        variance, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
        return y, mean, variance

    def cudnn(self) -> None:
        return None

    def parts(self, result: Any, picked: list[int]) -> Parts:
        """Statistics are compared with those of the contender's own output."""
        y, mean, variance, *inverted = result
        if inverted:
            variance = variance.double().pow(-2)
        true_variance, true_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        return {"y": y[picked], "mean": mean - true_mean, "variance": variance - true_variance}

    def expected(self, picked: list[int]) -> Parts:
        y = F.conv2d(self.x[picked].double(), self.weight.double(), None, self.stride, self.padding)
        zero = torch.zeros(len(self.weight), dtype=torch.float64, device=y.device)
        return {"y": y, "mean": zero, "variance": zero}


def ulps(layer: Layer, part: str, expected: Tensor) -> float:
    """Four ulps of the largest value in the output's dtype; statistics near 1 are float32."""
    if part == "y":
        return 4 * torch.finfo(layer.x.dtype).eps * expected.abs().max().item()
    return 4 * torch.finfo(torch.float32).eps


Maker = Callable[[int, torch.dtype, torch.device], Layer]


class Random:
    """Seeded tensors, never zeros: a GPU runs faster on zeros."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self._generator = torch.Generator(device=device).manual_seed(seed)
        self._dtype, self._device = dtype, device

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._device)

    def image(self, *shape: int) -> Tensor:
        return self._normal(*shape).to(self._dtype).contiguous(memory_format=torch.channels_last)

    def weight(self, out: int, channels: int, size: int) -> Tensor:
        return self.image(out, channels, size, size) / (size * channels**0.5)

    def bn(self, channels: int) -> functional.BatchNorm:
        mean, var = self._normal(channels), self._normal(channels).abs() + 0.5
        return functional.BatchNorm(mean, var, self._normal(channels), self._normal(channels))


def conv(
    channels: int, out: int, size: int, kernel: int, residual: bool, make: Callable[..., Layer] = Layer, stride: int = 1
) -> Maker:
    """A convolution of ``size`` x ``size`` images."""

    def maker(batch: int, dtype: torch.dtype, device: torch.device) -> Layer:
        random = Random(channels + batch, dtype, device)
        weight, bn = random.weight(out, channels, kernel), random.bn(out)
        x = random.image(batch, channels, size, size)
        side = random.image(batch, out, size // stride, size // stride) if residual else None
        return make(x, weight, bn, side, stride)

    return maker


def downsample(source: int, channels: int, out: int, size: int, kernel: int) -> Maker:
    """The last convolution, from ``channels``, of the first block of a stage; its input was twice as large."""

    def maker(batch: int, dtype: torch.dtype, device: torch.device) -> Layer:
        random = Random(channels + batch, dtype, device)
        weight, bn = random.weight(out, channels, kernel), random.bn(out)
        projection = functional.Projection(random.weight(out, source, 1), random.bn(out), stride=HALVED)
        x = random.image(batch, channels, size, size)
        return Downsample(x, weight, bn, source=random.image(batch, source, 2 * size, 2 * size), projection=projection)

    return maker


LAYERS: dict[str, Maker] = {name: conv(c, c, size, 3, True) for name, (c, size) in STAGES.items()}
for _c, _size in STAGES.values():
    LAYERS[f"1x1 {_c}-{4 * _c}@{_size}"] = conv(_c, 4 * _c, _size, 1, True)
    LAYERS[f"1x1 {4 * _c}-{_c}@{_size}"] = conv(4 * _c, _c, _size, 1, False)
for _c, _size in list(STAGES.values())[1:]:
    LAYERS[f"downsample {_c // 2}-{_c}@{_size}"] = downsample(_c // 2, _c, _c, _size, 3)
    LAYERS[f"downsample {2 * _c}-{4 * _c}@{_size}"] = downsample(2 * _c, _c, 4 * _c, _size, 1)
LAYERS["stem@224"] = conv(3, 64, 224, 7, False, Stem, stride=2)
for _name, (_c, _size) in STAGES.items():
    LAYERS[f"stats {_name}"] = conv(_c, _c, _size, 3, False, Stats)
LAYERS["stats 1x1 256-64@56"] = conv(256, 64, 56, 1, False, Stats)
LAYERS["stats 1x1 64-256@56"] = conv(64, 256, 56, 1, False, Stats)


def _eager_bn(y: Tensor, bn: functional.BatchNorm) -> Tensor:
    return F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)


def _exact(bn: functional.BatchNorm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert bn.weight is not None
    assert bn.bias is not None
    return bn.weight.double(), bn.bias.double(), bn.running_mean.double(), bn.running_var.double()


def _rounded(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last), bias.to(dtype)
