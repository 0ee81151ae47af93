"""Compiles the emulator and its libraries with one ninja file, one object per source.

``build/cuda_on_cpu`` has the emulator (a Python module), the kernel libraries (libraries.py), those of tests (``own``),
the op layer twice (op_layer.py), and a folder for each mutation.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .libraries import CHECKS, HERE, LIBRARIES, PRIMITIVES, ROOT, SOURCES, Own

BUILD = ROOT / "build" / "cuda_on_cpu"
EMULATOR = BUILD / f"emulator{sysconfig.get_config_var('EXT_SUFFIX')}"
OPS = HERE / "ops"
CSRC = ROOT / "csrc"
#: Sources of csrc that kernel launchers need. Compiled into the emulator, so that all libraries share the cache.
HOST = [CSRC / "cuda" / "runtime" / "tensor_map_cache.cpp"]
#: Files of csrc/cuda left out of the op layer: they query a GPU or hold the trust table, and ops/ has doubles, or the
#: emulator already has them (``HOST``).
DOUBLED = {"device", "tensor_map", "trust_table", "tensor_map_cache"}
_CUDA = "_ZN12resnet_fused4cuda"
#: Functions that each file of ops/ wraps (mangled names).
WRAPPED = {
    "faults": (
        f"{_CUDA}15launch_conv_fwdERKNS0_13ConvFwdParamsERKNS0_14ConvFwdVariantERKNS0_5QueueE",
        f"{_CUDA}16launch_conv_sm90ERKNS0_13ConvFwdParamsERKNS0_14ConvFwdVariantERKNS0_5QueueE",
        f"{_CUDA}17launch_bn_add_actERKNS0_14BnAddActParamsERKNS0_5QueueE",
        f"{_CUDA}15launch_bn_statsERKNS0_13BnStatsParamsERKNS0_5QueueE",
    ),
    "allocations": ("torch_call_dispatcher", "aoti_torch_empty_strided"),
    "news": ("_Znwm",),
}

TORCH_TARGET = "0x020a000000000000ULL"  # as in build_tools/ninja_file.py
MOST_OUTPUT = 6000  # characters of compiler output in an error message

# gnu_unique symbols would merge a mutation's variables with those of other libraries and prevent unloading.
COMMON = "-std=c++17 -fPIC -fno-gnu-unique -ffp-contract=off"
STRICT = "-Wall -Wextra -Werror"
# -fsanitize makes every plain access call a hook of runtime/hooks.cpp. Without sibling calls, return addresses name the
# line for reports. Thread-safe statics would need hooks for atomics; only host code has static variables.
# A fiber has 256 KiB of stack, so the kernel rule below also limits frames.
CHECKED = (
    "-g1 -fsanitize=thread,alignment --param tsan-instrument-func-entry-exit=0 -fno-optimize-sibling-calls"
    " -fno-threadsafe-statics -Wno-unknown-pragmas -Wno-psabi"
)
# Standard headers that kernels include, precompiled.
PRECOMPILED = HERE / "include" / "precompiled.h"


class Mutant(NamedTuple):
    """A copy of a source file with a bug in it, and the libraries that have the bug."""

    folder: Path  # has the objects; the copy is below include/
    sources: tuple[Path, ...]  # compiled with the copy
    libraries: tuple[str, ...]
    variants: str
    own: Own | None = None  # the test's library, if the bug is not in csrc

    def library(self, name: str) -> Path:
        return self.folder / f"{name}.so"


def missing() -> str | None:
    """The reason why the emulator cannot be built here, or None."""
    for tool in ("g++", "addr2line"):
        if not shutil.which(tool):
            return f"{tool} is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None if _ninja() else "ninja is not installed"


def library(name: str) -> Path:
    return BUILD / "libraries" / f"{name}.so"


def build(targets: Iterable[Path], mutant: Iterable[Mutant] = ()) -> None:
    """Builds out-of-date targets with ninja, one compiler per core. A lock makes other processes wait."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with _locked():
        file = BUILD / "build.ninja"
        file.write_text(
            "\n".join([*_rules(), *_everything(), *_own(CHECKS), *_own(PRIMITIVES), *_mutant(mutant)]) + "\n"
        )
        arguments = ["-C", str(ROOT), "-f", str(file), *(str(t) for t in targets)]
        done = subprocess.run([_ninja(), *arguments], capture_output=True, text=True)
    if done.returncode:
        said = done.stdout + done.stderr
        said = said[max(said.find("FAILED:"), 0) :]
        raise RuntimeError(f"the emulator does not compile\n{said[:MOST_OUTPUT]}")


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _torch() -> Path:
    return Path(importlib.util.find_spec("torch").origin).parent


def _rules() -> list[str]:
    import pybind11

    # The emulator's include folder shadows csrc/cuda/runtime/launch.h and device/ptx; a mutant copy shadows both.
    own = f"-I{HERE / 'include'} -I{HERE} -I{CSRC}"
    python = f"-isystem {pybind11.get_include()} -isystem {sysconfig.get_paths()['include']}"
    layer = f"-I{OPS / 'include'} {own} -isystem {_torch() / 'include'} -DTORCH_TARGET_VERSION={TORCH_TARGET}"
    hidden = "-fvisibility=hidden"
    rules = {  # $more: flags of one file
        "runtime": f"-O2 {STRICT} {own}",  # visible: kernel libraries call it
        "module": f"-O0 {STRICT} {hidden} {own} {python}",
        "bindings": f"-O0 {STRICT} {hidden} $more {own}",
        "kernel": f"-O1 {CHECKED} {STRICT} -Wframe-larger-than=65536 {hidden} $more {own}",
        # A mutation runs briefly, so compile time dominates (-O0), and it may leave a variable unused (-w).
        "mutant": f"-O0 {CHECKED} -w {hidden} $more {own}",
        # Host code, compiled as for a GPU: optimised, without checks.
        "ops": f"-O2 {STRICT} {hidden} $more {layer}",
        "host": f"-O2 {STRICT} -Wno-unknown-pragmas {hidden} -I{OPS / 'no_launch'} {own}",
    }
    lines = [f"builddir = {BUILD}"]
    for rule, flags in rules.items():
        lines += [f"rule {rule}", f"  command = g++ -MMD -MF $out.d {COMMON} {flags} -x c++ -c $in -o $out"]
        lines += ["  depfile = $out.d"]
    for rule in ("kernel", "mutant"):
        lines += [f"rule {rule}_header", f"  command = g++ {COMMON} {rules[rule]} -x c++-header $in -o $out"]
    return [*lines, "rule link", "  command = g++ -shared -pthread -o $out $in $libs"]


def _compile(rule: str, source: Path, folder: Path, **variables: str) -> tuple[Path, list[str]]:
    built = folder / f"{rule}_{source.stem}.o"
    header = f" | {_header(rule)}" if rule in ("kernel", "mutant") else ""
    if header:
        variables["more"] = f"{variables.get('more', '')} -include {_header(rule).with_suffix('')}"
    return built, [f"build {built}: {rule} {source}{header}", *(f"  {k} = {v}" for k, v in variables.items())]


def _header(rule: str) -> Path:
    return BUILD / "precompiled" / f"{rule}.h.gch"


def _link(target: Path, objects: Iterable[Path], libs: str = "") -> list[str]:
    return [f"build {target}: link {' '.join(map(str, objects))} | {EMULATOR}", f"  libs = {EMULATOR} {libs}"]


def _bindings() -> list[Path]:
    return [f for f in sorted((HERE / "bindings").glob("*.cpp")) if f.stem not in ("module", "session", "library")]


def _everything() -> list[str]:
    """Build statements of the emulator, the kernel libraries and both op layers."""
    lines: list[str] = []

    def compiled(rule: str, sources: Iterable[Path], folder: str, **variables: str) -> list[Path]:
        objects = []
        for source in sources:
            built, of_object = _compile(rule, source, BUILD / folder, **variables)
            lines.extend(of_object)
            objects.append(built)
        return objects

    for rule in ("kernel", "mutant"):
        lines.append(f"build {_header(rule)}: {rule}_header {PRECOMPILED}")
    emulator = compiled("runtime", [*sorted((HERE / "runtime").glob("*.cpp")), *HOST], "emulator")
    emulator += compiled("runtime", [HERE / "bindings" / "session.cpp"], "emulator/bindings")
    emulator += compiled("module", [HERE / "bindings" / "module.cpp"], "emulator")
    lines += [f"build {EMULATOR}: link {' '.join(map(str, emulator))}"]

    functions = compiled("bindings", [HERE / "bindings" / "library.cpp"], "libraries")
    bindings = compiled("bindings", _bindings(), "libraries")
    kernels = dict(zip(SOURCES, compiled("kernel", SOURCES.values(), "libraries"), strict=True))
    for name, stems in LIBRARIES.items():
        lines += _link(library(name), [*(kernels[s] for s in stems), *bindings, *functions])

    files = [CSRC / "library.cpp", CSRC / "explain_cuda.cpp", *sorted((CSRC / "common").glob("*.cpp"))]
    files += [f for f in sorted((CSRC / "cuda").rglob("*.cpp")) if f.stem not in DOUBLED]
    layer = compiled("ops", [*files, OPS / "device.cpp", OPS / "bindings.cpp"], "ops")
    host = compiled("host", SOURCES.values(), "ops")
    twins = {
        "op_layer": (list(kernels.values()), ["faults", "allocations", "variants"]),
        "op_host": (host, ["news", "parts"]),
    }
    for name, (launchers, beside) in twins.items():
        named = compiled("ops", [OPS / "name.cpp"], name, more=f"-DON_CPU_LIBRARY={OP_LIBRARIES[name]}")
        doubles = compiled("ops", [OPS / f"{stem}.cpp" for stem in beside], "ops")
        wrapped = " ".join(f"-Wl,--wrap={f}" for stem in beside for f in WRAPPED.get(stem, ()))
        libs = f"{wrapped} -L{_torch() / 'lib'} -ltorch_cpu"
        lines += _link(library(name), [*layer, *named, *doubles, *launchers, *functions], libs)
    return lines


#: torch namespaces of the two op layers.
OP_LIBRARIES = {"op_layer": "resnet_fused_on_cpu", "op_host": "resnet_fused_on_host"}


def _own(own: Own) -> list[str]:
    lines, objects = [], []
    more = " ".join(f"-I{p}" for p in own.include)
    for rule, sources in (("kernel", own.kernels), ("bindings", own.bindings)):
        for source in sources:
            built, of_object = _compile(rule, source, BUILD / own.name, more=more)
            lines += of_object
            objects.append(built)
    return [*lines, *_link(library(own.name), [*objects, BUILD / "libraries" / "bindings_library.o"])]


def _mutant(mutant: Iterable[Mutant]) -> list[str]:
    lines = []
    for p in mutant:
        include = [p.folder / "include", *(p.own.include if p.own else ())]
        more = " ".join(f"-I{path}" for path in include) + f" '-DCOMPILES(v)=({p.variants})'"
        ours = {}
        for source in p.sources:
            ours[source.stem], of_object = _compile("mutant", source, p.folder, more=more)
            lines += of_object
        for name in p.libraries:
            if p.own:
                folder, stems, bindings = BUILD / p.own.name, [s.stem for s in p.own.kernels], p.own.bindings
            else:
                folder, stems, bindings = BUILD / "libraries", LIBRARIES[name], _bindings()
            kernels = [ours.get(s, folder / f"kernel_{s}.o") for s in stems]
            functions = [
                *(folder / f"bindings_{b.stem}.o" for b in bindings),
                BUILD / "libraries" / "bindings_library.o",
            ]
            lines += _link(p.library(name), [*kernels, *functions])
    return lines


def _ninja() -> str | None:
    beside = Path(sys.executable).parent / "ninja"
    return str(beside) if beside.exists() else shutil.which("ninja")
