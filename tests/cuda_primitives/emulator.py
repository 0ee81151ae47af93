"""Runs the primitives on the emulator."""

from __future__ import annotations

from pathlib import Path

import cuda_on_cpu
import numpy as np
from cuda_on_cpu import Library, Own

from .case import Case

KERNELS = Path(__file__).resolve().parent / "kernels"
SOURCES = sorted(path for path in KERNELS.glob("*.cu") if path.stem != "gpu")
OWN = Own("primitives", tuple(SOURCES), tuple(sorted(KERNELS.glob("*.cpp"))), (KERNELS,))
SCHEDULES = ("stay", "rotate", "random")


def load() -> Library:
    return cuda_on_cpu.load_own(OWN)


def run(module: Library, case: Case, schedule: str = "stay", seed: int = 1) -> tuple[np.ndarray, dict]:
    """The output, and the emulator's report."""
    output = case.empty_output()
    buffers = []
    for i, buffer in enumerate(case.buffers):
        array = output if buffer is None else buffer
        buffers.append((f"buffer {i}", array.ctypes.data, array.nbytes, "write" if buffer is None else "read"))
    return output, module.run(case.primitive, buffers, list(case.numbers), schedule, seed)
