"""Peak memory of a forward beyond weights and input, measured right after building in a fresh process.

It runs two forwards, so memory that a contender keeps between calls (packed weights, caches) counts.
"""

import ctypes
import re
from pathlib import Path

import torch

from .timing import Call

#: The others run while they are built, or allocate then, or are exported by code that runs in no deployment.
MEASURED = ("eager", "eager_cl", "ours")


def peak_bytes(call: Call, device: torch.device) -> int:
    """Runs the call twice; returns the largest growth of memory."""
    return _cuda_peak(call) if device.type == "cuda" else _cpu_peak(call)


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
