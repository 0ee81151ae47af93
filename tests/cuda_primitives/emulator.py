"""Runs the primitives on the emulator."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from cuda_on_cpu.build import BUILD, Source, build, host, import_module, kernels

from .case import Case

KERNELS = Path(__file__).resolve().parent / "kernels"
SOURCES = sorted(path for path in KERNELS.glob("*.cu") if path.stem != "gpu")
BINDINGS = sorted(KERNELS.glob("*.cpp"))
NAME = "primitives"
SCHEDULES = ("stay", "rotate", "random")


class Plant(NamedTuple):
    """A bug: in ``file`` (of kernels/), ``old`` becomes ``new``."""

    file: str
    old: str
    new: str


# What every emulated module has in common; compiled where tests/cuda_on_cpu does, and so only once for both.
HOST = [source for source in host() if source.rule == "runtime" or source.file.stem == "module"]
OWN = [*kernels(SOURCES), *(Source(path, "bindings") for path in BINDINGS)]


@functools.cache
def load() -> ModuleType:
    build(BUILD / "clean", "host", HOST)
    return import_module(build(BUILD / NAME, NAME, OWN, host_objects(), include=[KERNELS]))


def prepare(plants: Iterable[Plant]) -> None:
    """Compiles what ``load_planted`` will be asked for, as many at a time as there are cores."""
    load()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_build_planted, plants))


def load_planted(plant: Plant) -> ModuleType:
    return import_module(_build_planted(plant))


def _build_planted(plant: Plant) -> Path:
    """Compiles the one file, and links the other objects as they are."""
    text = (KERNELS / plant.file).read_text()
    if text.count(plant.old) != 1:
        raise ValueError(f"{plant.old!r} occurs {text.count(plant.old)} times in {plant.file}")
    load()
    folder = BUILD / (f"{NAME}_" + hashlib.sha256(repr(plant).encode()).hexdigest()[:12])
    copy = folder / "include" / plant.file
    text = text.replace(plant.old, plant.new)
    if not copy.exists() or copy.read_text() != text:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    (planted,) = kernels([copy])
    others = [BUILD / NAME / source.object for source in OWN if source.object != planted.object]
    return build(folder, NAME, [planted], [*others, *host_objects()], include=[KERNELS])


def host_objects() -> list[Path]:
    return [BUILD / "clean" / source.object for source in HOST]


def run(module: ModuleType, case: Case, schedule: str = "stay", seed: int = 1) -> tuple[np.ndarray, dict]:
    """The output, and the emulator's report."""
    output = case.empty_output()
    buffers = []
    for i, buffer in enumerate(case.buffers):
        array = output if buffer is None else buffer
        buffers.append((f"buffer {i}", array.ctypes.data, array.nbytes, "write" if buffer is None else "read"))
    return output, module.run(case.primitive, buffers, list(case.numbers), schedule, seed)
