"""Names and versions of this machine's hardware and software, for reports. Read-only."""

import datetime
import importlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import torch


def package_version(name: str) -> str:
    """The installed version, or "not installed": the source tree works without being installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The CPU's model name as reported by the system, and torch's number of threads.

    Virtual machines may report a name without a model ("AMD EPYC"); then with the processor's family and model.
    """
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    facts = dict(re.findall(r"^(model name|cpu family|model)\s*:\s*(.+?)\s*$", text, re.MULTILINE))
    name = facts.get("model name") or platform.processor() or platform.machine()
    if re.search(r"\d", name) or "cpu family" not in facts:
        return name
    return f"{name} (family {facts['cpu family']} model {facts.get('model')})"


def onednn_version() -> str:
    """The version of oneDNN in torch, which the CPU kernels use."""
    if not torch.backends.mkldnn.is_available():
        return "not in this torch"
    match = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return match[1] if match else "version unknown"


def device_name(device: torch.device) -> str:
    """The name of the GPU or CPU behind a torch device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def commit() -> dict[str, str | None]:
    """The commit of the source tree and the commit that the libraries were built from.

    ``commit`` is from git ("-dirty" if files are modified), or without git or a checkout from the build.
    ``commit_from`` says which. Unknown values are None.
    """
    described, built = _described(), built_from()
    source = "git" if described else "the build" if built else None
    return {"commit": described or built, "commit_from": source, "built_from": built}


def built_from() -> str | None:
    """The commit in ``resnet_fused/_build_info.py``, with "+" if files were modified."""
    try:
        found: str | None = importlib.import_module("resnet_fused._build_info").GIT_COMMIT
    except ModuleNotFoundError:
        return None
    return found


def _described() -> str | None:
    tree = Path(__file__).resolve().parents[2]
    if not (tree / ".git").exists():  # do not report another repository that contains an installed package
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=tree, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def record(device: torch.device) -> dict[str, str | float | None]:
    """Provenance to store with a measurement."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),  # over the last minute: detects other processes
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "onednn": onednn_version(),
        "python": platform.python_version(),
        "resnet_fused": package_version("resnet_fused"),
        **commit(),
    }
