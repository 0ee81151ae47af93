"""``python -m tests.cuda_primitives.gpu OUT``: runs the primitives on this machine's GPU and compares them with their
definitions. Writes ``OUT/primitives-<gpu>.npz``, which belongs in tests/golden. Needs torch, numpy and nvcc."""

from __future__ import annotations

import ctypes
import datetime
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from build_tools import toolchain
from resnet_fused.cli.verify.processes import Limits, Unit, run

from . import golden
from .case import Case
from .cases import all_cases

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = Path(__file__).resolve().parent / "kernels"
EVERYWHERE = ("gpu.cu", "registry.cpp", "tensor_numbers.cpp", "warp.cu", "convert.cu", "mma.cu")
FROM_SM_90 = ("stmatrix.cu", "mbarrier.cu", "tma.cu", "cluster.cu")
ON_SM_90A = ("wgmma.cu", "planes.cu", "conv.cu")
LIMITS, JOBS = Limits(start=60, case=10, total=300), 4


def levels(capability: tuple[int, int]) -> list[str]:
    """The values of ``Case.needs`` that a GPU supports; sm_90a is Hopper only."""
    found = ["sm_80"] if capability >= (8, 0) else []
    found += ["sm_90"] if capability >= (9, 0) else []
    return found + (["sm_90a"] if capability == (9, 0) else [])


def compile_library(nvcc: Path, capability: tuple[int, int], folder: Path) -> Path:
    has = levels(capability)
    names = [*EVERYWHERE, *(FROM_SM_90 if "sm_90" in has else ()), *(ON_SM_90A if "sm_90a" in has else ())]
    code = "{}{}".format(*capability) + ("a" if "sm_90a" in has else "")
    flags = ["-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", f"-gencode=arch=compute_{code},code=sm_{code}"]
    host = ("smem_grants.cpp", "tensor_map.cpp", "tensor_map_cache.cpp")
    sources = [*(KERNELS / name for name in names), *(ROOT / "csrc/cuda" / name for name in host)]
    objects = [folder / f"{source.name}.o" for source in sources]

    def compile_one(source: Path, object_: Path) -> None:
        command([nvcc, *flags, "-Xcompiler", "-fPIC", "-c", source, "-o", object_])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    library = folder / "primitives.so"
    command([nvcc, "-shared", *objects, "-o", library])
    return library


def command(words: list) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stdout}{done.stderr}")


def load_library(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    library.cuda_primitives_run.argtypes = [ctypes.c_char_p] + [ctypes.c_void_p] * 3 + [ctypes.c_size_t]
    return library


def run_case(library: ctypes.CDLL, case: Case) -> np.ndarray:
    output = case.empty_output()
    arrays = [output if b is None else b for b in case.buffers]
    tensors = [torch.from_numpy(a.reshape(-1).view(np.uint8)).cuda() for a in arrays]
    addresses = (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))
    numbers = (ctypes.c_int64 * max(1, len(case.numbers)))(*case.numbers)
    error = ctypes.create_string_buffer(1000)
    torch.cuda.synchronize()
    if library.cuda_primitives_run(case.primitive.encode(), addresses, numbers, error, len(error)):
        raise RuntimeError(error.value.decode())
    result = tensors[[b is None for b in case.buffers].index(True)].cpu().numpy()
    return result.view(output.dtype).reshape(output.shape)


def units(library: Path, folder: Path, capability: tuple[int, int]) -> list[Unit]:
    """One process per primitive, so that a hang or crash affects no other. Outputs are written to ``folder``."""
    of: dict[str, list[dict[str, Any]]] = {}
    for case in all_cases():
        if case.needs in levels(capability):
            of.setdefault(case.primitive, []).append({"case": case.name})
    options = {"library": str(library), "folder": str(folder)}
    return [Unit(f"primitive {name}", f"{__name__}:run_cases", tuple(cases), options) for name, cases in of.items()]


def run_cases(options: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    cases = {case.name: case for case in all_cases()}
    loaded, folder = load_library(Path(options["library"])), Path(options["folder"])

    def run_one(of: dict[str, Any]) -> dict[str, Any]:
        case = cases[of["case"]]
        output = run_case(loaded, case)
        np.save(folder / f"{case.name}.npy", output)
        why = case.mismatch(output)
        return {"status": "wrong", "why": why} if why else {"status": "pass"}

    return run_one


def save_golden(folder: Path, out: Path, gpu: str, about: str) -> Path:
    """Collects the GPU's outputs in one golden file."""
    cases = {case.name: case for case in all_cases()}
    outputs = {name: np.load(file) for name in cases if (file := folder / f"{name}.npy").exists()}
    file = out / f"primitives-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.npz"
    golden.save(file, f"{gpu}, {datetime.date.today()}, {about}, torch {torch.__version__}", outputs, cases)
    return file


def main(out: Path) -> int:
    toolkit, why = toolchain.find_toolkit(os.environ)
    if toolkit is None:
        print(f"no nvcc: {why}")
        return 1
    # This process initialises CUDA, so it must spawn the others instead of forking.
    gpu, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = compile_library(toolkit.nvcc, capability, folder)
        results = run(units(library, folder, capability), folder / "processes", LIMITS, JOBS, fork=False)
        file = save_golden(folder, out, gpu, f"nvcc {toolkit.release}")
    bad = [r for r in results if r["status"] != "pass"]
    for r in bad:
        print(f"{r['case']}: {r['status']}: {r['why']}")
    print(f"{gpu}: {len(results) - len(bad)} of {len(results)} cases are as defined; written to {file}")
    return 1 if bad else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
