"""Lists the libraries of emulated kernels: one per source with kernels, so that an edit recompiles little."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CUDA = ROOT / "csrc" / "cuda"

#: Library -> stems of csrc/cuda/**/*.cu in it: kernels, launcher and finishing kernel.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "bn_add_act": ("bn_add_act",),
    "bn_stats": ("bn_stats", "bn_finish"),
    "bn_backward_reduce": ("bn_backward_reduce", "bn_finish"),
    "bn_backward": ("bn_backward",),
    "bn_finish": ("bn_finish",),
    "bn_pool": ("bn_pool",),
    "pool_backward": ("pool_backward",),
    **{f"conv_fwd_{d}": ("conv_fwd", f"conv_fwd_{d}", "conv_finish") for d in ("f16", "bf16", "tf32")},
    **{f"conv_stats_{d}": ("conv_fwd", f"conv_stats_{d}") for d in ("f16", "bf16", "tf32")},
    **{f"conv_gradient_{d}": ("conv_fwd", f"conv_gradient_{d}") for d in ("f16", "bf16", "tf32")},
    **{f"conv_sm90_{d}": ("conv_sm90", f"conv_sm90_{d}", "conv_sm90_finish") for d in ("f16", "bf16")},
    **{f"conv_sm90_stats_{d}": ("conv_sm90", f"conv_sm90_stats_{d}") for d in ("f16", "bf16")},
    **{f"conv_rows_{d}": ("conv_rows", f"conv_rows_{d}") for d in ("f16", "bf16")},
    **{f"block_fwd_{d}": ("block_fwd", f"block_fwd_{d}") for d in ("f16", "bf16")},
}


class Own(NamedTuple):
    """A test's own kernel library: .cu files, C++ files with bindings (bindings/library.h), include folders."""

    name: str
    kernels: tuple[Path, ...]
    bindings: tuple[Path, ...]
    include: tuple[Path, ...]

    @classmethod
    def of(cls, name: str, folder: Path, but: str = "") -> Own:
        kernels = tuple(path for path in sorted(folder.glob("*.cu")) if path.stem != but)
        return cls(name, kernels, tuple(sorted(folder.glob("*.cpp"))), (folder,))


CHECKS = Own.of("checks", HERE / "checks")
PRIMITIVES = Own.of("primitives", HERE.parent / "cuda_primitives" / "kernels", but="gpu")

SOURCES = {path.stem: path for path in sorted(CUDA.rglob("*.cu"))}


def containing(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The libraries that contain the most of these sources."""
    unknown = set(sources) - set(SOURCES)
    if unknown:
        raise ValueError(f"no such kernel source: {', '.join(sorted(unknown))}")
    most = max(len(set(sources) & set(stems)) for stems in LIBRARIES.values())
    return tuple(name for name, stems in LIBRARIES.items() if len(set(sources) & set(stems)) == most)
