"""A contender, as its own process runs it (``worker.py``)."""

import gc

import torch

from .memory import peak_bytes
from .peers import Builder, Contender
from .timing import timed, turn, warm_up
from .workloads import Workload


class Runner:
    """Serves one contender. Its methods are called in their order; ``turn`` again and again."""

    _contender: Contender
    _estimate_s: float

    def __init__(self, workload: Workload, builder: Builder, device: str, threads: int) -> None:
        self._workload, self._builder, self._device = workload, builder, torch.device(device)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(False)

    def ready(self) -> None:
        """Answers when everything is imported."""

    def build(self) -> tuple[str, bool]:
        """Builds the contender; returns its note and whether it quantises."""
        self._contender = self._builder(self._workload, self._device)
        return self._contender.note, self._contender.quantises

    def peak_bytes(self) -> int:
        """Peak memory of the first two forwards."""
        gc.collect()
        return peak_bytes(self._contender.call, self._device)

    def output(self) -> object:
        """The result as a NumPy array: fp32 holds bf16 exactly, and NumPy has no bf16."""
        return self._contender.output(self._contender.call()).float().numpy()

    def warm_up(self) -> float:
        """Restores running statistics; returns the seconds of a call."""
        self._contender.restore()
        self._estimate_s = warm_up(self._contender.call, timed)
        gc.collect()
        gc.disable()
        return self._estimate_s

    def turn(self, calls: int) -> list[float]:
        """Seconds of each call."""
        return turn(self._contender.call, self._estimate_s, calls)
