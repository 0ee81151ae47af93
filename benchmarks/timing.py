"""Interleaved timing, so that a temporary slowdown of the machine affects all contenders equally."""

import gc
import time
from collections.abc import Callable, Mapping

import torch

Call = Callable[[], object]

MIN_ROUNDS, MAX_ROUNDS = 5, 100
#: Seconds of silence before each contender. Idle OpenMP workers of one library spin for some
#: milliseconds on the cores that the next library's threads need: without the pause ONNX Runtime
#: measures twice its time after torch.
SETTLE_S = 0.02
#: A contender whose call is shorter than this runs once untimed after the pause: its weights are in
#: the caches and the cores awake, as in a server that calls one model over and over.
REWARM_BELOW_S = 0.2


class SampleClock:
    """A timer that replays recorded samples to pytest-benchmark, which cannot interleave contenders."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:  # goes into the JSON
        return "recorded samples of time.perf_counter or CUDA events"

    def advance(self, seconds: float) -> None:
        """Advances by one recorded sample."""
        self._now += seconds


def interleave(
    calls: Mapping[str, Call], budget_s: float, device: torch.device, *, warm: bool = False
) -> dict[str, list[float]]:
    """Times each call once per round (A B C, then B C A, ...) until the budget is spent.

    On CUDA L2 is flushed before each sample, or, where ``warm``, the call runs once before it.
    """
    if device.type == "cpu":
        sample: Callable[[Call], float] = _cpu_sample
    else:
        sample = _warm_cuda_sample if warm else _CudaSampler(device)
    estimates = {name: _warm_up(call, sample) for name, call in calls.items()}
    round_s = sum(_cost(estimate, device, warm) for estimate in estimates.values())
    rounds = min(max(int(budget_s / round_s), MIN_ROUNDS), MAX_ROUNDS)

    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            start = i % len(names)  # rotate, so that no contender always follows the same one
            for name in names[start:] + names[:start]:
                if device.type == "cpu":
                    time.sleep(SETTLE_S)
                    if estimates[name] < REWARM_BELOW_S:
                        calls[name]()
                samples[name].append(sample(calls[name]))
    finally:
        gc.enable()
    return samples


def _warm_up(call: Call, sample: Callable[[Call], float]) -> float:
    call()
    return min(sample(call) for _ in range(2))


def _cost(estimate: float, device: torch.device, warm: bool) -> float:
    """Seconds that one sample takes, overhead included."""
    if device.type == "cuda":
        return 2 * estimate if warm else estimate + Flush.SECONDS
    return estimate * (2 if estimate < REWARM_BELOW_S else 1) + SETTLE_S


def _cpu_sample(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Flush:
    """Flushes a GPU's L2 and leaves only clean lines.

    Zeroing a buffer of four times its size replaces all of its lines by dirty ones; reading another as large replaces
    those by clean ones, and their write-back is over when the read is.
    """

    SECONDS = 3e-4  # of both passes, roughly

    def __init__(self, l2_bytes: int, device: torch.device) -> None:
        self._written = torch.empty(l2_bytes, dtype=torch.float32, device=device)
        self._read = torch.zeros_like(self._written)
        self._largest = torch.empty((), device=device)

    def __call__(self) -> None:
        self._written.zero_()
        torch.amax(self._read, 0, out=self._largest)


class _CudaSampler:
    """Device seconds between two events, after an L2 flush, so that inputs come from memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush = Flush(torch.cuda.get_device_properties(device).L2_cache_size, device)

    def __call__(self, call: Call) -> float:
        torch.cuda.synchronize(self._device)
        self._flush()
        return _seconds_between_events(call)


def _warm_cuda_sample(call: Call) -> float:
    """Device seconds of a call right after the same call."""
    call()
    return _seconds_between_events(call)


def _seconds_between_events(call: Call) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3
