"""Calls of inference ops of the host-only op layer, as a network makes them: bfloat16, channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .op_layer import HOST_NAME


def calls(channels: int, size: int) -> dict[str, tuple[Any, list[Any]]]:
    """Op name -> (op, arguments)."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape).bfloat16().contiguous(memory_format=torch.channels_last)

    x, weight = randn(1, channels, size, size), randn(channels, channels, 3, 3)
    projection = randn(channels, channels, 1, 1)
    norm = [*(torch.rand(channels) + 0.5 for _ in range(4)), 1e-5]
    geometry = [[1, 1], [1, 1], [1, 1], 1]
    how, no_pre = [True, False], [None, None, None, None, 0.0]
    conv = [weight, None, *norm, *geometry]
    side = [x, projection, None, *norm, [1, 1], *no_pre]
    arguments = {
        "conv_bn_act": [x, *conv, x, True, *how],
        "bn_relu_conv_bn_act": [x, *norm, *conv, x, True, *how],
        "conv_bn_proj_act": [x, *conv, *side, True, *how],
        "bn_add_act": [x, *norm, x, True],
        "basic_block": [x, weight, None, *norm, weight, None, *norm, *how],
    }
    ops = getattr(torch.ops, HOST_NAME)
    return {name: (getattr(ops, name).default, args) for name, args in arguments.items()}
