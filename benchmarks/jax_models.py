"""A torch ResNet as a jitted JAX function (XLA) with the same weights, in NHWC.

``resnet_walk`` builds the network from the operations of ``Library``. The benchmark measures ``xla()``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from . import resnet_walk
from .folding import scale_and_shift
from .peers import Contender, Unavailable, require_running_statistics
from .workloads import Workload

Array = Any


@dataclass
class Library:
    """Arrays are NHWC, filters HWIO. ``vector`` and ``filter`` convert torch tensors."""

    vector: Callable[[Tensor], Array]
    filter: Callable[[Tensor], Array]
    conv: Callable[[Array, Array, int, int], Array]  # x, filter, stride, padding
    relu: Callable[[Array], Array]
    max_pool: Callable[[Array, int, int, int], Array]  # x, window, stride, padding
    mean: Callable[[Array], Array]  # over height and width
    matmul: Callable[[Array, Array], Array]


class _Operations:
    """The operations of a ResNet in JAX. BatchNorm is a scale and a shift, rounded to x's dtype."""

    def __init__(self, lib: Library) -> None:
        self._lib = lib
        self.relu, self.max_pool = lib.relu, lib.max_pool

    def conv_bn(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> Callable[[Array], Array]:
        lib, dtype = self._lib, conv.weight.dtype
        weight, stride, padding = lib.filter(conv.weight), int(conv.stride[0]), int(conv.padding[0])
        scale, shift = (lib.vector(v.to(dtype)) for v in scale_and_shift(bn))
        return lambda x: lib.conv(x, weight, stride, padding) * scale + shift

    def add(self, y: Array, shortcut: Array) -> Array:
        return y + shortcut

    def head(self, fc: nn.Linear) -> Callable[[Array], Array]:
        weight, bias = self._lib.vector(fc.weight.t()), self._lib.vector(fc.bias)
        return lambda x: self._lib.matmul(self._lib.mean(x), weight) + bias


def forward(model: nn.Module, lib: Library) -> Callable[[Array], Array]:
    """``model`` (torchvision's names; eval mode) as a function of an NHWC array."""
    return resnet_walk.forward(model, _Operations(lib))


def xla() -> tuple[Library, Any]:
    """The library over jax, and jax itself."""
    try:
        jax = importlib.import_module("jax")
        jnp = importlib.import_module("jax.numpy")
    except ImportError as error:
        raise Unavailable(f"jax does not import: {error}") from error

    def array(t: Tensor) -> Array:
        kind = {torch.float32: jnp.float32, torch.bfloat16: jnp.bfloat16, torch.float16: jnp.float16}[t.dtype]
        return jnp.asarray(t.detach().float().cpu().numpy(), dtype=kind)

    def conv(x: Array, weight: Array, stride: int, padding: int) -> Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, weight, (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=layout)

    def max_pool(x: Array, window: int, stride: int, padding: int) -> Array:
        pads = [(0, 0), (padding,) * 2, (padding,) * 2, (0, 0)]
        least = jnp.array(-jnp.inf, x.dtype)
        return jax.lax.reduce_window(x, least, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)

    library = Library(
        vector=array,
        filter=lambda t: array(t.permute(2, 3, 1, 0)),
        conv=conv,
        relu=jax.nn.relu,
        max_pool=max_pool,
        mean=lambda x: x.mean(axis=(1, 2)),
        matmul=lambda a, b: a @ b,
    )
    return library, jax


def jitted(workload: Workload, device: torch.device) -> Contender:
    """``jax.jit`` of the whole network on jax's default device, which must be of the workload's kind."""
    require_running_statistics(workload)
    lib, jax = xla()
    platform = {"cuda": "gpu"}.get(device.type, device.type)
    if jax.default_backend() != platform:
        raise Unavailable(f"jax has no {platform} here, only {jax.default_backend()}")
    run = jax.jit(forward(workload.module(), lib))
    x = lib.vector(workload.input().permute(0, 2, 3, 1))

    def output(y: Array) -> Tensor:
        return torch.from_numpy(importlib.import_module("numpy").array(y, dtype="float32"))

    # JAX has its own stream, so the call waits for the result and includes JAX's dispatch
    return Contender(lambda: run(x).block_until_ready(), output, "until the host has the answer; no CUDA graph")
