"""One call of a primitive: inputs and expected output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

POISON = 0xA5
ALIGNMENT = 128  # bytes; TMA needs 16


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy aligned to ``ALIGNMENT``."""
    room = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    copy = room[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@dataclass(frozen=True)
class Case:
    """``buffers``: the inputs in the kernel's order, with None in place of the output."""

    name: str
    primitive: str
    needs: str  # minimum architecture: sm_80, sm_90 or sm_90a
    buffers: tuple[np.ndarray | None, ...]
    numbers: tuple[int, ...]
    expected: np.ndarray
    bound: np.ndarray | None = None  # on the absolute error; None: every bit that `comparable` keeps is defined
    comparable: Callable[[np.ndarray], np.ndarray] = field(default=lambda output: output, repr=False)

    @property
    def digest(self) -> str:
        """Digest of the inputs; identifies golden outputs."""
        h = hashlib.sha256(repr((self.primitive, self.numbers)).encode())
        for b in self.buffers:
            h.update(b"out" if b is None else b.tobytes())
        return h.hexdigest()[:16]

    def empty_output(self) -> np.ndarray:
        poison = np.full(self.expected.nbytes, POISON, np.uint8)
        return aligned(poison.view(self.expected.dtype).reshape(self.expected.shape))

    def fingerprint(self, output: np.ndarray) -> str:
        """Digest of the defined bits of an output."""
        return hashlib.sha256(np.ascontiguousarray(self.comparable(output)).tobytes()).hexdigest()

    def mismatch(self, output: np.ndarray, reference: np.ndarray | None = None) -> str | None:
        """What is wrong with an output, or None. Against a golden ``reference`` the bound doubles: both may be off."""
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
