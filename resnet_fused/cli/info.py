"""``info``: shows versions, processors and libraries, and which engines run."""

import argparse
import importlib
import os
import platform

import rich
import torch
from rich.markup import escape
from rich.table import Table

from .. import _library, ops, plans
from ._machine import cpu_name, onednn_version, package_version

DTYPES = ("float32", "bfloat16", "float16")
# Environment variables that change which kernels run
VARIABLES = ("RESNET_FUSED_CPU_ISA", "RESNET_FUSED_CPU_ENGINE", "RESNET_FUSED_CUDA_ENGINE", "RESNET_FUSED_CUDA_CHECK")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` has no arguments."""


def main(args: argparse.Namespace) -> int:
    """Prints one table."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, value in facts().items():
        table.add_row(name, escape(value))
    rich.print(table)
    return 0


def facts() -> dict[str, str]:
    """Everything that ``info`` prints, in order."""
    return {
        "resnet_fused": package_version("resnet_fused"),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "oneDNN": onednn_version(),
        "CPU": cpu_name(),
        "CPU capability": torch.backends.cpu.get_cpu_capability(),
        **{f"CPU kernels, {dtype}": _own_kernels(dtype) for dtype in DTYPES},
        **{f"3x3 conv, {dtype}": _typical_plan(dtype).summary for dtype in DTYPES},
        **{name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        "GPUs": _gpus(),
        **{f"verified on sm_{arch}": _trust(arch) for arch in _archs()},
        # always loaded: importing the package fails without it
        "CPU library": f"loaded: RESNET_FUSED_LIBRARY={_library.LIBRARY}" if _library.LIBRARY else "loaded",
        "CUDA library": "loaded" if _library.CUDA_LOADED else f"not loaded: {_library.CUDA_LOAD_ERROR}",
        **_build(),
        "packed weights": f"{ops.packed_bytes():,} bytes",
    }


def _own_kernels(dtype: str) -> str:
    """The instruction set of the library's own CPU kernels, or the plan's reason against them."""
    plan = _typical_plan(dtype)
    for each in plan.rejected:
        if each.kernel == "direct":
            return f"do not run: {each.reason}"
    isa: str = plan.fields["isa"]
    return isa


def _typical_plan(dtype: str) -> plans.Plan:
    """The CPU plan for the most common convolution of a ResNet: 64 -> 64 channels at 56x56."""
    return plans.read(ops.explain_cpu([8, 64, 56, 56], [64, 64, 3, 3], [1, 1], [1, 1], [1, 1], 1, dtype))


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none: this torch was built without CUDA"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} (sm_{p.major}{p.minor})" for p in properties)


def _archs() -> list[int]:
    """Compute capabilities of this machine's GPUs."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return sorted({10 * major + minor for major, minor in map(torch.cuda.get_device_capability, range(count))})


def _trust(arch: int) -> str:
    """Which kernel families are verified on this compute capability (docs/architecture.md, Trust)."""
    families = plans.families(ops.explain_trust(arch))
    verified = [family.name for family in families if family.verified]
    others = [family.name for family in families if not family.verified]
    if not others:
        return f"all {len(families)} kernel families"
    if not verified:
        return f"none of {len(families)} kernel families; the first use of each kernel is checked against eager"
    return f"{', '.join(verified)}; for the others ({', '.join(others)}) the first use is checked against eager"


def _build() -> dict[str, str]:
    """Facts from the file that the build writes next to the libraries."""
    try:
        build = importlib.import_module("resnet_fused._build_info")
    except ModuleNotFoundError:
        return {"built": "unknown: there is no resnet_fused/_build_info.py"}
    archs = ", ".join(build.CUDA_ARCHS) or f"no CUDA: {build.CUDA_OMITTED}"
    return {
        "commit": build.GIT_COMMIT or "unknown",
        "built with": f"torch {build.TORCH_BUILD_VERSION}",
        "compiled for": f"{archs} (nvcc {build.NVCC_VERSION})" if build.CUDA_ARCHS else archs,
    }
