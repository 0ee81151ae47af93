"""The ``build_ext`` and ``build_py`` commands: setuptools calls them, ninja builds."""

import fcntl
import filecmp
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from . import BuildError, archs, flavours, ninja_file, sources, toolchain

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "resnet_fused"

# Names for setuptools; ninja_file.py decides what is compiled into each.
EXTENSIONS = [Extension(f"{PACKAGE}.{name}", sources=[], py_limited_api=True) for name in ("_C", "_C_cuda")]


def make_plan(inplace: bool) -> tuple[ninja_file.Plan, str]:
    """Returns the build plan for this environment, and a sentence on where CUDA comes from or why it is left out.

    In-place builds target this machine's GPUs, wheels all supported ones.
    """
    if sys.platform != "linux":
        raise BuildError(f"resnet_fused builds on Linux, and this is {sys.platform}; use a Linux machine or container.")
    torch = toolchain.find_torch()
    flavour = flavours.choose(os.environ)
    if flavour and not flavour.cuda and not flavour.own:
        toolkit, cuda = None, f"the flavour {flavour.name} is one of the CPU library"
    else:
        needs_cuda = {"RESNET_FUSED_CUDA": "1"} if flavour and flavour.cuda else {}
        toolkit, cuda = toolchain.choose_toolkit({**os.environ, **needs_cuda})
    machine = platform.machine()
    chosen: list[archs.Arch] = []
    if toolkit:
        known, requested = toolchain.known_archs(toolkit.nvcc), os.environ.get("TORCH_CUDA_ARCH_LIST")
        of_machine = inplace and not requested
        default = archs.of_machine(toolchain.gpus(), known, toolkit.version) if of_machine else archs.DEFAULT
        chosen = archs.choose(requested, known, toolkit.version, default)
    # One folder per combination, so that switching back reuses its objects.
    name = f"ninja-{machine}-torch{torch.version}"
    name += f"-cuda{toolkit.release}" if toolkit else ""
    name += f"-{flavour.name}" if flavour and not flavour.own else ""
    plan = ninja_file.Plan(
        folder=Path("build") / name,
        torch=torch,
        python_include=toolchain.find_python_headers(),
        cxx=toolchain.find_compiler("CXX"),
        cc=toolchain.find_compiler("CC"),
        python=sys.executable,
        machine=machine,
        toolkit=toolkit,
        archs=chosen,
        flavour=flavour,
        root=ROOT,
    )
    return plan, cuda


def jobs() -> int:
    text = os.environ.get("MAX_JOBS") or str(len(os.sched_getaffinity(0)))
    if not text.isdecimal() or int(text) < 1:
        raise BuildError(f"MAX_JOBS={text!r} is no number of jobs; set it to 1 or more, or unset it for one a core.")
    return int(text)


def run_ninja(plan: ninja_file.Plan, *arguments: str) -> None:
    folder = plan.root / plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    # Concurrent builds would write the same objects, so the second one waits.
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_if_changed(plan.root / plan.build_file, ninja_file.render(plan))
        command = [toolchain.find_ninja(), "-f", str(plan.build_file), "-j", str(jobs()), *arguments]
        status = subprocess.run(command, cwd=plan.root, check=False).returncode
    if status:
        raise BuildError(f"the build failed: the compiler's own message is above; '{' '.join(command)}' repeats it.")


def build_info(plan: ninja_file.Plan, cuda: str) -> str:
    """The text of ``resnet_fused/_build_info.py``."""
    return (
        '"""Written by the build: what this copy of resnet_fused was compiled from and for."""\n\n'
        f"CUDA_ARCHS: tuple[str, ...] = {tuple(arch.label for arch in plan.archs)!r}\n"
        f"NVCC_VERSION: str | None = {plan.toolkit.release if plan.toolkit else None!r}\n"
        f"CUDA_OMITTED: str | None = {None if plan.toolkit else cuda!r}  # why there is no _C_cuda\n"
        f"TORCH_BUILD_VERSION: str = {plan.torch.version!r}\n"
        f"GIT_COMMIT: str | None = {sources.git_commit(plan.root)!r}\n"
        f"SOURCE_DIGEST: str = {sources.digest(plan.root)!r}  # build_tools/sources.py\n"
    )


def is_built() -> bool:
    """Whether the in-place libraries match the sources, by digest."""
    there = (ROOT / PACKAGE / "_C.abi3.so").exists() and not flavours.choose(os.environ)
    return there and sources.built(ROOT)[0] == sources.digest(ROOT)


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def install(source: Path, target: Path) -> None:
    """Copies atomically: a process that has the old library loaded keeps it."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_suffix(f".{os.getpid()}")  # concurrent builds may both install
    shutil.copy2(source, new)
    os.replace(new, target)


class BuildLibraries(build_ext):
    def run(self) -> None:
        if self.inplace and (missing := toolchain.missing_compiler()) and is_built():
            print(f"resnet_fused: no compiler {missing!r}, and none is needed: nothing has changed", flush=True)
            self.extensions = []
            return
        plan, cuda = make_plan(self.inplace)
        print(
            f"resnet_fused: torch {plan.torch.version}, CUDA {'from' if plan.toolkit else 'left out:'} {cuda}"
            + "".join(f"{', ' if i else ', for '}{arch.label}" for i, arch in enumerate(plan.archs)),
            flush=True,
        )
        run_ninja(plan)
        if plan.flavour:
            # Not shipped: loaded through RESNET_FUSED_LIBRARY or _CUDA_LIBRARY.
            library = plan.library(plan.flavour.module)
            install(ROOT / library, ROOT / "build" / plan.flavour.name / library.name)
            self.extensions = []
            return
        package = ROOT / PACKAGE if self.inplace else Path(self.build_lib) / PACKAGE
        for extension in EXTENSIONS:
            module = extension.name.rpartition(".")[2]
            target = package / f"{module}.abi3.so"
            if module in plan.modules:
                install(ROOT / plan.library(module), target)
            else:
                target.unlink(missing_ok=True)  # from an earlier build; it may not match
        write_if_changed(package / "_build_info.py", build_info(plan, cuda))
        # From here on setuptools only lists outputs.
        self.extensions = [e for e in self.extensions if e.name.rpartition(".")[2] in plan.modules]


class BuildPython(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            # setuptools never removes files of earlier builds there, and would ship them.
            shutil.rmtree(Path(self.build_lib) / PACKAGE, ignore_errors=True)
        super().run()
