"""Identifies the sources that a library was compiled from, even without git."""

from __future__ import annotations

import hashlib
import runpy
import shutil
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ("csrc", "setup.py", "build_tools/ninja_file.py")


def digest(root: Path = ROOT, names: tuple[str, ...] = COMPILED) -> str:
    """Returns the SHA-256 of all source files of the libraries, or of ``names``, file names included."""
    h = hashlib.sha256()
    for name in names:
        path = root / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                h.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
                h.update(file.read_bytes())
    return h.hexdigest()


def git_commit(root: Path = ROOT) -> str | None:
    """The commit that is checked out, with "+" where files differ from it; None outside a checkout."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    result = subprocess.run(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    )
    return result.stdout.strip() or None


def built(root: Path = ROOT) -> tuple[str | None, str | None]:
    """The digest and the commit of the sources of the in-place libraries, where recorded."""
    info = _build_info(root)
    return info.get("SOURCE_DIGEST"), info.get("GIT_COMMIT")


def archs() -> tuple[str, ...]:
    """The GPUs that they were compiled for: "sm_90a", "ptx_80"."""
    found: tuple[str, ...] = _build_info(ROOT).get("CUDA_ARCHS", ())
    return found


def _build_info(root: Path) -> dict[str, Any]:
    file = root / "resnet_fused" / "_build_info.py"
    return runpy.run_path(str(file)) if file.exists() else {}  # importing the package would load the libraries
