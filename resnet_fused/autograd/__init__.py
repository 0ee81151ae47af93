"""The training path's autograd: whole blocks as one op, with the gradients that docs/training.md derives."""

import torch

from .cast import conv_in, norm_in
from .layout import ALONE, Conv, Norm, Pair, Place, Pool, pack
from .memory_format import in_format, is_channels_last
from .op import run_chain, train_chain
from .statistics import batch_statistics, update_running


def _with_kernels(*ops: str) -> frozenset[str]:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    devices = ("cpu", "cuda")
    return frozenset(d for d in devices if all(has_kernel(f"resnet_fused::{op}", d.upper()) for op in ops))


# Devices with kernels for all of the ops that train_chain is made of; on others eager trains.
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
_POOLING_DEVICES = _with_kernels("bn_relu_max_pool", "bn_relu_max_pool_backward")
_MOST_POOLED = 255  # elements of a window: what a byte can number, less one


def pool_in(device: torch.device, kernel: Pair, stride: Pair, padding: Pair) -> Pool | None:
    """Max-pooling as a chain's end, None where it is to be a layer of its own."""
    fits = kernel[0] * kernel[1] <= _MOST_POOLED and 2 * padding[0] <= kernel[0] and 2 * padding[1] <= kernel[1]
    return (kernel, stride, padding) if fits and device.type in _POOLING_DEVICES else None


__all__ = [
    "ALONE",
    "DEVICES",
    "Conv",
    "Norm",
    "Place",
    "Pool",
    "batch_statistics",
    "conv_in",
    "in_format",
    "is_channels_last",
    "norm_in",
    "pack",
    "pool_in",
    "run_chain",
    "train_chain",
    "update_running",
]
