"""Calls the emulated max-pooling kernels with NHWC torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from . import Kernels
from .bn_train import inputs, poisoned
from .tensors import DTYPES, BatchNorm, span, vectors

Pair = tuple[int, int]
Pool = tuple[Pair, Pair, Pair]  # kernel, stride, padding


def pooled(x: Tensor, pool: Pool) -> tuple[int, ...]:
    """The output shape of pooling x."""
    (kh, kw), (sh, sw), (ph, pw) = pool
    n, c, h, w = x.shape
    return n, c, (h + 2 * ph - kh) // sh + 1, (w + 2 * pw - kw) // sw + 1


def shape(x: Tensor, pool: Pool) -> dict:
    out = pooled(x, pool)
    axes = [(x.shape[2 + i], out[2 + i], *(pair[i] for pair in pool)) for i in range(2)]
    return dict(dtype=DTYPES.index(x.dtype), batch=x.shape[0], channels=x.shape[1], h=axes[0], w=axes[1])


def empty(size: tuple[int, ...], dtype: torch.dtype, misalign: int = 0) -> Tensor:
    """A poisoned NHWC tensor that starts ``misalign`` elements past a 16-byte boundary."""
    n, c, h, w = size
    room = poisoned(torch.empty(n * c * h * w + misalign, dtype=dtype))
    return room.as_strided(size, (c * h * w, 1, w * c, c), misalign)


def forward_parameters(x: Tensor, bn: BatchNorm, pool: Pool, out: Tensor, argmax: Tensor | None) -> dict:
    addresses = dict(x=x.data_ptr(), out=out.data_ptr()) | ({} if argmax is None else dict(argmax=argmax.data_ptr()))
    return addresses | dict(bn=vectors(bn)) | shape(x, pool)


def forward(
    kernels: Kernels,
    x: Tensor,
    bn: BatchNorm,
    pool: Pool,
    sm_count: int = 1,
    schedule: str = "stay",
    misalign: str = "",
    with_argmax: bool = True,
) -> tuple[Tensor, Tensor | None, dict]:
    """Returns ``out``, ``argmax`` (None unless ``with_argmax``) and the emulator's report."""
    out = empty(pooled(x, pool), x.dtype, int(misalign == "out"))
    argmax = empty(pooled(x, pool), torch.uint8, int(misalign == "argmax")) if with_argmax else None
    named = dict(x=x) | {field: getattr(bn, field) for field in BatchNorm._fields[:5]}
    buffers = [*inputs(named), ("out", *span(out), "write")]
    if argmax is not None:
        buffers.append(("argmax", *span(argmax), "write bytes"))
    return (
        out,
        argmax,
        kernels["bn_pool"].run_bn_pool(buffers, forward_parameters(x, bn, pool, out, argmax), sm_count, schedule),
    )


def backward_parameters(grad: Tensor, argmax: Tensor, x: Tensor, pool: Pool) -> dict:
    """``x`` is where the gradient of the input is written."""
    return dict(grad=grad.data_ptr(), argmax=argmax.data_ptr(), to=x.data_ptr()) | shape(x, pool)


def backward(
    kernels: Kernels,
    grad: Tensor,
    argmax: Tensor,
    size: tuple[int, ...],
    pool: Pool,
    sm_count: int = 1,
    schedule: str = "stay",
    misalign: str = "",
) -> tuple[Tensor, dict]:
    """Returns the gradient of an input of ``size`` and the emulator's report."""
    to = empty(size, grad.dtype, int(misalign == "to"))
    buffers = [*inputs(dict(grad=grad, argmax=argmax)), ("to", *span(to), "write")]
    return to, kernels["pool_backward"].run_pool_backward(
        buffers, backward_parameters(grad, argmax, to, pool), sm_count, schedule
    )
