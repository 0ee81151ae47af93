"""Measures one workload: builds, verifies and times every contender interleaved, keeps only the numbers.

On the CPU each contender has a process of its own, and only one works at a time. On CUDA this process runs all.
"""

import contextlib
import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .contenders import OURS, contenders
from .memory import MEASURED
from .peers import Builder, Contender
from .runner import Runner
from .timing import SETTLE_S, interleave, take_turns, turn_s
from .verify import Oracle
from .worker import Unavailable, Worker, sentence
from .workloads import Workload

#: A peer whose error is this many times the limit for ours computes something else.
PEERS_ERROR = 10
#: Calls in a turn of a workload of one image: in twenty rounds enough for p99.
LATENCY_CALLS = 10
#: To import, and to compile with max-autotune on a slow machine.
BUILD_S = 900.0


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

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turns an exception into the reason why the contender is unavailable."""
        try:
            yield
        except Exception as error:  # a peer may fail in any way; the results say why
            self.unavailable[name] = sentence(error)

    def judge(self, name: str, oracle: Oracle, output: Tensor, *, quantises: bool) -> None:
        """Records the error. Raises Unavailable if it is too large; eager's, which comes first, sets the limit."""
        error = oracle.error(output)
        if name == "eager":
            self.error_limit = oracle.limit(error)
        elif "eager" not in self.errors:
            raise Unavailable("not verified: eager, whose error sets the limit, did not run")
        self.errors[name] = error
        allowed = self.error_limit * (1 if name in OURS else PEERS_ERROR)
        if not (quantises or error <= allowed):
            raise Unavailable(f"wrong: error {error:.3g} against fp64, allowed {allowed:.3g}")


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
    result = Measurement()
    result.flops, result.bytes = workload.work()
    oracle = Oracle(workload, device)
    builders = {n: builder for n, (_, builder) in contenders(device.type).items() if n in names or n == "eager"}
    run = in_processes if device.type == "cpu" else in_this_process
    samples = run(workload, device, builders, oracle, budget_s, memory, result)
    result.samples = {name: taken for name, taken in samples.items() if name not in result.unavailable}
    return result


def in_processes(
    workload: Workload,
    device: torch.device,
    builders: dict[str, Builder],
    oracle: Oracle,
    budget_s: float,
    memory: bool,
    result: Measurement,
) -> dict[str, list[float]]:
    """Samples of each contender, one process each."""
    calls = LATENCY_CALLS if workload.shape[0] == 1 else 1
    turns, round_s = {}, 0.0
    with contextlib.ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(workload, b, device)) for name, b in builders.items()}
        for name, worker in workers.items():  # they import torch side by side
            with result.attempt(name):
                worker.ask("ready", limit_s=BUILD_S)
        for name in [name for name in workers if name not in result.unavailable]:  # and work in turn
            worker = workers[name]
            with result.attempt(name):
                result.notes[name], quantises = worker.ask("build", limit_s=BUILD_S)
                if memory and name in MEASURED:
                    result.peak_bytes[name] = worker.ask("peak_bytes")
                result.judge(name, oracle, torch.from_numpy(worker.ask("output")), quantises=quantises)
                round_s += turn_s(worker.ask("warm_up"), calls)
                turns[name] = _turn(name, worker, calls, result)
            if name in result.unavailable:
                worker.close()  # frees its memory
        return take_turns(turns, round_s, budget_s, SETTLE_S)


def _worker(workload: Workload, builder: Builder, device: torch.device) -> Worker:
    return Worker(Runner, workload, builder, device.type, torch.get_num_threads())


def _turn(name: str, worker: Worker, calls: int, result: Measurement) -> Callable[[], list[float]]:
    def turn() -> list[float]:
        if name not in result.unavailable:  # in an earlier round
            with result.attempt(name):
                samples: list[float] = worker.ask("turn", calls)
                return samples
        return []

    return turn


def in_this_process(
    workload: Workload,
    device: torch.device,
    builders: dict[str, Builder],
    oracle: Oracle,
    budget_s: float,
    memory: bool,
    result: Measurement,
) -> dict[str, list[float]]:
    """Samples of each contender, on a GPU; only peak memory is measured in other processes."""
    torch._dynamo.reset()  # otherwise earlier workloads count towards the recompile limit
    running: dict[str, Contender] = {}
    for name, builder in builders.items():
        with result.attempt(name):
            contender = builder(workload, device)
            result.notes[name] = contender.note
            output = contender.output(contender.call())
            result.judge(name, oracle, output, quantises=contender.quantises)
            running[name] = contender
    for name, contender in running.items():
        if memory and name in MEASURED:
            with contextlib.suppress(Unavailable), _worker(workload, builders[name], device) as worker:
                worker.ask("build", limit_s=BUILD_S)
                result.peak_bytes[name] = worker.ask("peak_bytes")
        contender.restore()
    return interleave({name: c.call for name, c in running.items()}, budget_s, device)
