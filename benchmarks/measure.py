"""Measures one workload: builds and verifies every contender, times them interleaved, keeps only the numbers."""

import statistics
from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from .contenders import OURS, contenders
from .memory import MEASURED, peak_bytes
from .peers import Contender, Unavailable
from .timing import interleave
from .verify import Oracle
from .workloads import Workload

#: A peer whose error is this many times the limit for ours computes something else.
PEERS_ERROR = 10


@dataclass
class Measurement:
    """The contenders' samples for one workload; ``unavailable`` has the reason for each one without samples."""

    samples: dict[str, list[float]] = field(default_factory=dict)  # seconds
    errors: dict[str, float] = field(default_factory=dict)  # largest absolute error against fp64
    error_limit: float = 0.0  # the limit for ours
    peak_bytes: dict[str, int] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    flops: int = 0
    bytes: int = 0

    def median(self, name: str) -> float:
        return statistics.median(self.samples[name])


@torch.no_grad()
def measure(
    workload: Workload,
    device: torch.device,
    names: Collection[str],
    budget_s: float,
    *,
    memory: bool,
) -> Measurement:
    """Measures the named contenders. Eager always runs, as the correctness reference."""
    torch._dynamo.reset()  # otherwise earlier workloads count towards the recompile limit
    result = Measurement()
    result.flops, result.bytes = workload.work()
    running = _build(workload, device, names, result)
    _verify(workload, device, running, result)
    if memory:
        for name in MEASURED:
            if name in running and (peak := peak_bytes(workload.name, name, device)) is not None:
                result.peak_bytes[name] = peak
    for contender in running.values():
        contender.restore()
    result.samples = interleave({name: c.call for name, c in running.items()}, budget_s, device)
    return result


def _build(
    workload: Workload, device: torch.device, names: Collection[str], result: Measurement
) -> dict[str, Contender]:
    running = {}
    for name, (_, builder) in contenders(device.type).items():
        if name not in names and name != "eager":
            continue
        try:
            running[name] = builder(workload, device)
        except Unavailable as reason:
            result.unavailable[name] = str(reason)
        except Exception as error:  # a peer may fail in any way; the results say why
            result.unavailable[name] = _sentence(error)
        else:
            result.notes[name] = running[name].note
    return running


def _verify(workload: Workload, device: torch.device, running: dict[str, Contender], result: Measurement) -> None:
    """Records errors; removes from ``running`` contenders that fail or are wrong."""
    oracle = Oracle(workload, device)
    for name in list(running):
        try:
            result.errors[name] = oracle.error(running[name].output(running[name].call()))
        except Exception as error:
            result.unavailable[name] = _sentence(error)
            del running[name]
            continue
        if name == "eager":
            result.error_limit = oracle.limit(result.errors[name])
        allowed = result.error_limit * (1 if name in OURS else PEERS_ERROR)
        if not (running[name].quantises or result.errors[name] <= allowed):
            result.unavailable[name] = f"wrong: error {result.errors[name]:.3g} against fp64, allowed {allowed:.3g}"
            del running[name]


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"
