"""Calls of the op layer's ops: engines, shapes, arguments, and checks against the definitions."""

from __future__ import annotations

import functools

import gpu_case
import pytest
import torch
from criterion import assert_close
from cuda_on_cpu import op_layer
from cuda_on_cpu.tensors import BatchNorm
from gpu_case import less_exact
from op_case import layout_of

from resnet_fused import ops, reference

from .batch_norm import move_from_kink

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
HALVES = [torch.float16, torch.bfloat16]
# GPU, RESNET_FUSED_CUDA_ENGINE, and the last kernel that a convolution of 64 channels launches.
ENGINES = [
    ("a100", "torch", "bn_add_act_kernel"),
    ("a100", "sm80:64x64:1", "conv_fwd_kernel"),
    ("h200", "sm80:128x64:3", "conv_finish_kernel"),
    ("h200", "sm90:128x128:1", "conv_sm90_kernel"),
    ("h200", "sm90:128x128:3", "conv_sm90_"),  # one step along K cannot be split, so no finishing kernel runs
]
NO_PRE = [None, None, None, None, 0.0]
ONE = ([1, 1], [1, 1], [1, 1], 1)  # stride, padding, dilation, groups
# n, c, h, w, k, r, stride, padding, dilation
SHAPES = [
    (2, 64, 6, 5, 72, 3, 1, 1, 1),
    (1, 64, 9, 7, 64, 3, 2, 1, 1),
    (3, 128, 4, 3, 64, 1, 2, 0, 1),
    (1, 64, 9, 8, 8, 3, 1, 2, 2),
]

by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


randn = functools.partial(gpu_case.randn, device="cpu")


def batch_norm(c, dtype=torch.float32):
    """gamma, beta, mean, var, eps"""
    return gpu_case.batch_norm(c, dtype, "cpu")


def as64(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


def away_from_kink(x, bn, to=4.0):
    """A copy of x in which no bn(x) is so close to 0 that rounding decides the ReLU's mask."""
    return move_from_kink(x.clone(), BatchNorm(*bn[:4], eps=bn[4]), to)


def check(op, expected, args, tf32=False):
    """Compares the op's result with its definition in value, dtype and memory format."""
    name = op.args[0].name()
    got = op(*args) if name.endswith("::bn_add_act") else op(*args, False, tf32)
    eager, truth = expected(*args), expected(*as64(args))
    assert layout_of(got) == layout_of(eager)
    if tf32:
        eager = less_exact(eager, truth, lambda: expected(*as64(args)))
    if got.dtype == torch.float64:
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        assert_close(got, eager, truth)
    return got


def check_refusals(op, cpu_op, calls):
    """Each call raises the same message as the CPU's op."""
    for args in calls:
        with pytest.raises(RuntimeError) as cpu:
            cpu_op(*args)
        with pytest.raises(RuntimeError) as ours:
            op(*args)
        assert str(ours.value) == str(cpu.value)


def conv_args(n, c, h, w, k, r, stride, padding, dilation, dtype, memory_format=torch.channels_last):
    """The arguments of conv_bn_act up to groups, and the output's shape."""
    x = randn(n, c, h, w, dtype=dtype, memory_format=memory_format)
    weight = (randn(k, c, r, r) / (c * r * r) ** 0.5).to(dtype).contiguous(memory_format=memory_format)
    out = [(size + 2 * padding - dilation * (r - 1) - 1) // stride + 1 for size in (h, w)]
    geometry = ([stride] * 2, [padding] * 2, [dilation] * 2, 1)
    return [x, weight, randn(k, dtype=dtype), *batch_norm(k), *geometry], (n, k, *out)


def conv_bn_act_args(dtype=torch.bfloat16, residual=True, tf32=False, shape=SHAPES[0]):
    """All arguments of conv_bn_act."""
    args, out = conv_args(*shape, dtype)
    shortcut = randn(*out, dtype=dtype, memory_format=torch.channels_last) if residual else None
    return [*args, shortcut, True, False, tf32]


def args_of_every_op(dtype=torch.bfloat16):
    """Op name -> arguments that the kernels accept, for every op with CUDA kernels."""
    conv = conv_bn_act_args(dtype)
    x, weight, bias, *bn = conv[:8]
    out = [*reference.conv_bn_act(*conv[:14]).shape]
    like_out = randn(*out, dtype=dtype, memory_format=torch.channels_last)
    projection = [randn(2, 64, 6, 5, dtype=dtype), randn(72, 64, 1, 1, dtype=dtype) / 8, None, *batch_norm(72), [1, 1]]
    block = [randn(64, 64, 3, 3, dtype=dtype) / 24, None, *batch_norm(64)]
    norm, pool = batch_norm(64), ([3, 3], [2, 2], [1, 1])
    apart = away_from_kink(x, norm)
    pooled, argmax = reference.bn_relu_max_pool(x, *norm, *pool)
    how, grad = [False, False], torch.randn_like(x)
    sums = [*reference.bn_act_backward_reduce(grad, apart, *norm), float(2 * 6 * 5)]
    return {
        "conv_bn_act": conv,
        "bn_relu_conv_bn_act": [x, *norm, weight, bias, *bn, *ONE, like_out, True, *how],
        "conv_bn_proj_act": [x, weight, bias, *bn, *ONE, *projection, *NO_PRE, True, *how],
        "basic_block": [x, *block, *block, *how],
        "conv_bn_relu_pool": [*conv[:12], *pool, *how],
        "bn_add_act": [x, *norm, grad, True],
        "bn_stats": [x],
        "conv_stats": [x, *norm, weight, bias, *ONE, *how],
        "bn_add_bn_act": [x, *norm, grad, *batch_norm(64), True],
        "bn_act_backward_reduce": [grad, apart, *norm, None, True],
        "bn_add_act_backward_reduce": [grad, apart, *norm, torch.randn_like(x).relu()],
        "conv_backward_reduce": [like_out, weight, [1, 1], [1, 1], apart, *norm, None, False],
        "conv_backward_input": [like_out, weight, [1, 1], [1, 1], grad, False],
        "bn_act_backward": [grad, apart, *norm, None, True, *sums],
        "bn_relu_max_pool": [x, *norm, *pool],
        "bn_relu_max_pool_backward": [torch.randn_like(pooled), argmax, x, *pool],
    }


def put_on_cpu(monkeypatch, layer):
    """Makes Python modules call the op layer's ops for CPU tensors, for ops that it implements."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    for name in vars(ops):
        op = f"{op_layer.NAME}::{name}"
        if torch._C._dispatch_has_kernel(op) and has(op, "CPU"):
            monkeypatch.setattr(ops, name, getattr(layer, name))
