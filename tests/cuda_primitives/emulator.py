"""Runs the primitives on the emulator."""

from __future__ import annotations

import cuda_on_cpu
import numpy as np
from cuda_on_cpu import Library

from .case import Case

SCHEDULES = ("stay", "rotate", "random")


def load() -> Library:
    return cuda_on_cpu.load_own(cuda_on_cpu.PRIMITIVES)


def run(module: Library, case: Case, schedule: str = "stay", seed: int = 1) -> tuple[np.ndarray, dict]:
    """Returns the output and the emulator's report."""
    output = case.empty_output()
    buffers = []
    for i, buffer in enumerate(case.buffers):
        array = output if buffer is None else buffer
        buffers.append((f"buffer {i}", array.ctypes.data, array.nbytes, "write" if buffer is None else "read"))
    return output, module.run(case.primitive, buffers, list(case.numbers), schedule, seed)
