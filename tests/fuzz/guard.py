"""Tensors in read-only memory between guard pages."""

import ctypes
import mmap

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
NONE, READ = 0, 1  # PROT_NONE and PROT_READ

_libc = ctypes.CDLL(None, use_errno=True)


def guarded(t: Tensor, at_end: bool = True) -> Tensor:
    """A copy of t with the same strides that ends at a page's end (``at_end``) or starts at a page's start."""
    if t.numel() == 0:
        return t
    span = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    size = span * t.element_size()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 2) * PAGE)
    offset = PAGE + (pages * PAGE - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=t.dtype, count=span, offset=offset)
    flat.copy_(t.as_strided((span,), (1,)))
    start = flat.data_ptr() - offset
    _protect(start, PAGE, NONE)
    _protect(start + PAGE, pages * PAGE, READ)
    _protect(start + (pages + 1) * PAGE, PAGE, NONE)
    return flat.as_strided(t.shape, t.stride())


def _protect(start: int, size: int, how: int) -> None:
    if _libc.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(size), how):
        raise OSError(ctypes.get_errno(), "mprotect")
