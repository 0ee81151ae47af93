"""The training path's autograd: whole blocks as one op, with the gradients that docs/training.md derives."""

import torch

from .cast import conv_in, norm_in
from .layout import Conv, Norm, pack
from .op import train_chain
from .statistics import update_running

# Devices with kernels for all of the ops that train_chain is made of; on others eager trains.
DEVICES = frozenset(
    device
    for device in ("cpu", "cuda")
    if all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"resnet_fused::{op}", device.upper())
        for op in (
            "bn_stats",
            "conv_stats",
            "bn_add_act",
            "bn_add_bn_act",
            "conv_backward_reduce",
            "bn_act_backward_reduce",
            "bn_act_backward",
        )
    )
)

__all__ = ["DEVICES", "Conv", "Norm", "conv_in", "norm_in", "pack", "train_chain", "update_running"]
