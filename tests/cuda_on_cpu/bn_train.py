"""Calls the emulated training kernels with torch tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import Kernels
from .tensors import DTYPES, POISON, BatchNorm, span, vectors

MASKS = ["none", "recompute", "out"]  # in the order of Mask in csrc/cuda/kernels/bn/bn_gradient.h


class Gradient(NamedTuple):
    """Inputs of the backward kernels; all activations have one shape and memory format."""

    grad: Tensor
    x: Tensor
    bn: BatchNorm
    out: Tensor | None = None
    relu: bool = True

    def parameters(self, channels_last: bool) -> dict:
        named = dict(grad=self.grad, x=self.x, out=self.out)
        p = {name: t.data_ptr() for name, t in named.items() if t is not None}
        return p | dict(bn=vectors(self.bn), relu=self.relu) | shape(self.x, channels_last)

    def buffers(self) -> list:
        named = dict(grad=self.grad, x=self.x, out=self.out)
        named.update({field: getattr(self.bn, field) for field in BatchNorm._fields[:4]})
        return inputs(named)


def shape(x: Tensor, channels_last: bool) -> dict:
    n, c, h, w = x.shape
    return dict(dtype=DTYPES.index(x.dtype), channels_last=channels_last, batch=n, channels=c, area=h * w)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def inputs(named: dict[str, Tensor | None]) -> list:
    return [(name, *span(t), "read") for name, t in named.items() if t is not None]


def vector(v: Tensor) -> tuple[int, int, int]:
    return v.data_ptr(), v.stride(0), DTYPES.index(v.dtype)


def poisoned(like: Tensor, **options) -> Tensor:
    t = torch.empty_like(like, **options)
    if t.numel():
        t.untyped_storage().fill_(POISON)
    return t


class Results:
    """Two result vectors and the workspace for their partial results."""

    def __init__(self, channels: int, dtype: torch.dtype, workspace: int) -> None:
        self.values = [torch.full((channels,), -77.0, dtype=wide(dtype)) for _ in range(2)]
        self.workspace = torch.full((workspace,), POISON, dtype=torch.uint8)

    def parameters(self) -> dict:
        return dict(
            first=self.values[0].data_ptr(), second=self.values[1].data_ptr(), workspace=self.workspace.data_ptr()
        )

    def buffers(self) -> list:
        return [(n, *span(v), "write") for n, v in zip(("first", "second"), self.values, strict=True)] + [
            ("workspace", *span(self.workspace), "scratch")
        ]


def stats(
    kernels: Kernels, x: Tensor, channels_last: bool, sm_count: int = 1, schedule: str = "stay", seed: int = 1
) -> tuple[list[Tensor], dict]:
    """Returns ``[mean, var]`` and the emulator's report."""
    p = dict(x=x.data_ptr()) | shape(x, channels_last)
    results = Results(x.shape[1], x.dtype, kernels.bn_stats_workspace(p, sm_count))
    buffers = [*inputs(dict(x=x)), *results.buffers()]
    return results.values, kernels["bn_stats"].run_bn_stats(buffers, p | results.parameters(), sm_count, schedule, seed)


def reduce(
    kernels: Kernels,
    g: Gradient,
    channels_last: bool,
    sm_count: int = 1,
    schedule: str = "stay",
    seed: int = 1,
    masked_grad: Tensor | None = None,
) -> tuple[list[Tensor], dict]:
    """Returns ``[sum_g, sum_g_xhat]`` and the emulator's report; stores g itself in ``masked_grad``."""
    p = g.parameters(channels_last) | ({} if masked_grad is None else dict(masked_grad=masked_grad.data_ptr()))
    results = Results(g.x.shape[1], g.x.dtype, kernels.bn_backward_reduce_workspace(p, sm_count))
    buffers = [*g.buffers(), *results.buffers()]
    if masked_grad is not None:
        buffers.append(("masked_grad", *span(masked_grad), "write"))
    return results.values, kernels["bn_backward_reduce"].run_bn_backward_reduce(
        buffers, p | results.parameters(), sm_count, schedule, seed
    )


def backward(
    kernels: Kernels,
    g: Gradient,
    channels_last: bool,
    sums: tuple[Tensor, Tensor] | None = None,
    count: float = 1.0,
    sm_count: int = 1,
    schedule: str = "stay",
    seed: int = 1,
) -> tuple[Tensor, dict]:
    """Returns the gradient of x and the emulator's report."""
    to = poisoned(g.x)
    p = g.parameters(channels_last) | dict(to=to.data_ptr(), count=count)
    buffers = [*g.buffers(), ("to", *span(to), "write")]
    if sums is not None:
        p |= {name: vector(v) for name, v in zip(("sum_g", "sum_g_xhat"), sums, strict=True)}
        buffers += inputs(dict(sum_g=sums[0], sum_g_xhat=sums[1]))
    return to, kernels["bn_backward"].run_bn_backward(buffers, p, sm_count, schedule, seed)


def finish(
    kernels: Kernels,
    parts: Tensor,
    each: int,
    total: int,
    var: Tensor | None = None,
    eps: float = 0.0,
    schedule: str = "stay",
    seed: int = 1,
) -> tuple[list[Tensor], dict]:
    """Runs bn_finish on moments (parts, 3, channels) or, with ``var``, on sums (parts, 2, channels)."""
    count, _, channels = parts.shape
    p = dict(
        parts=count,
        channels=channels,
        each=each,
        total=total,
        moments=var is None,
        dtype=DTYPES.index(parts.dtype),
        eps=eps,
    )
    # The workspace starts with the launch's input; merged parts follow it.
    size = parts.numel() * parts.element_size()
    results = Results(channels, parts.dtype, kernels.bn_finish_workspace(p))
    assert results.workspace.numel() >= size
    results.workspace[:size] = parts.contiguous().flatten().view(torch.uint8)
    address = results.workspace.data_ptr()
    buffers = [*results.buffers()[:2], ("parts", address, size, "read")]
    if rest := results.workspace.numel() - size:
        buffers.append(("merged", address + size, rest, "scratch"))
    if var is not None:
        p["var"] = vector(var)
        buffers += inputs(dict(var=var))
    return results.values, kernels["bn_finish"].run_bn_finish(buffers, p | results.parameters(), 1, schedule, seed)
