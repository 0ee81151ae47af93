"""Times contenders in turn, so that a slow minute of the machine falls on all of them alike."""

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
    """A timer that shows recorded samples to pytest-benchmark, whose own loop cannot interleave."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        return self._now

    def __repr__(self) -> str:  # goes into the JSON
        return "recorded samples of time.perf_counter or CUDA events"

    def advance(self, seconds: float) -> None:
        """One recorded sample passes."""
        self._now += seconds


def interleave(calls: Mapping[str, Call], budget_s: float, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each call, a sample a round: A B C, then B C A, ... until the budget is spent."""
    sample = _CudaSampler(device) if device.type == "cuda" else _cpu_sample
    estimates = {name: _warm_up(call, sample) for name, call in calls.items()}
    round_s = sum(_cost(estimate, device) for estimate in estimates.values())
    rounds = min(max(int(budget_s / round_s), MIN_ROUNDS), MAX_ROUNDS)

    samples: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            start = i % len(names)  # nobody always follows the same neighbour
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


def _cost(estimate: float, device: torch.device) -> float:
    """Seconds that one sample takes, with what belongs to it."""
    if device.type == "cuda":
        return estimate + _CudaSampler.FLUSH_S
    return estimate * (2 if estimate < REWARM_BELOW_S else 1) + SETTLE_S


def _cpu_sample(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _CudaSampler:
    """Device seconds between two events; L2 is flushed before, so that inputs come from memory."""

    FLUSH_S = 2e-4  # writing the buffer below, roughly

    def __init__(self, device: torch.device) -> None:
        self._device = device
        l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
        self._flush = torch.empty(4 * l2_bytes, dtype=torch.int8, device=device)

    def __call__(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        self._flush.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3
