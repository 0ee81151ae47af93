"""Machine code of the primitives: the expected instructions, and no spills. Needs no GPU."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import sass
from cuda_primitives import gpu
from cuda_primitives.cases import WIDTHS
from support import shared_folder

from build_tools import command

SOURCES = {
    "sm_80": [name for name in gpu.EVERYWHERE if name.endswith(".cu") and name != "gpu.cu"],
    "sm_90a": [*gpu.FROM_SM_90, *gpu.ON_SM_90A],
}
# Regular expressions that the machine code of each source must match.
INSTRUCTIONS = {
    "warp.cu": [r"LDSM\.16\.M88\.4", r"LDSM\.16\.MT88\.4", r"LDGSTS\.E\.BYPASS\.128", r"SHFL\.BFLY", r"SHFL\.IDX"],
    "mma.cu": [r"HMMA\.16816\.F32 ", r"HMMA\.16816\.F32\.BF16", r"HMMA\.1688\.F32\.TF32"],
    "convert.cu": [
        r"F2FP\.BF16\.PACK_AB",
        r"F2FP\.PACK_AB",
        r"F2FP\.RELU\.PACK_AB",
        r"F2FP\.RELU\.BF16\.PACK_AB",
        r"F2F\.F16\.F32",
        r"F2F\.BF16\.F32",
        r"HADD2\.F32",
    ],
    "stmatrix.cu": [r"STSM\.16\.M88\.4", r"STSM\.16\.MT88\.4"],
    "mbarrier.cu": [r"SYNCS\.EXCH\.64", r"SYNCS\.ARRIVE", r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT", r"SYNCS\.CCTL\.IV"],
    "tma.cu": [
        *(rf"UTMALDG\.{rank}D \[" for rank in (2, 3, 4)),
        r"UTMALDG\.4D\.IM2COL",
        *(rf"UTMASTG\.{rank}D" for rank in (2, 3, 4)),
        "ELECT",
        r"FENCE\.VIEW\.ASYNC",
        "ACQBULK",
    ],
    "cluster.cu": [r"UTMALDG\.2D\.MULTICAST", "UCGABAR_ARV", "UCGABAR_WAIT", r"SYNCS\.ARRIVE\.TRANS64\.RED"],
    "planes.cu": [r"HGMMA\.64x96x16\.F32\.BF16"],
    "wgmma.cu": [r"HGMMA\.64x64x16\.F32 ", *(rf"HGMMA\.64x{n}x16\.F32\.BF16" for n in WIDTHS)],
    "conv.cu": [r"HGMMA\.64x64x16\.F32\.BF16", r"UTMALDG\.4D\.IM2COL", r"UTMASTG\.2D", "STSM", r"USETMAXREG\.DEALLOC"],
}


class Compiled(NamedTuple):
    fatbin: Path
    log: str  # of ptxas


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[tuple[str, str], Compiled]:
    toolkit = sass.toolkit()

    def compile_one(folder: Path, arch: str, source: str) -> Compiled:
        fatbin, log = (folder / f"{source}.{arch}.{kind}" for kind in ("fatbin", "log"))
        if log.exists():
            return Compiled(fatbin, log.read_text())
        code = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
        nvcc = [toolkit.nvcc, "-fatbin", "-std=c++17", "-O3", f"-I{gpu.ROOT / 'csrc'}", "-Xptxas", "-v", code]
        done = subprocess.run([*nvcc, gpu.KERNELS / source, "-o", fatbin], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        log.write_text(done.stderr)
        return Compiled(fatbin, done.stderr)

    with shared_folder(tmp_path_factory, "primitives") as folder, ThreadPoolExecutor(command.jobs()) as pool:
        keys = [(arch, name) for arch, names in SOURCES.items() for name in names]
        compiled = {key: pool.submit(compile_one, folder, *key) for key in keys}
        return {key: job.result() for key, job in compiled.items()}


def test_ptxas_neither_spills_nor_serialises(compiled):
    """Warnings C7508 to C7514 mean that ptxas ignored setmaxnreg or serialised wgmma."""
    for key, (_, log) in compiled.items():
        frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert frames and set(frames) == {("0", "0", "0")}, key
        assert not re.findall(r"C75(?:0[89]|1[0-4])|warning", log), log


@pytest.mark.skipif(sass.disassembler() is None, reason="no cuobjdump or nvdisasm")
def test_every_instruction_is_in_the_machine_code(compiled):
    for (arch, source), (fatbin, _) in compiled.items():
        listing = "\n".join(sass.listings(fatbin, arch).values())
        missing = [i for i in INSTRUCTIONS[source] if not re.search(i, listing)]
        assert not missing, f"{source} on {arch}"
