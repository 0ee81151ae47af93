"""A torch ResNet as a JAX function: what XLA makes of the same weights, in NHWC, jitted.

The network is written once, over the few operations of ``Library``; ``xla()`` is the one that is measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .peers import Contender, Unavailable
from .workloads import Workload

Array = Any


@dataclass
class Library:
    """Arrays are NHWC, filters HWIO. ``vector`` and ``filter`` take what is torch's."""

    vector: Callable[[Tensor], Array]
    filter: Callable[[Tensor], Array]
    conv: Callable[[Array, Array, int, int], Array]  # x, filter, stride, padding
    relu: Callable[[Array], Array]
    max_pool: Callable[[Array, int, int, int], Array]  # x, window, stride, padding
    mean: Callable[[Array], Array]  # over height and width
    matmul: Callable[[Array, Array], Array]


def forward(model: nn.Module, lib: Library) -> Callable[[Array], Array]:
    """``model`` (torchvision's names; eval mode) as a function of an NHWC array."""
    stem = _conv_bn(model.conv1, model.bn1, lib)  # type: ignore[arg-type]
    blocks = [_block(b, lib) for i in range(1, 5) for b in getattr(model, f"layer{i}")]
    pool, fc = model.maxpool, model.fc
    weight, bias = lib.vector(fc.weight.t()), lib.vector(fc.bias)  # type: ignore[union-attr, operator, arg-type]
    window = (pool.kernel_size, pool.stride, pool.padding)

    def run(x: Array) -> Array:
        x = lib.max_pool(lib.relu(stem(x)), *window)  # type: ignore[arg-type]
        for block in blocks:
            x = block(x)
        return lib.matmul(lib.mean(x), weight) + bias

    return run


def _block(block: nn.Module, lib: Library) -> Callable[[Array], Array]:
    names = [i for i in (1, 2, 3) if hasattr(block, f"conv{i}")]
    layers = [_conv_bn(getattr(block, f"conv{i}"), getattr(block, f"bn{i}"), lib) for i in names]
    side = None if block.downsample is None else _conv_bn(*block.downsample, lib)  # type: ignore[misc, call-arg]

    def run(x: Array) -> Array:
        y = x
        for layer in layers[:-1]:
            y = lib.relu(layer(y))
        return lib.relu(layers[-1](y) + (x if side is None else side(x)))

    return run


def _conv_bn(conv: nn.Conv2d, bn: nn.BatchNorm2d, lib: Library) -> Callable[[Array], Array]:
    """BatchNorm as XLA would be given it: scale and shift in float32's precision, then in x's dtype."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    weight = lib.filter(conv.weight)
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    shift = bn.bias.double() - bn.running_mean.double() * scale
    dtype, stride, padding = conv.weight.dtype, int(conv.stride[0]), int(conv.padding[0])
    scales, shifts = lib.vector(scale.to(dtype)), lib.vector(shift.to(dtype))
    return lambda x: lib.conv(x, weight, stride, padding) * scales + shifts


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
    lib, jax = xla()
    platform = {"cuda": "gpu"}.get(device.type, device.type)
    if jax.default_backend() != platform:
        raise Unavailable(f"jax has no {platform} here, only {jax.default_backend()}")
    run = jax.jit(forward(workload.module(), lib))
    x = lib.vector(workload.input().permute(0, 2, 3, 1))

    def output(y: Array) -> Tensor:
        return torch.from_numpy(importlib.import_module("numpy").array(y, dtype="float32"))

    # jax has a stream of its own: the call returns when the answer is there, and so includes jax's own dispatch
    return Contender(lambda: run(x).block_until_ready(), output, "until the host has the answer; no CUDA graph")
