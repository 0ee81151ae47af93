"""Time and memory that checking packed weights costs on every call of a whole network.

    python -m benchmarks.packed_weights --before CHECKOUT --out benchmarks/results/packed_weights/<machine>

Each contender runs in its own process: eager channels_last, resnet_fused, resnet_fused after ``freeze``, resnet_fused
packing on the fly without a cache, and, with ``--before``, resnet_fused from another checkout with a built library.
Each round takes one sample of each contender and rotates the order by one. Reports medians of the times and of the
per-round ratios.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 8, 32)
SETTLE_S = 0.02  # see benchmarks/timing.py

# Self-contained, to run in this or an older checkout. Reads commands from stdin and answers on stdout, one line each.
WORKER = """
import ctypes, json, re, sys, time
from pathlib import Path
sys.path.insert(0, ".")
import torch
import resnet_fused
name, network, dtype, batch = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4])
def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)) * 1024
torch.manual_seed(0)
before = status("VmRSS")
model = getattr(resnet_fused.models, network)().eval().to(dtype).to(memory_format=torch.channels_last)
x = torch.randn(batch, 3, 224, 224).to(dtype).to(memory_format=torch.channels_last)
if name != "eager":
    resnet_fused.convert(model)
if name == "frozen":
    resnet_fused.freeze(model)
if name == "on the fly":
    from resnet_fused.modules import basic, bottleneck, stem
    read = basic.kernel_dtype
    for module in (basic, bottleneck, stem):
        module.kernel_dtype = lambda x: (read(x)[0], (False, False))
def call():
    with torch.no_grad():
        return model(x)
ctypes.CDLL(None).malloc_trim(0)
Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
call(), call()
packed = torch.ops.resnet_fused.packed_bytes()
print(json.dumps({"peak": status("VmHWM") - before, "packed": packed, "commit": resnet_fused._build_info.GIT_COMMIT
                  if hasattr(resnet_fused, "_build_info") else None}), flush=True)
for line in sys.stdin:
    call()
    start = time.perf_counter()
    call()
    print(time.perf_counter() - start, flush=True)
"""


class Contender:
    """A process with one network that runs a forward on request."""

    def __init__(self, name: str, checkout: Path, network: str, dtype: str, batch: int) -> None:
        command = [sys.executable, "-c", "import resnet_fused._build_info\n" + WORKER]
        self._process = subprocess.Popen(
            [*command, "ours" if name == "before" else name, network, dtype, str(batch)],
            cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.facts = json.loads(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a contender ended with status {self._process.wait()}; its message is above")
        return line

    def seconds(self) -> float:
        """Times one forward after an untimed one."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()


def measure(network: str, dtype: str, batch: int, before: Path | None, rounds: int) -> dict[str, dict]:
    """Returns contender -> samples in seconds, peak memory and bytes of packed weights."""
    checkouts = dict.fromkeys(("eager", "ours", "frozen", "on the fly"), ROOT) | ({"before": before} if before else {})
    contenders = {name: Contender(name, path, network, dtype, batch) for name, path in checkouts.items()}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            time.sleep(SETTLE_S)
            samples[name].append(contenders[name].seconds())
    for contender in contenders.values():
        contender.close()
    return {name: {**contenders[name].facts, "seconds": samples[name]} for name in names}


def table(results: dict[str, dict[str, dict]]) -> str:
    """Formats a Markdown table, one row per workload."""
    lines = [
        "| | eager, ms | before, ms | resnet_fused, ms | frozen, ms | on the fly, ms | resnet_fused / before | "
        "/ frozen | / on the fly | IQR | peak MiB: eager / before / resnet_fused / on the fly | packed MiB |",
        "|---|" + "---:|" * 11,
    ]
    for workload, found in results.items():
        median = {name: statistics.median(each["seconds"]) for name, each in found.items()}
        low, _, high = statistics.quantiles(found["ours"]["seconds"], n=4)

        def ratio(to: str, found: dict[str, dict] = found) -> str:
            if to not in found:
                return ""
            pairs = zip(found["ours"]["seconds"], found[to]["seconds"], strict=True)
            return f"{statistics.median(a / b for a, b in pairs):.3f}"

        times = [
            f"{1e3 * median[name]:.1f}" if name in median else ""
            for name in ("eager", "before", "ours", "frozen", "on the fly")
        ]
        in_memory = ("eager", "before", "ours", "on the fly")
        peaks = [f"{found[name]['peak'] / 2**20:.0f}" for name in in_memory if name in found]
        cells = [
            workload,
            *times,
            ratio("before"),
            ratio("frozen"),
            ratio("on the fly"),
            f"{(high - low) / median['ours']:.0%}",
        ]
        lines.append("| " + " | ".join([*cells, " / ".join(peaks), f"{found['ours']['packed'] / 2**20:.0f}"]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout to compare with, its library built")
    parser.add_argument("--out", type=Path, required=True, help="a folder for packed_weights.json and .md")
    parser.add_argument("--rounds", type=int, default=30, help="at batch 1; fewer at larger ones (default %(default)s)")
    parser.add_argument("--networks", default="resnet18,resnet50")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, dict]] = {}
    for dtype in arguments.dtypes.split(","):
        for network in arguments.networks.split(","):
            for batch in map(int, arguments.batches.split(",")):
                rounds = max(5, arguments.rounds // max(1, batch // 4))
                workload = f"{network} {dtype} batch {batch}"
                results[workload] = measure(network, dtype, batch, arguments.before, rounds)
                (arguments.out / "packed_weights.json").write_text(json.dumps(results, indent=1))
                (arguments.out / "packed_weights.md").write_text(table(results) + "\n")
                print(workload, "done", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
