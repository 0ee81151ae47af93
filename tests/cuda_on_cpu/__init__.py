"""Runs the CUDA kernels on the CPU, with every access to global memory checked.

``load()`` compiles the kernels' own sources with g++ (seconds; ninja rebuilds what changed) and
returns the Python module of ``bindings.cpp``. ``load(planted=...)`` compiles a copy with a bug in it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_on_cpu"
HOST = sorted(HERE.glob("*.cpp"))
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")


class Plant(NamedTuple):
    """A bug: in ``file`` (below csrc/), ``old`` becomes ``new``."""

    file: str
    old: str
    new: str


def missing() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if not shutil.which("g++"):
        return "g++ is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not _ninja():
        return "ninja is not installed"
    return None


@functools.cache
def load(planted: Plant | None = None) -> ModuleType:
    clean = BUILD / "clean"
    if planted is None:
        return _build(clean, _rules(clean, []))
    load()  # for the host's objects
    folder = BUILD / _plant(planted)
    return _build(folder, _rules(folder, [clean / f"{host.stem}.o" for host in HOST]))


def _build(folder: Path, rules: str) -> ModuleType:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text(rules)
    done = subprocess.run([_ninja(), "-C", folder], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulator does not compile\n{done.stdout}{done.stderr}")
    # The folder makes the name unique: pybind11 keeps one module a name.
    spec = importlib.util.spec_from_file_location(f"{folder.name}.kernels", folder / f"kernels{SUFFIX}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")


def _plant(plant: Plant) -> str:
    """Writes the file with its bug to a folder that comes first on the include path."""
    source = (ROOT / "csrc" / plant.file).read_text()
    if source.count(plant.old) != 1:
        raise ValueError(f"{plant.old!r} occurs {source.count(plant.old)} times in {plant.file}")
    name = "planted_" + hashlib.sha256(repr(plant).encode()).hexdigest()[:12]
    copy = BUILD / name / "include" / plant.file
    text = source.replace(plant.old, plant.new)
    if not copy.exists() or copy.read_text() != text:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    return name


def _rules(folder: Path, ready: list[Path]) -> str:
    """Compiles the kernels, and the host's part too unless it is ``ready``."""
    import pybind11

    # The emulator's folder shadows csrc/cuda/launch.h and csrc/cuda/ptx; a planted file shadows both.
    own = [folder / "include", HERE / "include", ROOT / "csrc"]
    system = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off -Wno-unknown-pragmas"]
    # A planted bug is compiled once and run briefly; it may well leave a variable unused.
    flags += ["-O0" if ready else "-O1 -g1 -Wall -Wextra -Werror"]
    flags += [*(f"-I{p}" for p in own), *(f"-isystem {p}" for p in system)]
    sources = sorted((ROOT / "csrc" / "cuda").rglob("*.cu")) + ([] if ready else HOST)
    builds = "\n".join(f"build {source.stem}.o: cxx {source}" for source in sources)
    # Kernels come first: of inline functions that a plant changed, the linker keeps the first copy.
    objects = " ".join([*(f"{source.stem}.o" for source in sources), *map(str, ready)])
    return f"""\
rule cxx
  command = g++ -MMD -MF $out.d {" ".join(flags)} -x c++ -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = g++ -shared -o $out $in
{builds}
build kernels{SUFFIX}: link {objects}
"""
