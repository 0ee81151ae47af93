"""Host time of the ops of csrc/cuda and of networks: ``python -m benchmarks.host_time``. Needs a compiler, no GPU.

Compiles the op layer as host code with empty kernel launches (``tests/cuda_on_cpu/op_layer.py``). Each round measures
the call from Python and the time inside the op (from torch's boxed call to its return); the difference is the overhead
of Python and torch. Not included, because it needs a GPU: cudaLaunchKernelEx, the device guard, the stream,
the driver's encoding of a tensor map. Rounds interleave everything that is compared; medians are printed.
``host_networks.py`` measures whole networks; ``--compare CHECKOUT`` measures only these, here and in another checkout
with a built library, in alternating processes. A checkout's first run also compiles its op layer.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cuda_on_cpu import op_layer  # noqa: E402
from cuda_on_cpu.host_calls import calls  # noqa: E402

from benchmarks import host_networks  # noqa: E402
from resnet_fused.cli import _machine  # noqa: E402
from resnet_fused.cli._gpus import GPUS  # noqa: E402

# The op, and RESNET_FUSED_CUDA_ENGINE, on an H200.
CASES = [
    ("conv_bn_act", "sm80:64x64:1"),
    ("conv_bn_act", "sm80:64x64:3"),
    ("conv_bn_act", "sm90:128x128"),
    ("conv_bn_act", "sm90:rows"),
    ("bn_relu_conv_bn_act", "sm90:128x128"),
    ("conv_bn_proj_act", "sm90:128x128"),
    ("basic_block", "sm90:block"),
    ("bn_add_act", "sm90"),
]
LIMIT = 5.0  # us inside an op, docs/kernels/host_path.md


def measure(rounds: int, each: int) -> tuple[dict[str, tuple[float, float]], dict[str, float]]:
    """Median ns of a call from Python and of the time inside it, by case; and of single parts."""
    host = op_layer.load_host()
    host.set_device(*GPUS["h200"])
    made = calls(channels=64, size=56)
    called, inside, parts = defaultdict(list), defaultdict(list), defaultdict(list)
    x = made["bn_add_act"][1][0]

    def take(name: str, call: Callable[[], object]) -> None:
        call()
        before, begin = host.nanoseconds_inside(), time.perf_counter_ns()
        for _ in range(each):
            call()
        called[name].append((time.perf_counter_ns() - begin) / each)
        inside[name].append((host.nanoseconds_inside() - before) / each)

    for _ in range(rounds):
        for name, engine in CASES:
            host.set_engine(engine)
            op, args = made[name]
            take(f"{name} {engine}", lambda op=op, args=args: op(*args))
        take("torch.relu", lambda: torch.relu(x[:1, :1, :1, :1]))
        take("torch.empty_like", lambda: torch.empty_like(x))
        for name, ns in host.parts(each).items():
            parts[name].append(ns)
    medians = {name: (statistics.median(called[name]), statistics.median(inside[name])) for name in called}
    return medians, {name: statistics.median(ns) for name, ns in parts.items()}


def _machine_and_versions() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, Python {platform.python_version()}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--each", type=int, default=50, help="calls a round of each case")
    parser.add_argument("--forwards", type=int, default=5, help="forwards a round of each network")
    parser.add_argument("--compare", type=Path, metavar="CHECKOUT", help="compare networks with this built checkout")
    parser.add_argument("--runs", type=int, default=6, help="processes of each checkout, which share the rounds")
    wanted = parser.parse_args()
    if min(wanted.rounds, wanted.each, wanted.forwards, wanted.runs) < 1:
        parser.error("--rounds, --each, --forwards and --runs must be at least 1")
    torch.set_num_threads(1)
    gc.disable()
    if wanted.compare is not None:
        try:
            compared = host_networks.compare(ROOT, wanted.compare, wanted.rounds, wanted.forwards, wanted.runs)
        except RuntimeError as error:
            sys.exit(f"error: {error}")
        print(f"{_machine_and_versions()}, {time.strftime('%Y-%m-%d')}")
        print(
            f"{wanted.runs} alternating processes of each checkout, {wanted.rounds} rounds in all, medians; {compared}"
        )
        return
    with torch.no_grad():
        cases, parts = measure(wanted.rounds, wanted.each)
    networks = host_networks.measure(wanted.rounds, wanted.forwards)
    commit = _machine.commit()["commit"] or "unknown"
    print(f"{_machine_and_versions()}, commit {commit},")
    print(f"{time.strftime('%Y-%m-%d')}, {wanted.rounds} interleaved rounds of {wanted.each} calls, medians\n")
    print("| call | from Python, us | inside the op, us |\n|---|---|---|")
    for name, (called, inside) in cases.items():
        print(f"| {name} | {called / 1e3:.2f} | {f'{inside / 1e3:.2f}' if inside else ''} |")
    print("\n| part | ns |\n|---|---|")
    for name, ns in parts.items():
        print(f"| {name} | {ns:.0f} |")
    print(f"\nNetworks, {wanted.forwards} forwards a round:\n\n{host_networks.table(networks)}")
    over = [name for name, (_, inside) in cases.items() if inside > LIMIT * 1e3]
    print(f"\n{'Over' if over else 'All within'} {LIMIT:.0f} us inside the op{': ' + ', '.join(over) if over else ''}")


if __name__ == "__main__":
    main()
