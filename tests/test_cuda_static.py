"""What the compilers say of the CUDA kernels, for every architecture that is shipped. Needs nvcc, and no GPU."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
from pathlib import Path
from typing import NamedTuple

import cuda_on_cpu
import pytest

from build_tools import archs, toolchain

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
EMULATOR = ROOT / "tests" / "cuda_on_cpu" / "include" / "cuda"
SOURCES = sorted(CUDA.rglob("*.cu"))


class Compiled(NamedTuple):
    labels: list[str]  # sm_80, ...
    fatbins: dict[str, Path]  # by the source's stem
    log: str  # of ptxas, all sources


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    toolkit, why = toolchain.find_toolkit(os.environ)
    if toolkit is None:
        pytest.skip(f"no CUDA toolkit: {why}")
    wanted = [a for a in archs.choose(None, toolchain.known_archs(toolkit.nvcc), toolkit.version) if not a.ptx]
    folder, logs = tmp_path_factory.mktemp("fatbin"), []
    for source in SOURCES:
        command = [
            toolkit.nvcc,
            "-fatbin",
            "-std=c++17",
            "-O3",
            f"-I{ROOT / 'csrc'}",
            "-Xptxas",
            "-v",
            "--threads",
            "2",
        ]
        command += [*(a.flag for a in wanted), source, "-o", folder / f"{source.stem}.fatbin"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        logs.append(done.stderr)
    fatbins = {source.stem: folder / f"{source.stem}.fatbin" for source in SOURCES}
    return Compiled([a.label for a in wanted], fatbins, "".join(logs))


def test_no_spills_and_no_stack(compiled):
    entries = re.findall(r"Compiling entry function '(\w+)' for '(\w+)'", compiled.log)
    assert {label for _, label in entries} == set(compiled.labels)
    per_arch = [{name for name, label in entries if label == arch} for arch in compiled.labels]
    assert all(names == per_arch[0] for names in per_arch)
    usage = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", compiled.log)
    assert len(usage) >= len(entries)
    assert set(usage) == {("0", "0", "0")}


def test_registers_leave_room_to_hide_latency(compiled):
    """Two blocks of 256 threads an SM at least: 64 KiB of loads in flight, past what 4.3 TB/s needs."""
    used = [int(n) for n in re.findall(r"Used (\d+) registers", compiled.log)]
    assert used
    assert max(used) <= 128


def test_the_menu_is_what_the_gpu_gets(compiled):
    if reason := cuda_on_cpu.missing():
        pytest.skip(f"the kernel emulator, which lists the menu, needs a compiler: {reason}")
    menu = {(d, v, 0 if nhwc else 1, s) for d, v, nhwc, s in cuda_on_cpu.load().compiled_bn_add_act()}
    names = set(re.findall(r"Compiling entry function '(\w*bn_add_act_kernel\w*)'", compiled.log))
    assert {variant_of(name) for name in names} == menu
    assert len(names) == len(menu)


def variant_of(mangled: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.search(r"DtypeE(\d)ELi(\d)E.*LayoutE(\d)E.*ShortcutE(\d)E", mangled).groups())


def disassembler() -> dict[str, str] | None:
    """An environment whose PATH has cuobjdump and nvdisasm: the toolkit's, ours, or those of PyPI's packages."""
    toolkit, _ = toolchain.find_toolkit(os.environ)
    places = [toolkit.include.parent / "bin"] if toolkit else []
    places += [p for s in site.getsitepackages() for p in Path(s).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    found = all(shutil.which(tool, path=path) for tool in ("cuobjdump", "nvdisasm"))
    return {**os.environ, "PATH": path} if found else None


def test_vectorised_kernels_move_16_bytes_a_thread(compiled):
    environment = disassembler()
    if environment is None:
        pytest.skip("no cuobjdump or nvdisasm: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    for label in compiled.labels:
        tool = shutil.which("cuobjdump", path=environment["PATH"])
        command = [tool, "-arch", label, "-sass", compiled.fatbins["bn_add_act"]]
        sass = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        kernels = re.split(r"\n\s*Function : ", sass)[1:]
        assert kernels
        for text in kernels:
            name = text.split("\n", 1)[0]
            _, vector, _, shortcut = variant_of(name)
            stores = re.findall(r"\bSTG\.E(\S*)", text)
            wide_loads = re.findall(r"\bLDG\.E\S*\.128\S*", text)
            if vector == 1:
                assert not wide_loads, name
                continue
            assert stores, name
            assert all(".128" in s for s in stores), f"{name}: stores {stores}"
            # 4 accesses a thread in flight and 1 in the remainder's loop, of x and of the shortcut
            assert len(wide_loads) == 5 * (1 if shortcut == 0 else 2), f"{name}: loads {wide_loads}"
            assert "STL" not in text, f"{name}: local memory"
            assert "LDL" not in text, f"{name}: local memory"


def declarations(path: Path) -> set[str]:
    """Signatures of the namespace's __device__ functions, one line each."""
    text = path.read_text()
    found = re.findall(r"__device__ __forceinline__ (\w+ \w+\([^{;]*\)) \{", text)
    return {" ".join(f.split()) for f in found}


@pytest.mark.parametrize("twin", sorted(p.name for p in (CUDA / "ptx").glob("*.cuh")))
def test_every_instruction_has_an_emulated_twin(twin):
    ours, theirs = declarations(CUDA / "ptx" / twin), declarations(EMULATOR / "ptx" / twin)
    assert ours
    assert ours == theirs


def test_kernel_sources_are_free_of_the_cuda_runtime():
    """Kernels include our own headers only, launch through LAUNCH, and keep assembly below ptx/."""
    for path in [*CUDA.rglob("*.cuh"), *CUDA.rglob("*.cu"), CUDA / "kernels.h"]:
        text = path.read_text()
        for include in re.findall(r'#include ([<"][^>"]+[>"])', text):
            assert include.startswith('"cuda/') or include in ("<cstdint>", "<stdexcept>", "<vector>"), (
                f"{path}: {include}"
            )
        assert "<<<" not in text, path
        assert "asm" not in text or path.parent.name == "ptx", path
