"""Checks of the training kernels against eager: batch statistics, the sums of the backward pass, the gradient."""

from __future__ import annotations

import torch
from criterion import assert_close
from cuda_on_cpu.bn_train import Gradient, backward, poisoned, reduce, stats, wide

from resnet_fused import reference

from .batch_norm import activation, batch_norm, in_float64, move_from_kink, normalised


def agree(actual, eager, truth):
    for a, e, t in zip(actual, eager, truth, strict=True):
        if a.dtype == torch.float64:  # the reference is no more precise than the result
            torch.testing.assert_close(a, t, rtol=1e-12, atol=1e-12, equal_nan=True)
        else:
            assert_close(a, e, t)


def check_stats(kernels, x, channels_last=True, **options):
    actual, report = stats(kernels, x, channels_last, **options)
    assert report["error_count"] == 0, report["errors"]
    agree(actual, reference.bn_stats(x), reference.bn_stats(x.double()))
    return report


def case(shape, dtype, channels_last, mask="recompute", seed=0, misalign=0, bn_dtype=None, **bn):
    """A gradient in which no ReLU input is so close to 0 that rounding decides the mask."""
    vectors = batch_norm(shape[1], bn_dtype or wide(dtype), **bn)
    x, grad = (activation(shape, dtype, channels_last, s, misalign) for s in (seed, seed + 1))
    if mask == "recompute":
        move_from_kink(x, vectors)
        assert (normalised(x, vectors).abs() >= 0.04).all()
    out = activation(shape, dtype, channels_last, seed + 2, misalign).relu_() if mask == "out" else None
    return Gradient(grad, x, vectors, out, mask != "none")


def eager_args(g, double=False):
    bn = in_float64(g.bn) if double else g.bn
    tensors = [t.double() if double and t is not None else t for t in (g.grad, g.x, g.out)]
    return (tensors[0], tensors[1], *bn[:4], bn.eps, tensors[2], g.relu)


def check_reduce(kernels, g, channels_last=True, **options):
    actual, report = reduce(kernels, g, channels_last, **options)
    assert report["error_count"] == 0, report["errors"]
    want = reference.bn_act_backward_reduce
    agree(actual, want(*eager_args(g)), want(*eager_args(g, True)))
    return report


def check_masked_grad(kernels, g, channels_last=True, masked_grad=None, **options):
    """Checks the sums, and that ``masked_grad`` is bit-identical to grad masked by out."""
    masked_grad = poisoned(g.x) if masked_grad is None else masked_grad
    actual, report = reduce(kernels, g, channels_last, masked_grad=masked_grad, **options)
    assert report["error_count"] == 0, report["errors"]
    want = reference.bn_act_backward_reduce
    agree(actual, want(*eager_args(g)), want(*eager_args(g, True)))
    torch.testing.assert_close(masked_grad, torch.where(g.out <= 0, 0, g.grad), rtol=0, atol=0, equal_nan=True)


def check_backward(kernels, g, channels_last=True, frozen=False, **options):
    count = float(max(1, g.x.numel() // max(1, g.x.shape[1])))
    sums = None if frozen else reference.bn_act_backward_reduce(*eager_args(g))
    actual, report = backward(kernels, g, channels_last, sums, count, **options)
    assert report["error_count"] == 0, report["errors"]
    rest = (None, None, 0.0) if frozen else (*sums, count)
    want = reference.bn_act_backward
    truth = (None, None, 0.0) if frozen else (*(s.double() for s in sums), count)
    agree([actual], [want(*eager_args(g), *rest)], [want(*eager_args(g, True), *truth)])
    return report
