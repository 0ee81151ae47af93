"""The max-pooling kernels' definition in float64, and their comparison with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_on_cpu import pool as emulated
from cuda_on_cpu.tensors import BatchNorm
from support import TINY_EPS

from .batch_norm import activation, normalised

NO_ARGMAX = 255
STEM = ((3, 3), (2, 2), (1, 1))
# The stem's; 3x3 windows with stride 1, and with gaps; other sizes, some of them not square.
POOLS = [STEM, ((3, 3), (1, 1), (1, 1)), ((3, 3), (4, 5), (0, 1)), ((2, 2), (2, 2), (0, 0)), ((5, 2), (3, 1), (2, 1))]
POOLS += [((1, 1), (2, 2), (0, 0)), ((4, 3), (1, 2), (2, 0))]


def windows(v, pool):
    """Returns the windows of v in float64, padded with -inf: (n, c, elements, windows)."""
    kernel, stride, (ph, pw) = pool
    padded = F.pad(v.double(), (pw, pw, ph, ph), value=-torch.inf)
    n, c, _, _ = v.shape
    unfolded = padded.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    return unfolded.reshape(n, c, -1, kernel[0] * kernel[1]).transpose(2, 3)


def definition(v, pool):
    """Returns max_pool2d(relu(v)) in float64 and its argmax: the last NaN, else the first maximum, none if it is 0."""
    elements, size = windows(v, pool), emulated.pooled(v, pool)
    number = torch.arange(elements.shape[2]).view(1, 1, -1, 1)
    finite = elements.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    first = torch.where(finite == finite.amax(2, keepdim=True), number, NO_ARGMAX).amin(2)
    nan = elements.isnan()
    argmax = torch.where(nan.any(2), torch.where(nan, number, -1).amax(2), first)
    value = torch.where(nan.any(2), torch.nan, finite.amax(2)).relu()
    argmax = torch.where(value == 0, NO_ARGMAX, argmax)
    return value.view(size), argmax.to(torch.uint8).view(size)


def check_forward(kernels, x, bn, pool, exact=False, **options):
    """``exact``: nothing is rounded before the maximum, so the argmax is known."""
    out, argmax, report = emulated.forward(kernels, x, bn, pool, **options)
    assert report["error_count"] == 0, report["errors"]
    v = normalised(x, bn)
    truth, expected = definition(v, pool)
    check_without_argmax(kernels, x, bn, pool, out, report, **options)
    if x.dtype == torch.float64:
        torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12, equal_nan=True)
    else:
        assert_close(out, truth.to(x.dtype), truth)
    if exact:
        assert torch.equal(argmax, expected)
        return report
    closed = argmax == NO_ARGMAX
    assert torch.equal(closed, out == 0)
    # The element at the argmax equals the maximum up to rounding; padding does not.
    number = torch.where(closed, 0, argmax.long())
    assert (number < pool[0][0] * pool[0][1]).all()
    reached = windows(v, pool).gather(2, number.flatten(2)[:, :, None])[:, :, 0].view(truth.shape)
    torch.testing.assert_close(torch.where(closed, 0, reached), truth, rtol=1e-5, atol=1e-5, equal_nan=True)
    return report


def check_without_argmax(kernels, x, bn, pool, expected, report, **options):
    """Without an argmax, the output is bit-identical and nothing else is stored."""
    out, _, less = emulated.forward(kernels, x, bn, pool, with_argmax=False, **options)
    assert less["error_count"] == 0, less["errors"]
    assert torch.equal(out.nan_to_num(-1), expected.nan_to_num(-1))
    assert less["bytes_stored"] == report["bytes_stored"] - out.numel()


def gathered(grad, argmax, size, pool):
    """Returns the input gradient in float64: adds each gradient at its argmax."""
    (_, kw), (sh, sw), (ph, pw) = pool
    t = argmax.long()
    row = torch.arange(argmax.shape[2])[:, None] * sh - ph + t // kw
    column = torch.arange(argmax.shape[3]) * sw - pw + t % kw
    none = t == NO_ARGMAX
    place = torch.where(none, 0, row * size[3] + column).flatten(2)
    sums = torch.zeros(size, dtype=torch.float64).flatten(2)
    return sums.scatter_add_(2, place, torch.where(none, 0, grad.double()).flatten(2)).view(size)


def check_backward(kernels, grad, argmax, size, pool, **options):
    to, report = emulated.backward(kernels, grad, argmax, size, pool, **options)
    assert report["error_count"] == 0, report["errors"]
    truth = gathered(grad, argmax, size, pool)
    if grad.dtype == torch.float64:
        torch.testing.assert_close(to, truth, rtol=1e-14, atol=1e-14)
    else:
        assert_close(to, truth.to(grad.dtype), truth)
    return report


def gradient(size, pool, dtype, seed=0, misalign=""):
    """Returns grad and argmax for an input of this size; a third of the ReLUs are closed."""
    x = activation(size, torch.float64, True, seed) + 0.5
    argmax = definition(x, pool)[1]
    grad = activation(tuple(argmax.shape), dtype, True, seed + 1, int(misalign == "grad"))
    return grad, emulated.empty(tuple(argmax.shape), torch.uint8, int(misalign == "argmax")).copy_(argmax)


def whole_numbers(size, dtype, seed=0):
    """Returns integers, many equal and about half negative, and a BatchNorm that does not change them."""
    x = emulated.empty(size, dtype)
    x.copy_(torch.randint(-3, 4, size, generator=torch.Generator().manual_seed(seed)))
    c = size[1]
    return x, BatchNorm(None, None, torch.zeros(c), torch.ones(c), None, TINY_EPS)
