"""pytest options, one test per contender and workload, and the machine description in the results.

Interleaving needs all contenders of a workload in one loop, but pytest-benchmark expects one test per contender.
The first test of a workload therefore measures all of them. Each test then replays its own samples to
pytest-benchmark through a custom timer.
"""

import os
import shlex
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from resnet_fused.cli import _machine

from .contenders import OURS, contenders
from .measure import Measurement, measure
from .timing import MIN_ROUNDS, SampleClock, percentiles_ms
from .workloads import Workload, workloads

BUDGETS_S = {"block": 6.0, "model": 15.0}
LATENCY_BUDGET_S = 150.0  # at batch 1: 200 calls of each contender of ResNet-50 at 50 ms
ENGINES = ("onnxruntime", "openvino", "onnx", "onnxscript", "torchvision")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("resnet_fused benchmarks")
    group.addoption("--quick", action="store_true", help="one block, and ResNet-18 at the two smallest batches")
    group.addoption(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="timing per workload (default: 6 for blocks, 15 for models, 150 at batch 1; a third with --quick)",
    )
    group.addoption("--contenders", metavar="A,B", help="only these, and eager (default: all)")
    group.addoption("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    group.addoption("--no-memory", action="store_true", help="leave peak memory out")


class Session:
    """Parsed options and the measurements so far."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.device = torch.device(option("--device") or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.quick = bool(option("--quick"))
        self._budget_s: float | None = option("--budget")
        self.memory = not option("--no-memory")
        self.labels = {name: label for name, (label, _) in contenders(self.device.type).items()}
        self.names = self._chosen(option("--contenders"))
        found = workloads(self.device.type, quick=self.quick)
        self.workloads = {workload.name: workload for workload in found}
        self.load_before = os.getloadavg()[0]  # other load disturbs the times
        self._measured: dict[str, Measurement] = {}

    def _chosen(self, text: str | None) -> list[str]:
        if text is None:
            return list(self.labels)
        chosen = ["eager", *text.split(",")]
        if unknown := [name for name in chosen if name not in self.labels]:
            raise pytest.UsageError(f"--contenders: {unknown} not among {list(self.labels)}")
        return [name for name in self.labels if name in chosen]

    def budget_s(self, workload: Workload) -> float:
        if self._budget_s is not None:
            return self._budget_s
        usual = LATENCY_BUDGET_S if workload.shape[0] == 1 else BUDGETS_S[workload.kind]
        return usual / (3 if self.quick else 1)

    def measurement(self, name: str) -> Measurement:
        if name not in self._measured:
            workload = self.workloads[name]
            self._measured[name] = measure(
                workload, self.device, self.names, self.budget_s(workload), memory=self.memory
            )
        return self._measured[name]


_SESSION = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SESSION] = Session(config)


def pytest_report_header(config: pytest.Config) -> str:
    session = config.stash[_SESSION]
    timing_s = sum(session.budget_s(workload) for workload in session.workloads.values())
    return (
        f"benchmarks: {len(session.workloads)} workloads x {len(session.names)} contenders on "
        f"{_machine.device_name(session.device)}; about {timing_s / 60:.0f} min of timing (never "
        f"fewer than {MIN_ROUNDS} rounds) and several times that of compiling and verifying; "
        f"load average now {session.load_before:.1f}; "
        f"peak memory {'measured' if session.memory else 'left out'}"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[_SESSION]
    kind = metafunc.function.__name__.removeprefix("test_")
    metafunc.parametrize(
        ("workload", "contender"),
        [
            pytest.param(
                workload.name,
                name,
                marks=pytest.mark.benchmark(timer=SampleClock(), group=workload.name),
                id=f"{workload.name} {name}".replace(" ", "-"),
            )
            for workload in session.workloads.values()
            if workload.kind == kind
            for name in session.names
        ],
    )


@pytest.fixture
def replay(
    request: pytest.FixtureRequest, benchmark: BenchmarkFixture, workload: str, contender: str
) -> Callable[[], None]:
    """Measures the workload on first use, then passes this contender's samples to pytest-benchmark."""
    session = request.config.stash[_SESSION]
    clock = request.node.get_closest_marker("benchmark").kwargs["timer"]

    def replay() -> None:
        result = session.measurement(workload)
        if reason := result.unavailable.get(contender):
            if contender == "ours":  # plain resnet_fused must run; with torch.compile it may fail
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)
        samples = result.samples[contender]
        remaining = iter(samples)
        info = _extra_info(session, session.workloads[workload], contender, result)
        benchmark.extra_info.update(info)
        benchmark.pedantic(lambda: clock.advance(next(remaining)), rounds=len(samples))

    return replay


def _extra_info(session: Session, workload: Workload, contender: str, result: Measurement) -> dict[str, object]:
    """What ``resnet_fused.cli.bench`` reads; README.md lists the fields."""
    seconds = result.median(contender)
    info: dict[str, object] = {
        "kind": workload.kind,
        "workload": workload.title,
        "dtype": workload.dtype,
        "shape": list(workload.shape),
        "batch": workload.shape[0],
        "device": session.device.type,
        "contender": contender,
        "label": session.labels[contender],
        "note": result.notes[contender],
        "images_per_s": workload.shape[0] / seconds,
        "tflops": result.flops / seconds / 1e12,
        "gbytes_per_s": result.bytes / seconds / 1e9,
        "error": result.errors[contender],
        "error_limit": result.error_limit,
        "peak_bytes": result.peak_bytes.get(contender),
        **_latency(workload, result.samples[contender]),
        "unavailable": {session.labels[name]: reason for name, reason in result.unavailable.items()},
    }
    if contender in OURS:
        info["times_as_fast_as"] = {name: result.median(name) / seconds for name in result.samples if name not in OURS}
    return info


def _latency(workload: Workload, samples: list[float]) -> dict[str, float | None]:
    if workload.shape[0] > 1:
        return {}
    p50, p99 = percentiles_ms(samples)
    return {"p50_ms": p50, "p99_ms": p99}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    session = config.stash[_SESSION]
    machine_info.pop("node", None)  # the host name is private
    machine_info["resnet_fused"] = {
        **_machine.record(session.device),
        "command": shlex.join(["pytest", *config.invocation_params.args]),
        "packages": {name: _machine.package_version(name) for name in ENGINES},
        "load_before": session.load_before,
    }
