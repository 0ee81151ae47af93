"""One call of a primitive: what goes in, and what must come out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

POISON = 0xA5
ALIGNMENT = 128  # bytes; TMA needs 16


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose first byte is as aligned as a tensor's on a GPU."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Case:
    """``buffers`` are the inputs in the kernel's order, with None where the output goes."""

    name: str
    primitive: str
    needs: str  # sm_80, sm_90 or sm_90a: the least architecture
    buffers: tuple[np.ndarray | None, ...]
    numbers: tuple[int, ...]
    expected: np.ndarray
    bound: np.ndarray | None = None  # None: every bit is defined
    comparable: Callable[[np.ndarray], np.ndarray] = field(default=lambda output: output, repr=False)

    @property
    def digest(self) -> str:
        """Changes with the inputs: a golden output belongs to one."""
        h = hashlib.sha256(repr((self.primitive, self.numbers)).encode())
        for b in self.buffers:
            h.update(b"out" if b is None else b.tobytes())
        return h.hexdigest()[:16]

    def empty_output(self) -> np.ndarray:
        poison = np.full(self.expected.nbytes, POISON, np.uint8)
        return aligned(poison.view(self.expected.dtype).reshape(self.expected.shape))

    def fingerprint(self, output: np.ndarray) -> str:
        """Of those bits of an output that are defined."""
        return hashlib.sha256(np.ascontiguousarray(self.comparable(output)).tobytes()).hexdigest()

    def mismatch(self, output: np.ndarray, reference: np.ndarray | None = None) -> str | None:
        """What is wrong with an output, or None. With a golden ``reference`` both may be off, by the bound each."""
        want = self.expected if reference is None else reference
        if self.bound is None:
            wrong = self.comparable(output) != self.comparable(want)
        else:
            bound = self.bound if reference is None else 2 * self.bound
            wrong = ~(np.abs(output.astype(np.float64) - want) <= bound)
        if not wrong.any():
            return None
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        return f"{int(wrong.sum())} of {wrong.size} are wrong, the first at {at}: {output[at]} and not {want[at]}"
