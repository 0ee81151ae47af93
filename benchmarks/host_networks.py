"""Host time of the inference forward of whole networks, for ``python -m benchmarks.host_time``.

Batch 1, small bfloat16 channels_last images and no classifier, so that almost only host work remains. Two columns:

- Python: the ops return tensors recorded before, so modules, policy and memory formats remain.
- With ops that launch nothing: also torch's dispatcher and the op layer (``tests/cuda_on_cpu/op_layer.py``).

The tensors are on the CPU, so code that depends on the device (the pre-activation prologue, TF32) runs as on the CPU.
:func:`compare` runs this file in other checkouts too, so it uses no internals of the package.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused import ops

# The ops must be those of the package that is measured: a change of a schema changes both.
CHECKOUT = Path(resnet_fused.__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT / "tests"))

from cuda_on_cpu import op_layer  # noqa: E402

NETWORKS = ("resnet18", "resnet50")
# Looked up in resnet_fused.ops on each call, so that they can be replaced there.
OPS = ("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "conv_bn_relu_pool", "basic_block", "bn_add_act")
H200 = (90, 132, 232448, 233472)  # capability, SMs, shared memory per block and SM; resnet_fused.cli has it as internal
SIZE = 64
COLUMNS = {"python": "Python", "host": "with ops that launch nothing"}


@dataclasses.dataclass
class Times:
    """A network's op calls per forward and the samples of both columns, us per forward."""

    calls: int
    python: list[float] = dataclasses.field(default_factory=list)
    host: list[float] = dataclasses.field(default_factory=list)

    def median(self, column: str) -> float:
        return statistics.median(getattr(self, column))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """The converted network and an image."""
    model = getattr(resnet_fused.models, name)(num_classes=1).eval()
    model.fc = nn.Identity()
    model = model.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    return resnet_fused.convert(model), x


@contextlib.contextmanager
def replaced(functions: dict[str, Callable[..., Any]]) -> Iterator[None]:
    """Replaces attributes of ``resnet_fused.ops``."""
    saved = {name: getattr(ops, name) for name in functions}
    try:
        for name, function in functions.items():
            setattr(ops, name, function)
        yield
    finally:
        for name, function in saved.items():
            setattr(ops, name, function)


@torch.no_grad()
def record(forward: Callable[[], object]) -> list[Any]:
    """The results of all op calls of a forward, in order."""
    results: list[Any] = []

    def recording(op: Callable[..., Any], *args: Any, **how: Any) -> Any:
        results.append(op(*args, **how))
        return results[-1]

    with replaced({name: functools.partial(recording, getattr(ops, name)) for name in OPS}):
        forward()
    if not results:
        raise RuntimeError("the network called no op of resnet_fused.ops: it ran eagerly, or bound the ops on import")
    return results


def stubs(results: list[Any]) -> dict[str, Callable[..., Any]]:
    """Ops that return ``results`` in turn, from the start again after the last."""
    turn = itertools.cycle(results)

    def stub(*_: Any, **__: Any) -> Any:
        return next(turn)

    return dict.fromkeys(OPS, stub)


def host_ops() -> dict[str, Callable[..., Any]]:
    """The ops of csrc/cuda with launches that do nothing, planned for an H200."""
    host = op_layer.load_host()
    host.set_device(*H200)
    host.set_engine("")
    library = getattr(torch.ops, op_layer.HOST_NAME)
    return {name: getattr(library, name).default for name in OPS}


@torch.no_grad()
def measure(rounds: int, each: int) -> dict[str, Times]:
    """Samples of each network. A round takes one of each, the mean of ``each`` forwards after an untimed one."""
    launching_nothing = host_ops()
    times: dict[str, Times] = {}
    cases: list[tuple[list[float], Callable[[], object], dict[str, Callable[..., Any]]]] = []
    for name in NETWORKS:
        model, x = network(name)
        forward = functools.partial(model, x)
        results = record(forward)
        times[name] = Times(len(results))
        cases.append((times[name].python, forward, stubs(results)))
        cases.append((times[name].host, forward, launching_nothing))
    for _ in range(rounds):
        for samples, forward, functions in cases:
            with replaced(functions):
                forward()
                begin = time.perf_counter_ns()
                for _ in range(each):
                    forward()
                samples.append((time.perf_counter_ns() - begin) / each / 1e3)
    return times


def table(times: dict[str, Times]) -> str:
    """Medians of one checkout in Markdown."""
    rows = [[name, str(found.calls), *(f"{found.median(c):.0f}" for c in COLUMNS)] for name, found in times.items()]
    return _markdown(["network", "op calls", *(f"{title}, us" for title in COLUMNS.values())], rows)


def compare(this: Path, other: Path, rounds: int, each: int, runs: int) -> str:
    """Measures two checkouts in alternating processes, ``runs`` of each, and returns a table of medians over all.

    Raises:
        RuntimeError: a checkout cannot be measured; the message says why.
    """
    checkouts = {"other": other.resolve(), "this": this.resolve()}
    for checkout in checkouts.values():
        _check_built(checkout)
    found: dict[str, dict[str, Times]] = {which: {} for which in checkouts}
    for run in range(runs):
        for which in sorted(checkouts, reverse=run % 2 == 1):  # the order alternates too
            for name, times in _measure_in(checkouts[which], math.ceil(rounds / runs), each).items():
                total = found[which].setdefault(name, Times(times.calls))
                total.python += times.python
                total.host += times.host
    rows = []
    for name, column in itertools.product(NETWORKS, COLUMNS):
        both = [found[which][name] for which in checkouts]
        old, new = (times.median(column) for times in both)
        calls = [str(times.calls) for times in both]
        rows.append([name, COLUMNS[column], *calls, f"{old:.0f}", f"{new:.0f}", f"{new / old:.3f}"])
    header = ["network", "", "op calls, other", "this", "other, us", "this, us", "this / other"]
    commits = ", ".join(f"{which} is {_commit(checkout)}" for which, checkout in checkouts.items())
    return f"{commits}\n\n{_markdown(header, rows)}"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "no commit"


def _check_built(checkout: Path) -> None:
    package = checkout / "resnet_fused"
    if not (package / "__init__.py").exists():
        raise RuntimeError(f"{checkout} is not a checkout of resnet_fused: it has no resnet_fused/__init__.py")
    # Python would take a missing library from an editable install of another checkout.
    if not list(package.glob("_C.*")):
        raise RuntimeError(f"{checkout} is not built; run there: python setup.py build_ext --inplace")


def _measure_in(checkout: Path, rounds: int, each: int) -> dict[str, Times]:
    """:func:`measure` in a process that imports resnet_fused from ``checkout``."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), str(rounds), str(each)]
    done = subprocess.run(command, env=environment, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"cannot measure {checkout} (exit status {done.returncode}):\n{done.stderr.strip()}")
    measured = json.loads(done.stdout)
    if Path(measured["checkout"]) != checkout:
        raise RuntimeError(f"cannot measure {checkout}: Python imported resnet_fused from {measured['checkout']}")
    return {name: Times(**times) for name, times in measured["times"].items()}


def main() -> None:
    """Prints what :func:`_measure_in` reads."""
    rounds, each = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    gc.disable()
    times = measure(rounds, each)
    print(json.dumps({"checkout": str(CHECKOUT), "times": {name: dataclasses.asdict(t) for name, t in times.items()}}))


if __name__ == "__main__":
    main()
