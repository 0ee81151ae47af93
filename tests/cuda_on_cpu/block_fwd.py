"""Calls the emulated block_fwd kernels with torch tensors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import Kernels
from .tensors import DTYPES, POISON, SUFFIXES, BatchNorm, span, vectors


class Block(NamedTuple):
    """An identity BasicBlock; x and the weights are channels_last."""

    x: Tensor
    weight1: Tensor
    bn1: BatchNorm
    weight2: Tensor
    bn2: BatchNorm


def run(
    kernels: Kernels, block: Block, *, schedule: str = "stay", seed: int = 1, sm_count: int = 2
) -> tuple[Tensor, dict]:
    """Returns the output (channels_last) and the emulator's report."""
    x = block.x
    out = torch.empty_like(x)
    out.untyped_storage().fill_(POISON)
    named = dict(x=x, weight1=block.weight1, weight2=block.weight2)
    params = {name: t.data_ptr() for name, t in named.items()}
    for name in ("bn1", "bn2"):
        bn = getattr(block, name)
        named.update({f"{name}.{field}": getattr(bn, field) for field in BatchNorm._fields[:5]})
        params[name] = vectors(bn)
    n, channels, h, w = x.shape
    params.update(out=out.data_ptr(), n=n, h=h, w=w)
    buffers = [(name, *span(t), "read") for name, t in named.items() if t is not None]
    buffers.append(("out", *span(out), "write"))
    variant = (DTYPES.index(x.dtype), channels)
    library = kernels[f"block_fwd_{SUFFIXES[x.dtype]}"]
    return out, library.run_block_fwd(buffers, params, variant, sm_count, schedule, seed)
