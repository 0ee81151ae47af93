"""Interleaved timing, so that a temporary slowdown of the machine affects all contenders equally."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

Call = Callable[[], object]
Sample = Callable[[Call], float]  # seconds of a call
Turn = Callable[[], list[float]]  # seconds of each call of one contender's turn

MIN_ROUNDS, MAX_ROUNDS = 5, 100
#: With fewer samples p99 is not stated.
FEWEST_FOR_P99 = 100
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
    """Times each call once per round until the budget is spent, in this process.

    On CUDA L2 is flushed before each sample, or, where ``warm``, the call runs once before it.
    """
    turns: dict[str, Turn] = {}
    round_s = 0.0
    if device.type == "cpu":
        for name, call in calls.items():
            estimate = warm_up(call, timed)
            turns[name] = partial(turn, call, estimate)
            round_s += turn_s(estimate)
    else:
        sample: Sample = _warm_cuda_sample if warm else _CudaSampler(device)
        for name, call in calls.items():
            estimate = warm_up(call, sample)
            turns[name] = lambda call=call: [sample(call)]  # type: ignore[misc]
            round_s += 2 * estimate if warm else estimate + Flush.SECONDS
    gc.collect()
    gc.disable()
    try:
        return take_turns(turns, round_s, budget_s, SETTLE_S if device.type == "cpu" else 0.0)
    finally:
        gc.enable()


def take_turns(turns: Mapping[str, Turn], round_s: float, budget_s: float, settle_s: float) -> dict[str, list[float]]:
    """Takes a turn of each once per round (A B C, then B C A, ...), after a silence of ``settle_s`` each."""
    samples: dict[str, list[float]] = {name: [] for name in turns}
    if not turns:
        return samples
    rounds = min(max(int(budget_s / round_s), MIN_ROUNDS), MAX_ROUNDS)
    names = list(turns)
    for i in range(rounds):
        start = i % len(names)  # rotate, so that no contender always follows the same one
        for name in names[start:] + names[:start]:
            if settle_s:
                time.sleep(settle_s)
            samples[name] += turns[name]()
    return samples


def turn(call: Call, estimate_s: float, calls: int = 1) -> list[float]:
    """Seconds of each of a few calls in a row on the CPU."""
    if estimate_s < REWARM_BELOW_S:
        call()
    return [timed(call) for _ in range(calls)]


def turn_s(estimate_s: float, calls: int = 1) -> float:
    """Seconds that a turn on the CPU takes, silence included."""
    return estimate_s * (calls + (estimate_s < REWARM_BELOW_S)) + SETTLE_S


def warm_up(call: Call, sample: Sample) -> float:
    """Runs the call three times; estimates its seconds."""
    call()
    return min(sample(call) for _ in range(2))


def timed(call: Call) -> float:
    """Seconds of a call on the CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def percentiles_ms(samples: Sequence[float]) -> tuple[float, float | None]:
    """p50 and p99, interpolated as NumPy does."""
    p99 = statistics.quantiles(samples, n=100, method="inclusive")[98] if len(samples) >= FEWEST_FOR_P99 else None
    return 1e3 * statistics.median(samples), None if p99 is None else 1e3 * p99


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
