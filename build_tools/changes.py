"""Selects what ``.ci/run`` checks, from the changes since main (the last green state).

``python -m build_tools.changes mutations`` prints the argument of pytest's ``--mutations``: the kernel families
with changed sources or tests, and a sample of the others; "all" if the emulator changed or the changes are unknown.
``python -m build_tools.changes sanitizers`` prints "yes" if their sources may have changed, else "no".
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from .sources import ROOT

PRIMITIVES = "primitives"
# Family -> its sources. Files that they include count too.
FAMILIES = {
    **{name: f"csrc/cuda/kernels/{name}" for name in ("sm80", "sm90", "bn", "pool")},
    "tile": "csrc/cuda/device/tile",
    PRIMITIVES: "tests/cuda_primitives/kernels",
}
# Files that every mutation depends on.
EMULATOR = (
    "tests/cuda_on_cpu/", "tests/cuda_cases/", "tests/mutation.py", "tests/criterion.py", "tests/support.py",
    "tests/conftest.py", "resnet_fused/criterion.py", "resnet_fused/reference/", "requirements/dev.txt",
    "csrc/cuda/runtime/tensor_map_cache.cpp", "csrc/cuda/runtime/cache.h", "csrc/cuda/runtime/tensor_map.h",
    "csrc/cuda/device/types.h",
)  # fmt: skip
SANITIZED = (
    "Makefile", "setup.py", "build_tools/", "csrc/common/", "csrc/compat/", "csrc/cpu/", "tests/avx512_on_avx2/",
    "tests/emulated_amx/", "tests/fuzz/",
)  # fmt: skip


def since_last_green(root: Path = ROOT) -> list[str] | None:
    """The files that differ from the merge base with main; None if unknown, as on main itself."""
    head = _git(root, "rev-parse", "HEAD")
    base = _git(root, "merge-base", "HEAD", "origin/main") or _git(root, "merge-base", "HEAD", "main")
    listed = _git(root, "diff", "--name-only", "--no-renames", base) if base and base != head else None
    return None if listed is None else listed.splitlines()


def mutations(changed: Iterable[str] | None, root: Path = ROOT) -> str:
    changed = None if changed is None else list(changed)
    if changed is None or any(file.startswith(EMULATOR) for file in changed):
        return "all"
    sources = {family: _with_includes(root, root / folder) for family, folder in FAMILIES.items()}
    found: set[str] = set()
    for file in changed:
        found |= {
            family for family, folder in FAMILIES.items() if file.startswith(f"{folder}/") or file in sources[family]
        }
        if file.startswith("tests/cuda_primitives/"):
            found.add(PRIMITIVES)
        if re.match(r"tests/test_\w+\.py$", file) and (root / file).exists():
            found |= _families_of_test((root / file).read_text())
        elif file.startswith("tests/test_cuda_"):  # deleted, so the families that it tested are unknown
            return "all"
    return ",".join(["sample", *(family for family in FAMILIES if family in found)])


def sanitizers(changed: Iterable[str] | None) -> bool:
    return changed is None or any(
        file.startswith(SANITIZED) or re.match(r"csrc/[^/]+$", file) is not None for file in changed
    )


def _families_of_test(text: str) -> set[str]:
    """The kernel families that a test file mutates."""
    if "mutation" not in text:
        return set()
    found = {family for family, folder in FAMILIES.items() if f'"{folder.removeprefix("csrc/")}/' in text}
    return found | ({PRIMITIVES} if "cuda_primitives" in text else set())


def _with_includes(root: Path, folder: Path) -> set[str]:
    """The files below a folder and all of csrc that they include, from the root."""
    found: set[str] = set()
    left = [path.relative_to(root).as_posix() for path in folder.rglob("*") if path.is_file()]
    while left:
        file = left.pop()
        if file not in found and (root / file).is_file():
            found.add(file)
            included = re.findall(r'^\s*#\s*include\s+"([^"]+)"', (root / file).read_text(), re.MULTILINE)
            left += [f"csrc/{name}" for name in included]
    return found


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mutations", "sanitizers"))
    what, changed = parser.parse_args().what, since_last_green()
    print(mutations(changed) if what == "mutations" else "yes" if sanitizers(changed) else "no")


if __name__ == "__main__":
    main()
