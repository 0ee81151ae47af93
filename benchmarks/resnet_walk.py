"""A torch ResNet (torchvision's names) as a function over another library's operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import nn

Array = Any
Function = Callable[[Array], Array]


class Operations(Protocol):
    """The operations of a ResNet. Modules become functions of one array."""

    def conv_bn(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Function: ...

    def relu(self, x: Array) -> Array: ...

    def add(self, y: Array, shortcut: Array) -> Array: ...

    def max_pool(self, x: Array, window: int, stride: int, padding: int) -> Array: ...

    def head(self, fc: nn.Linear) -> Function:
        """The mean over height and width, and the classifier."""
        ...


def forward(model: nn.Module, ops: Operations) -> Function:
    """``model`` with running statistics."""
    stem = ops.conv_bn(model.conv1, model.bn1)  # type: ignore[arg-type]
    blocks = [_block(b, ops) for i in range(1, 5) for b in getattr(model, f"layer{i}")]
    pool: Any = model.maxpool
    head, window = ops.head(model.fc), (pool.kernel_size, pool.stride, pool.padding)  # type: ignore[arg-type]

    def run(x: Array) -> Array:
        x = ops.max_pool(ops.relu(stem(x)), *window)
        for block in blocks:
            x = block(x)
        return head(x)

    return run


def _block(block: nn.Module, ops: Operations) -> Function:
    names = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    layers = [ops.conv_bn(getattr(block, f"conv{i}"), getattr(block, f"bn{i}")) for i in names]
    side = None if block.downsample is None else ops.conv_bn(*block.downsample)  # type: ignore[misc, call-arg]

    def run(x: Array) -> Array:
        y = x
        for layer in layers[:-1]:
            y = ops.relu(layer(y))
        return ops.relu(ops.add(layers[-1](y), x if side is None else side(x)))

    return run
