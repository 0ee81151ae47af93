"""``python -m tests.cuda_primitives.gpu OUT``: runs the primitives on this machine's GPU and compares them with their
definitions. Writes ``OUT/primitives-<gpu>.npz``, which belongs into tests/golden. Needs torch, numpy and nvcc."""

from __future__ import annotations

import ctypes
import datetime
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from build_tools import toolchain

from . import golden
from .case import Case
from .cases import all_cases

ROOT = Path(__file__).resolve().parent.parent.parent
KERNELS = Path(__file__).resolve().parent / "kernels"
EVERYWHERE = ("gpu.cu", "registry.cpp", "tensor_numbers.cpp", "warp.cu", "convert.cu", "mma.cu")
FROM_SM_90 = ("stmatrix.cu", "mbarrier.cu", "tma.cu", "cluster.cu")
ON_SM_90A = ("wgmma.cu", "planes.cu", "conv.cu")
SECONDS_TO_START, SECONDS_A_CASE, MOST_PROCESSES = 60, 10, 8  # of those that run the cases


def levels(capability: tuple[int, int]) -> list[str]:
    """What of ``Case.needs`` a GPU has; sm_90a is Hopper's alone."""
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
        run([nvcc, *flags, "-Xcompiler", "-fPIC", "-c", source, "-o", object_])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, sources, objects))
    library = folder / "primitives.so"
    run([nvcc, "-shared", *objects, "-o", library])
    return library


def run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


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


def work(results: Connection, library: Path, names: list[str]) -> None:
    """Of a process of its own: sends each output, or the error after which its CUDA context is of no more use."""
    cases = {case.name: case for case in all_cases()}
    try:
        loaded = load_library(library)
        for name in names:
            results.send(run_case(loaded, cases[name]))
    except Exception as error:
        results.send(str(error))


def run_all(library: Path, names: list[str], worker: Callable = work) -> Iterator[tuple[str, np.ndarray | str]]:
    """Each name with its output, or with what went wrong. One that hangs or crashes costs its own primitive only."""
    context = multiprocessing.get_context("spawn")
    for _ in range(MOST_PROCESSES):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=worker, args=(theirs, library, names), daemon=True)
        process.start()
        theirs.close()
        limit = SECONDS_TO_START
        while names:
            try:
                result = ours.recv() if ours.poll(limit) else f"nothing after {limit} seconds"
            except EOFError:
                result = "the process died"
            yield names[0], result
            failed, names, limit = names[0].split("-")[0], names[1:], SECONDS_A_CASE
            if isinstance(result, str):
                break
        process.kill()
        process.join()
        if not names:
            return
        yield from ((name, "not run, as another case of it failed") for name in names if name.split("-")[0] == failed)
        names = [name for name in names if name.split("-")[0] != failed]
    yield from ((name, "not run, as too much failed before") for name in names)


def main(out: Path) -> int:
    toolkit, why = toolchain.find_toolkit(os.environ)
    if toolkit is None:
        print(f"no nvcc: {why}")
        return 1
    gpu, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    cases = {case.name: case for case in all_cases() if case.needs in levels(capability)}
    outputs, wrong = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        library = compile_library(toolkit.nvcc, capability, Path(folder))
        for name, result in run_all(library, list(cases)):
            failed = isinstance(result, str)
            if not failed:
                outputs[name] = result
            if problem := result if failed else cases[name].mismatch(result):
                wrong += 1
                print(f"{name}: {problem}", flush=True)
    about = f"{gpu}, {datetime.date.today()}, nvcc {toolkit.release}, torch {torch.__version__}"
    file = out / f"primitives-{re.sub(r'[^a-z0-9]+', '-', gpu.lower()).strip('-')}.npz"
    golden.save(file, about, outputs, cases)
    print(f"{about}: {len(cases) - wrong} of {len(cases)} cases are as defined; written to {file}")
    return 1 if wrong else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
