"""Reads the machine code of compiled kernels, without a GPU."""

from __future__ import annotations

import fcntl
import functools
import gzip
import hashlib
import os
import re
import shutil
import site
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from support import ROOT, require_compiler

from build_tools import toolchain

CACHE = ROOT / "build" / "sass"


class Kernel(NamedTuple):
    arch: str  # sm_80
    name: str  # mangled
    registers: int
    stack: int  # bytes, including spilled registers
    local: int


def toolkit() -> toolchain.Toolkit:
    """Returns the CUDA toolkit. Skips the test without one, or without a host compiler, which nvcc needs."""
    found, why = toolchain.find_toolkit(os.environ)
    if found is None:
        pytest.skip(f"no CUDA toolkit: {why}")
    require_compiler()
    return found


@functools.cache
def disassembler() -> dict[str, str] | None:
    """Returns an environment with cuobjdump and nvdisasm on PATH, or None.

    They come from the toolkit, the packages of NVIDIA on PyPI, or the present PATH.
    """
    found, _ = toolchain.find_toolkit(os.environ)
    places = [found.include.parent / "bin"] if found else []
    places += [p for s in site.getsitepackages() for p in Path(s).glob("nvidia/cu*/bin")]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    complete = all(shutil.which(tool, path=path) for tool in ("cuobjdump", "nvdisasm"))
    return {**os.environ, "PATH": path} if complete else None


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def cuobjdump(file: Path, *options: str) -> str:
    """Returns cuobjdump's output, cached in ``build/sass``: disassembling the library takes a minute."""
    environment = disassembler()
    assert environment is not None, "ask disassembler() first"
    CACHE.mkdir(parents=True, exist_ok=True)
    name = f"{file.name}{''.join(options)}"
    cached = CACHE / f"{name}-{digest_of(file)}.gz"
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if cached.exists():
            return gzip.decompress(cached.read_bytes()).decode()
        for earlier in CACHE.glob(f"{name}-*.gz"):
            earlier.unlink()
        command = [shutil.which("cuobjdump", path=environment["PATH"]), *options, file]
        text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        if digest_of(file) not in cached.name:  # the library was rebuilt meanwhile
            return text
        new = cached.with_suffix(".new")
        new.write_bytes(gzip.compress(text.encode(), 1))
        new.replace(cached)
        return text


@functools.cache
def kernels(file: Path) -> list[Kernel]:
    """Returns every kernel of every architecture in the file."""
    found, arch = [], ""
    for line in cuobjdump(file, "-res-usage").splitlines():
        if match := re.match(r"arch = (sm_\w+)", line):
            arch = match[1]
        elif match := re.match(r" Function (\w+):", line):
            name = match[1]
        elif match := re.match(r"\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", line):
            found.append(Kernel(arch, name, *map(int, match.groups())))
    return found


def listings(file: Path, arch: str) -> dict[str, str]:
    """Returns the disassembly of each kernel for one architecture, by mangled name."""
    functions = re.split(r"\n\s*Function : ", cuobjdump(file, "-arch", arch, "-sass"))[1:]
    return {text.split("\n", 1)[0].strip(): text for text in functions}


@functools.cache
def code(file: Path, arch: str) -> dict[str, list[str]]:
    """Returns each kernel's opcodes with their modifiers, in order, such as ``HMMA.16816.F32.BF16``."""
    opcode = re.compile(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P[T\d]+ )?([A-Z][A-Z0-9_.x]+)")
    return {name: opcode.findall(text) for name, text in listings(file, arch).items()}
