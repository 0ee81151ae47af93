"""The layers after a network's stages, global average pooling and a linear layer, in one op for few images."""

from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..chain.layers import has_hooks_or_patches
from ..chain.patches import head_is_patched
from ..chain.policy import Setting, module_setting
from ..chain.program import call

# The more images, the nearer torch's matrix product comes. Zen 4, one thread, 2048 x 1000 (ResNet-50) and 512 x 1000
# (ResNet-18) from 7x7, time of eager's three calls over the op's, minima of interleaved calls with the weight in cache:
# 1 image 1.2x (float32) to 2.9x, 4 images 1.9x (bfloat16) to 4.7x, 8 images 1.5x (bfloat16) to 4.9x.
MOST_IMAGES = 8

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TENSORS = (Tensor, nn.Parameter)
_SIZES = (1, (1, 1), [1, 1])


def run_head(x: Tensor, avgpool: Any, fc: Any) -> Tensor | None:
    """``fc(torch.flatten(avgpool(x), 1))``, (N, C, H, W) -> (N, K), or None if eager must run.

    Eager runs for more than ``MOST_IMAGES`` images, on other devices than the CPU, where a gradient is needed, while
    tracing, under autocast, and where calling the modules may run anything but :class:`torch.nn.AdaptiveAvgPool2d` to
    one pixel and :class:`torch.nn.Linear`.
    """
    if torch.compiler.is_compiling() or type(avgpool) is not nn.AdaptiveAvgPool2d or type(fc) is not nn.Linear:
        return None
    how = module_setting(x)
    if not isinstance(how, Setting) or how.autocast or head_is_patched():
        return None
    if type(x) not in _TENSORS or not x.is_cpu or x.dtype not in _DTYPES:
        return None
    if not 0 < x.shape[0] <= MOST_IMAGES or x.numel() == 0:
        return None
    if avgpool.output_size not in _SIZES or has_hooks_or_patches(avgpool) or has_hooks_or_patches(fc):
        return None
    weight: Any = fc._parameters.get("weight")
    bias: Any = fc._parameters.get("bias")
    if not _is_plain(weight, x) or weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        return None
    if bias is not None and (not _is_plain(bias, x) or bias.shape != weight.shape[:1]):
        return None
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return None
    return call(ops.avg_pool_linear, x, weight, bias)


def _is_plain(t: Any, x: Tensor) -> bool:
    """Whether a parameter is a plain, dense tensor of x's dtype and device."""
    return type(t) in _TENSORS and t.layout is torch.strided and t.dtype is x.dtype and t.is_cpu
