"""Runs the CUDA kernels on the CPU, every thread a fiber and every access checked. docs/kernels/emulator.md

``load()`` compiles the kernels' own sources with g++ (ninja rebuilds what changed) and returns the Python module of
``bindings/``. ``load(Plant(...))`` compiles a copy with a bug in it.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from .build import BUILD, ROOT, Source, affected, host, import_module, kernels, missing
from .build import build as build_module

__all__ = ["Plant", "load", "load_own", "missing", "prepare"]


class Plant(NamedTuple):
    """A bug: in ``file`` (below csrc/), ``old`` becomes ``new``."""

    file: str
    old: str
    new: str


@functools.cache
def load(planted: Plant | None = None, only: tuple[str, ...] = ()) -> ModuleType:
    """The kernels of csrc/cuda.

    ``only``: stems of the sources that are worth compiling, such as ``("conv_fwd_bf16",)``. All others are linked as
    they were compiled last, and without the planted bug. By default these are all that need it, or what the
    environment's CUDA_ON_CPU_ONLY lists, separated by commas.
    """
    if planted is not None:
        return import_module(_build_planted(planted, only))
    only = only or tuple(filter(None, os.environ.get("CUDA_ON_CPU_ONLY", "").split(",")))
    return import_module(_build_clean(only))


def prepare(planted: Iterable[tuple[Plant, tuple[str, ...]]]) -> None:
    """Compiles what ``load(plant, only)`` will be asked for, as many at a time as there are cores."""
    load()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda arguments: _build_planted(*arguments), planted))


def load_own(name: str, sources: Iterable[Path], bindings: Iterable[Path], include: Iterable[Path] = ()) -> ModuleType:
    """A module of other kernels, such as a test's: .cu files, and C++ files of bindings (see bindings/python.h)."""
    own = [s for s in host() if s.rule == "runtime" or s.file.stem == "module"]
    own += [Source(Path(f), "bindings") for f in bindings]
    return import_module(build_module(BUILD / name, name, [*kernels(sources), *own], include=include))


def _build_clean(only: tuple[str, ...]) -> Path:
    folder, sources = BUILD / "clean", kernels()
    unknown = set(only) - {s.file.stem for s in sources}
    if unknown:
        raise ValueError(f"no such kernel source: {', '.join(sorted(unknown))}")
    if not only:
        return build_module(folder, "all", [*sources, *host()])
    stale = [s for s in sources if s.file.stem not in only and (folder / s.object).exists()]
    fresh = [s for s in sources if s not in stale]
    return build_module(folder, "only", [*fresh, *host()], [folder / s.object for s in stale])


def _build_planted(planted: Plant, only: tuple[str, ...]) -> Path:
    original = ROOT / "csrc" / planted.file
    text = original.read_text()
    if text.count(planted.old) != 1:
        raise ValueError(f"{planted.old!r} occurs {text.count(planted.old)} times in {planted.file}")
    clean, sources = BUILD / "clean", kernels()
    load()
    compiled = [s for s in affected(clean, "all", sources, original) if not only or s.file.stem in only]
    if not compiled:
        raise ValueError(f"no kernel source that is compiled reads {planted.file}")
    folder = BUILD / ("planted_" + hashlib.sha256(repr((planted, only)).encode()).hexdigest()[:12])
    copy = folder / "include" / planted.file
    text = text.replace(planted.old, planted.new)
    if not copy.exists() or copy.read_text() != text:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    if original.suffix == ".cu":
        compiled = [s._replace(file=copy) for s in compiled]
    ours = {s.object for s in compiled}
    return build_module(
        folder, "all", compiled, [clean / s.object for s in [*sources, *host()] if s.object not in ours]
    )
