"""Peak memory of a forward beyond weights and input, each measured in a fresh process.

``python -m benchmarks.memory WORKLOAD CONTENDER DEVICE`` prints the bytes. It runs two forwards, so memory that a
contender keeps between calls (packed weights, caches) counts.
"""

import ctypes
import gc
import re
import subprocess
import sys
from pathlib import Path

import torch

from . import contenders
from .timing import Call
from .workloads import workloads

ROOT = Path(__file__).resolve().parent.parent
MEASURED = ("eager", "eager_cl", "ours")
TIMEOUT_S = 300


def peak_bytes(workload: str, contender: str, device: torch.device) -> int | None:
    """Measures in a fresh process; None if that failed."""
    command = [sys.executable, "-m", "benchmarks.memory", workload, contender, device.type]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except subprocess.SubprocessError:
        return None
    return int(done.stdout.split()[-1])


def _main(workload_name: str, contender_name: str, device_type: str) -> None:
    device = torch.device(device_type)
    workload = next(w for w in workloads(device_type, quick=False) if w.name == workload_name)
    contender = contenders.contenders(device_type)[contender_name][1](workload, device)
    gc.collect()
    with torch.no_grad():
        print(_cuda_peak(contender.call) if device_type == "cuda" else _cpu_peak(contender.call))


def _cuda_peak(call: Call) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        call()
    return torch.cuda.max_memory_allocated() - before


def _cpu_peak(call: Call) -> int:
    ctypes.CDLL(None).malloc_trim(0)  # free heap left from building would hide allocations of the forward
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the peak of resident memory
    before = _status("VmRSS")
    for _ in range(2):
        call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    _main(*sys.argv[1:])
