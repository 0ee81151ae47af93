"""Checks results against fp64 before they are timed."""

import math

import torch
from torch import Tensor

from .workloads import DTYPES, Workload

CPU = torch.device("cpu")
CHECKED_IMAGES = 3  # first, middle and last of the batch: fp64 convolutions are slow


class Oracle:
    """The fp64 result of a workload for a few images.

    Batch statistics mix all images, so that all of them are computed, which is what ``device`` is for.
    """

    def __init__(self, workload: Workload, device: torch.device = CPU) -> None:
        x = workload.input()
        self._picked = sorted({0, len(x) // 2, len(x) - 1})[:CHECKED_IMAGES]
        self._eps = torch.finfo(DTYPES[workload.dtype]).eps
        read = slice(None) if workload.batch_statistics else self._picked
        with torch.no_grad():
            # every contender's rounded weights and input, then exact arithmetic
            expected = workload.module().to(device).double()(x[read].to(device).double()).cpu()
        self._expected = expected[self._picked] if workload.batch_statistics else expected
        self.largest = self._expected.abs().max().item()

    def error(self, output: Tensor) -> float:
        """Largest absolute error. A non-finite output is an infinite error."""
        error = (output[self._picked].cpu().double() - self._expected).abs().max().item()
        return error if torch.isfinite(output).all() and error == error else float("inf")

    def limit(self, eager_error: float) -> float:
        """Twice eager's own error, and four ulps of the largest value."""
        exponent = math.frexp(self.largest)[1] - 1
        return 2 * eager_error + 4 * self._eps * 2.0**exponent
