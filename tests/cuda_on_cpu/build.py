"""Compiles kernels for the emulator: ninja files, one object a source, a Python module of them.

A folder of ``build/cuda_on_cpu`` has the objects and modules of one state of the sources: ``clean``, or
``planted_...`` with a bug in it.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_on_cpu"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KERNELS = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
RUNTIME = sorted((HERE / "runtime").glob("*.cpp"))
BINDINGS = sorted((HERE / "bindings").glob("*.cpp"))
OPS = HERE / "ops"
_CUDA = "_ZN12resnet_fused4cuda"
WRAPPED = {  # by files of ops/
    "faults": (
        f"{_CUDA}15launch_conv_fwdERKNS0_13ConvFwdParamsERKNS0_14ConvFwdVariantERKNS0_5QueueE",
        f"{_CUDA}16launch_conv_sm90ERKNS0_13ConvFwdParamsERKNS0_14ConvFwdVariantERKNS0_5QueueE",
        f"{_CUDA}17launch_bn_add_actERKNS0_14BnAddActParamsERKNS0_5QueueE",
        f"{_CUDA}15launch_bn_statsERKNS0_13BnStatsParamsERKNS0_5QueueE",
    ),
    "allocations": ("torch_call_dispatcher", "aoti_torch_empty_strided"),
    "news": ("_Znwm",),
}
HOST = [ROOT / "csrc" / "cuda" / "tensor_map_cache.cpp"]  # what kernels' launchers need of csrc, beside headers

TORCH_TARGET = "0x020a000000000000ULL"  # as in build_tools/ninja_file.py

MOST_OUTPUT = 6000  # characters of a compiler's complaint

COMMON = "-std=c++17 -fPIC -fvisibility=hidden -ffp-contract=off"
STRICT = "-Wall -Wextra -Werror"
# Every plain access calls a hook of runtime/hooks.cpp, and calls keep their return address: reports name the line. The
# guards of static variables would want hooks for atomics; only the host's code has such. A fiber has 256 KiB of stack.
CHECKED = (
    "-g1 -fsanitize=thread,alignment --param tsan-instrument-func-entry-exit=0 -fno-optimize-sibling-calls"
    " -fno-threadsafe-statics -Wno-unknown-pragmas"
)


class Source(NamedTuple):
    file: Path
    rule: str  # kernel, runtime or bindings; ops: the layer between torch and the kernels; host: what launches them

    @property
    def object(self) -> str:
        return f"{self.rule}_{self.file.stem}.o"


def missing() -> str | None:
    """Why the emulator cannot be built here, or None."""
    for tool in ("g++", "addr2line"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None if _ninja() else "ninja is not installed"


def host() -> list[Source]:
    return [*(Source(f, "runtime") for f in [*RUNTIME, *HOST]), *(Source(f, "bindings") for f in BINDINGS)]


def op_layer(emulated: bool) -> list[Source]:
    """csrc/cuda but for what asks a GPU, and the doubles of that; schemas and checks."""
    csrc, doubled = ROOT / "csrc", {"runtime", "smem_grants", "tensor_map", "trust_table", *(f.stem for f in HOST)}
    files = [csrc / "library.cpp", csrc / "explain_cuda.cpp", *sorted((csrc / "common").glob("*.cpp"))]
    files += [f for f in sorted((csrc / "cuda").glob("*.cpp")) if f.stem not in doubled]
    names = ("device", "faults", "allocations") if emulated else ("device", "news", "parts")
    doubles = [Source(OPS / f"{name}.cpp", "ops") for name in names]
    bindings = [HERE / "bindings" / "module.cpp", OPS / "bindings.cpp", *[OPS / "variants.cpp"] * emulated]
    sources = [*(Source(f, "ops") for f in files), *doubles, *(Source(f, "bindings") for f in bindings)]
    return [*sources, *(s for s in host() if s.rule == "runtime")]


def kernels(files: Iterable[Path] = KERNELS) -> list[Source]:
    return [Source(f, "kernel") for f in files]


def build(
    folder: Path, name: str, sources: list[Source], linked: Iterable[Path] = (), include: Iterable[Path] = ()
) -> Path:
    """Compiles ``sources`` and links them, and the objects ``linked``, to the module ``folder/name.so``.

    With sources of the op layer the module registers the ops with torch, as ``torch.ops.name``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = f"{name}{SUFFIX}"
    ours = [s.object for s in sources]
    # Kernels come first: of inline functions that a planted bug changed, the linker keeps the first copy.
    rules = [*_rules(folder, include, name), *(f"build {s.object}: {s.rule} {s.file}" for s in sources)]
    rules += [f"build {module}: link {' '.join([*ours, *map(str, linked)])}", f"default {module}"]
    if any(s.rule == "ops" for s in sources):
        wrapped = " ".join(f"-Wl,--wrap={name}" for s in sources for name in WRAPPED.get(s.file.stem, ()))
        rules.insert(-1, f"  libs = {wrapped} -L{_torch() / 'lib'} -ltorch_cpu")
    file = folder / f"{name}.ninja"
    file.write_text("\n".join(rules) + "\n")
    _run(folder, file.name)
    return folder / module


def affected(folder: Path, name: str, sources: list[Source], header: Path) -> list[Source]:
    """Those of the sources, compiled by ``build(folder, name, ...)``, that read ``header``."""
    # A paragraph for each object: its name and ":", then a line for each file that it was compiled from.
    paragraphs = _run(folder, f"{name}.ninja", "-t", "deps", *(s.object for s in sources)).split("\n\n")
    reads = {p.split(":")[0]: {Path(line.strip()).resolve() for line in p.splitlines()[1:]} for p in paragraphs}
    return [s for s in sources if header in reads.get(s.object, ())]


def import_module(path: Path) -> ModuleType:
    # The folder makes the name unique: pybind11 keeps one module a name.
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}.{path.name.split('.')[0]}.kernels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _torch() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def _rules(folder: Path, include: Iterable[Path], name: str) -> list[str]:
    import pybind11

    # The emulator's folder shadows csrc/cuda/launch.h and csrc/cuda/ptx; a planted file shadows both.
    own = " ".join(f"-I{p}" for p in [folder / "include", HERE / "include", HERE, *include, ROOT / "csrc"])
    system = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
    # A planted bug is run briefly, so that its compilation is what takes time; and it may leave a variable unused.
    planted = (folder / "include").exists()
    how = "-O0 -w" if planted else f"-O1 {STRICT} -Wframe-larger-than=65536"
    # These two are what a GPU's host runs, so they are compiled as for it: no checks, optimised.
    timed = "-DON_CPU_TIMED" if name.endswith("_host") else ""
    layer = f"-I{OPS / 'include'} {own} -isystem {_torch() / 'include'}"
    flags = {
        "ops": f"-O2 {STRICT} -DTORCH_TARGET_VERSION={TORCH_TARGET} -DON_CPU_LIBRARY={name} {timed} {layer} {system}",
        "host": f"-O2 {STRICT} -Wno-unknown-pragmas -I{OPS / 'no_launch'} {own}",
        "kernel": f"{CHECKED} {how} {own}",
        "runtime": f"-O2 {STRICT} {own}",
        "bindings": f"-O0 {STRICT} {own} {system}",
    }
    lines = []
    for rule, options in flags.items():
        lines += [f"rule {rule}", f"  command = g++ -MMD -MF $out.d {COMMON} {options} -x c++ -c $in -o $out"]
        lines += ["  depfile = $out.d", "  deps = gcc"]
    return [*lines, "rule link", "  command = g++ -shared -pthread -o $out $in $libs"]


def _run(folder: Path, file: str, *arguments: str) -> str:
    done = subprocess.run([_ninja(), "-C", folder, "-f", file, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the emulator does not compile\n{(done.stdout + done.stderr)[:MOST_OUTPUT]}")
    return done.stdout


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")
