"""Autograd of the training path: a whole block is one op with one gradient formula, derived in docs/training.md."""

import torch

from .cast import cast_conv, cast_norm
from .layout import ALL_VISIBLE, Conv, Norm, Pair, Pool, Visibility, pack
from .memory_format import in_format, is_channels_last
from .op import run_chain, train_chain
from .statistics import batch_statistics, update_running


def _with_kernels(*ops: str) -> frozenset[str]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = ("cpu", "cuda")
    return frozenset(d for d in devices if all(has_kernel(f"resnet_fused::{op}", d.upper()) for op in ops))


# Devices with kernels for all ops of train_chain; other devices train with the eager code.
DEVICES = _with_kernels(
    "bn_stats",
    "conv_stats",
    "bn_add_act",
    "bn_add_bn_act",
    "conv_backward_reduce",
    "bn_act_backward_reduce",
    "bn_add_act_backward_reduce",
    "bn_act_backward",
)
_POOL_DEVICES = _with_kernels("bn_relu_max_pool", "bn_relu_max_pool_backward")
_MAX_POOL_ELEMENTS = 255  # window size limit: the argmax is a uint8, and 255 marks windows zeroed by the ReLU


def fusable_pool(device: torch.device, kernel: Pair, stride: Pair, padding: Pair) -> Pool | None:
    """The max-pooling as the end of a chain, or None if it must run as a separate layer."""
    fits = kernel[0] * kernel[1] <= _MAX_POOL_ELEMENTS and 2 * padding[0] <= kernel[0] and 2 * padding[1] <= kernel[1]
    return (kernel, stride, padding) if fits and device.type in _POOL_DEVICES else None


__all__ = [
    "ALL_VISIBLE",
    "DEVICES",
    "Conv",
    "Norm",
    "Pool",
    "Visibility",
    "batch_statistics",
    "cast_conv",
    "cast_norm",
    "fusable_pool",
    "in_format",
    "is_channels_last",
    "pack",
    "run_chain",
    "train_chain",
    "update_running",
]
