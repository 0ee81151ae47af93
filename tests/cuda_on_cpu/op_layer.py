"""The op layer of csrc/cuda on CPU tensors: argument checks, plan, allocation and launch of emulated kernels.

``load()`` registers every op of csrc/cuda as ``torch.ops.resnet_fused_on_cpu.*``. A call through ``Layer`` runs in the
emulator; kernels may read the tensor arguments and use what the op allocates, and no other memory.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from . import Library, build
from .tensors import span

NAME, HOST_NAME = build.OP_LIBRARIES["op_layer"], build.OP_LIBRARIES["op_host"]


class Layer:
    """The ops as functions, for the GPU ``device`` (see ``cli/_gpus.py``) and RESNET_FUSED_CUDA_ENGINE ``engine``.

    ``reports`` has the emulator's report of every call. A call with findings raises AssertionError.
    """

    def __init__(self, library: Library, device: Iterable[int], engine: str = "", schedule: str = "stay") -> None:
        self.library, self.schedule = library, schedule
        self.reports: list[dict] = []
        self.may_give_up = False  # if True, an op may leave its output unwritten when it launches no kernel
        library.set_device(*device)
        library.set_engine(engine)

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self.call, getattr(getattr(torch.ops, NAME), name).default)

    def call(self, op: Any, *args: Any, **how: Any) -> Any:
        self.library.begin(buffers(args), self.schedule, 1)
        try:
            with torch.no_grad():
                return op(*args, **how)
        finally:
            report = self.library.end()
            self.reports.append(report)
            given_up = self.may_give_up and not report["launched"]
            errors = [e for e in report["errors"] if not (given_up and e.startswith("output never written"))]
            assert not errors, errors


def buffers(args: Iterable[Any]) -> list[tuple[str, int, int, str]]:
    """Buffers of all tensors among the arguments; overlapping views are merged."""
    spans = sorted({span(t) for t in args if isinstance(t, Tensor) and t.numel()})
    merged: list[list[int]] = []
    for begin, size in spans:
        if merged and begin < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], begin + size)
        else:
            merged.append([begin, begin + size])
    return [(f"argument {i}", begin, end - begin, "read") for i, (begin, end) in enumerate(merged)]


@functools.cache
def load() -> Library:
    return _load("op_layer")


@functools.cache
def load_host() -> Library:
    """The ops as ``torch.ops.resnet_fused_on_host.*``: optimised host code, launches that do nothing."""
    return _load("op_host")


def _load(name: str) -> Library:
    build.build([build.library(name)])
    return Library(build.library(name))
