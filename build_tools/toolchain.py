"""Finds what the build needs: torch, compilers, ninja, and a CUDA toolkit. Imports no torch: that takes seconds."""

import importlib.util
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import BuildError

OLDEST_TORCH = (2, 10)
PYPI_TOOLKIT = "requirements/cuda.txt"
COMPILERS = {"CXX": "g++", "CC": "gcc"}


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str

    @property
    def has_cuda(self) -> bool:
        return (self.root / "lib/libtorch_cuda.so").exists()


@dataclass(frozen=True)
class Toolkit:
    nvcc: Path
    include: Path
    cudart: Path  # libcudart_static.a
    version: tuple[int, int]
    release: str  # "13.0.88"


def find_torch() -> Torch:
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"torch is not importable from {sys.executable}; run '{sys.executable} -m pip install \"torch>=2.10\"' "
            "first, and build with --no-build-isolation."
        )
    root = Path(spec.submodule_search_locations[0])
    version = runpy.run_path(str(root / "version.py"))["__version__"]
    if tuple(int(n) for n in re.findall(r"\d+", version)[:2]) < OLDEST_TORCH:
        raise BuildError(
            f"torch {version} is too old: resnet_fused builds on the stable ABI of 2.10; "
            f"run '{sys.executable} -m pip install \"torch>=2.10\"'."
        )
    return Torch(root, version)


def compiler(variable: str) -> str:
    """Returns the compiler in ``CC`` or ``CXX``, a single program, because nvcc needs it too."""
    return os.environ.get(variable) or COMPILERS[variable]


def missing_compiler() -> str | None:
    return next((name for name in map(compiler, COMPILERS) if shutil.which(name) is None), None)


def find_compiler(variable: str) -> str:
    command = compiler(variable)
    if shutil.which(command) is None:
        raise BuildError(f"no compiler {command!r} on PATH; install g++ 10 or newer, or name yours in {variable}.")
    return command


def find_python_headers() -> Path:
    include = Path(sysconfig.get_paths()["include"])
    if not (include / "Python.h").exists():
        raise BuildError(
            f"{sys.executable} has no Python.h in {include}; install its headers (python3-dev), or use another python."
        )
    return include


def find_ninja() -> str:
    # Next to the interpreter first, because a virtual environment that is not activated is not on PATH.
    ninja = shutil.which("ninja", path=str(Path(sys.executable).parent)) or shutil.which("ninja")
    if ninja is None:
        raise BuildError(f"ninja is not installed; run '{sys.executable} -m pip install ninja'.")
    return ninja


def find_toolkit(
    environ: Mapping[str, str], default: Path = Path("/usr/local/cuda"), packages: list[str] | None = None
) -> tuple[Toolkit | None, str]:
    """The first usable toolkit, and a sentence on where it is or why there is none.

    If ``CUDA_HOME`` (or ``CUDA_PATH``) is set, nothing else is tried.
    """
    reasons = []
    for place, nvcc in _candidates(environ, default, packages):
        found = inspect_nvcc(nvcc)
        if isinstance(found, Toolkit):
            return found, f"{place}: nvcc {found.release}"
        reasons.append(f"{place}: {found}")
    return None, "; ".join(reasons)


def _candidates(environ: Mapping[str, str], default: Path, packages: list[str] | None) -> Iterator[tuple[str, Path]]:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(variable):
            yield f"{variable}={environ[variable]}", Path(environ[variable]) / "bin/nvcc"
            return
    on_path = shutil.which("nvcc", path=environ.get("PATH", ""))
    yield "PATH", Path(on_path) if on_path else Path("nvcc")
    yield str(default), default / "bin/nvcc"
    if packages is None:
        packages = [*site.getsitepackages(), site.getusersitepackages(), *sys.path]
    for folder in dict.fromkeys(packages):
        for nvcc in sorted(Path(folder or ".").glob("nvidia/cu[0-9]*/bin/nvcc"), reverse=True):
            yield "the nvidia-cuda-nvcc package", nvcc


def inspect_nvcc(nvcc: Path) -> Toolkit | str:
    """Returns the toolkit of this nvcc, even if it is a wrapper script, or why it is unusable."""
    if not nvcc.is_file():
        return "no nvcc there"
    try:
        # Only nvcc itself knows its root: the file on PATH may be a link or a script.
        dry = _output([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
        about = _output([str(nvcc), "--version"])
    except OSError as error:
        return f"{nvcc} does not run ({error.strerror})"
    top = re.search(r"^#\$ TOP=(.+)$", dry, re.M)
    release = re.search(r"release [\d.]+, V(\d+)\.(\d+)\.(\d+)", about)
    if top is None or release is None:
        return f"{nvcc} does not work as a compiler (try '{nvcc} --dryrun -x cu -c /dev/null')"
    root = Path(top[1].strip()).resolve()
    include = root / "include"
    if not (include / "cuda_runtime.h").exists():
        return f"{root} has no include/cuda_runtime.h (is the CUDA runtime's development package installed?)"
    for lib in ("lib64", "lib", *(str(p.relative_to(root)) for p in root.glob("targets/*/lib"))):
        cudart = root / lib / "libcudart_static.a"
        if cudart.exists():
            major, minor, patch = release.groups()
            return Toolkit(nvcc, include, cudart, (int(major), int(minor)), f"{major}.{minor}.{patch}")
    return f"{root} has no libcudart_static.a (is the CUDA runtime's development package installed?)"


def known_archs(nvcc: Path) -> list[int]:
    """The architectures, as 80 for 8.0, that this nvcc compiles for."""
    return sorted({int(n) for n in re.findall(r"sm_(\d+)", _output([str(nvcc), "--list-gpu-code"]))})


def gpus() -> list[str]:
    """The compute capabilities of this machine's GPUs, each once, as the driver names them: "9.0"."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if shutil.which(query[0]) is None and Path("/proc/driver/nvidia/gpus").exists():  # a container without nvidia-smi
        listed = "'{}.{}'.format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())"
        query = [sys.executable, "-c", f"import torch; print(*({listed}))"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return list(dict.fromkeys(re.findall(r"\d+\.\d", text)))


def _output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def choose_toolkit(environ: Mapping[str, str]) -> tuple[Toolkit | None, str]:
    """The toolkit for ``_C_cuda`` according to ``RESNET_FUSED_CUDA``, or why CUDA is left out."""
    wish = environ.get("RESNET_FUSED_CUDA") or "auto"
    if wish not in ("auto", "0", "1"):
        raise BuildError(f"RESNET_FUSED_CUDA={wish!r} is none of auto, 0 and 1; set one of them, or unset it for auto.")
    if wish == "0":
        return None, "RESNET_FUSED_CUDA=0"
    toolkit, why = find_toolkit(environ)
    if toolkit is None and wish == "1":
        raise BuildError(
            f"RESNET_FUSED_CUDA=1 but no usable nvcc ({why}); set CUDA_HOME to a CUDA toolkit, or run "
            f"'{sys.executable} -m pip install -r {PYPI_TOOLKIT}'."
        )
    return toolkit, why if toolkit else f"no usable nvcc ({why})"


if __name__ == "__main__":  # for the Makefile: exit status 0 if there is a toolkit
    found, words = find_toolkit(os.environ)
    print(words)
    sys.exit(0 if found else 1)
