"""``info``: versions, processors and libraries, and which engines run here."""

import argparse
import importlib
import platform

import rich
import torch
from rich.markup import escape
from rich.table import Table

from .. import _library, ops
from ._machine import cpu_flags, cpu_name, onednn_version, package_version

ENGINES = {
    "AVX-512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "AVX512-BF16": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` takes no arguments."""


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
        **{f"{name} engine": _engine(flags) for name, flags in ENGINES.items()},
        **{f"3x3 conv, {dtype}": _typical_plan(dtype) for dtype in ("float32", "bfloat16")},
        "GPUs": _gpus(),
        # importing the package fails without it
        "CPU library": f"loaded: RESNET_FUSED_LIBRARY={_library.LIBRARY}" if _library.LIBRARY else "loaded",
        "CUDA library": "loaded" if _library.CUDA_LOADED else f"not loaded: {_library.CUDA_LOAD_ERROR}",
        **_build(),
        "packed weights": f"{ops.packed_bytes():,} bytes",
    }


def _engine(needs: set[str]) -> str:
    flags = cpu_flags()
    if not flags:
        return "unknown: this system does not list its CPU's instruction sets"
    missing = sorted(needs - flags)
    return f"does not run: this CPU lacks {', '.join(missing)}" if missing else "runs"


def _typical_plan(dtype: str) -> str:
    """What the library itself picks for the conv that a ResNet has most of: 64 -> 64 at 56x56."""
    plan = ops.explain_cpu([8, 64, 56, 56], [64, 64, 3, 3], [1, 1], [1, 1], [1, 1], 1, dtype)
    return plan.splitlines()[0]  # the other lines say why other engines were not picked


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none" if torch.version.cuda else "none: this torch was built without CUDA"
    properties = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{p.name} (sm_{p.major}{p.minor})" for p in properties)


def _build() -> dict[str, str]:
    """From the file that the build writes beside the libraries."""
    try:
        build = importlib.import_module("resnet_fused._build_info")
    except ModuleNotFoundError:
        return {"built": "unknown: there is no resnet_fused/_build_info.py"}
    archs = ", ".join(build.CUDA_ARCHS) or f"no CUDA: {build.CUDA_OMITTED}"
    return {
        "commit": build.GIT_COMMIT or "unknown",
        "built beside": f"torch {build.TORCH_BUILD_VERSION}",
        "compiled for": f"{archs} (nvcc {build.NVCC_VERSION})" if build.CUDA_ARCHS else archs,
    }
