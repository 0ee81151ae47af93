"""Writes the ninja file: one object per source, one link per library. Pure except for globbing csrc."""

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .archs import Arch
from .flavours import Flavour
from .toolchain import Toolkit, Torch

TORCH_TARGET = "0x020a000000000000ULL"  # the stable ABI of torch 2.10: loads in 2.10 and later
PYTHON_TARGET = "0x030A0000"  # the limited API of CPython 3.10

WARNINGS = ("-Wall", "-Wextra")
COMPILE = (
    "-O3", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-fdata-sections",
    "-fno-math-errno",  # so that loops with sqrt are vectorised
)  # fmt: skip
# For code that runs only if the CPU supports it. The rest of the library must not use these instructions.
AVX2 = (
    "-mavx2", "-mfma", "-mf16c",
    "-fira-region=all",  # gcc 12's default keeps the weights of some register blocks in memory: half the rate
)  # fmt: skip
AVX512 = (
    *AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512",
    "-Wno-uninitialized", "-Wno-maybe-uninitialized",  # gcc 12's own headers warn (its bug 105593)
)  # fmt: skip
LINK = (
    "-shared", "-Wl,-O1", "-Wl,--build-id=none", "-Wl,-z,relro,-z,now", "-Wl,--gc-sections",
    "-Wl,-z,defs",  # undefined symbols fail at link time
    "-Wl,--as-needed",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Everything that determines the build. Paths are relative to the repository, where ninja runs."""

    folder: Path  # where objects go: build/ninja-...
    torch: Torch
    python_include: Path
    cc: str
    cxx: str
    python: str
    machine: str  # platform.machine()
    toolkit: Toolkit | None = None
    archs: Sequence[Arch] = ()
    flavour: Flavour | None = None
    root: Path = field(default_factory=Path.cwd)

    @property
    def modules(self) -> list[str]:
        if self.flavour:
            return [self.flavour.module]
        return ["_C", "_C_cuda"] if self.toolkit else ["_C"]

    @property
    def cuda_folder(self) -> Path:
        """Folder of objects that depend on the GPUs. All others are shared by in-place builds and wheels."""
        return self.folder / "-".join(arch.label for arch in self.archs)

    @property
    def build_file(self) -> Path:
        """Flavours that share a folder have their own files but share ninja's log."""
        return self.folder / (f"{self.flavour.name}.ninja" if self.flavour else "build.ninja")

    def own_folder(self, source: Path | None = None) -> Path:
        """Folder of what a flavour does not share: some objects, and the library."""
        if self.flavour and self.flavour.own and (source is None or self.flavour.owns(source)):
            return self.folder / self.flavour.name
        return self.folder

    def library(self, module: str) -> Path:
        return (self.cuda_folder if module == "_C_cuda" else self.own_folder()) / f"{module}.abi3.so"


def sources(plan: Plan, module: str) -> list[Path]:
    csrc = plan.root / "csrc"
    patterns = {
        # Planning for a GPU is pure arithmetic, so plans can be explained without a CUDA library.
        "_C": ("module.c", "unchanged.c", "library.cpp", "explain_cuda.cpp", "common/*.cpp", "compat/*.cpp",
               "cpu/**/*.cpp", "cuda/plan/*.cpp", "cuda/kernels/**/*.cpp"),
        "_C_cuda": ("module.c", "common/*.cpp", "compat/*.cpp", "cuda/**/*.cpp", "cuda/**/*.cu"),
    }[module]  # fmt: skip
    found = [path.relative_to(plan.root) for pattern in patterns for path in sorted(csrc.glob(pattern))]
    if plan.machine != "x86_64":
        found = [path for path in found if not {"avx2", "avx512", "amx"} & {*path.parts}]
    return found


def render(plan: Plan) -> str:
    lines = [
        "# Written by build_tools/ninja_file.py.",
        "ninja_required_version = 1.5",
        f"builddir = {_ninja(plan.folder)}",
        *_rules(plan),
    ]
    shared: dict[Path, None] = {}  # objects that both libraries link
    for module in plan.modules:
        objects = []
        for source in sources(plan, module):
            out = _object(plan, module, source)
            objects.append(out)
            if out not in shared:
                shared[out] = None
                lines += _compile(plan, module, source, out)
        lines += _link(plan, module, objects)
    return "\n".join(lines) + "\n"


def _object(plan: Plan, module: str, source: Path) -> Path:
    # module.c compiles differently for each library; everything else is the same object in both.
    name = source.name if source.name != "module.c" else f"{module}.c"
    folder = plan.cuda_folder if source.suffix == ".cu" and not _is_hoppers(source) else plan.own_folder(source)
    return folder / source.relative_to("csrc").with_name(f"{name}.o")


def _is_hoppers(source: Path) -> bool:
    """Whether a source is for Hopper only: wgmma and im2col TMA exist only in sm_90a code."""
    return "sm90" in source.parts


def _rules(plan: Plan) -> list[str]:
    torch = plan.torch.root / "include"
    include = ["-Icsrc", *_system(torch)]
    # torch's headers embed their path in messages; this makes libraries reproducible across machines.
    remap = f"-ffile-prefix-map={plan.torch.root}=torch"
    define = f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"
    of_all = plan.flavour.compile if plan.flavour and not plan.flavour.own else ()
    common = [*COMPILE, *WARNINGS, remap, *of_all]
    c = [*common, "-std=c11", f"-DPy_LIMITED_API={PYTHON_TARGET}", *_system(plan.python_include)]
    cxx = [*common, "-std=c++17", define, *include]
    link = [*LINK, *(plan.flavour.link if plan.flavour else ())]
    if plan.flavour is None or plan.flavour.strip:
        link.append("-Wl,-s")
    depfile = "-MMD -MF $out.d -c $in -o $out"
    rules = [
        *_rule("cc", f"{_shell([plan.cc, *c])} $flags {depfile}", "CC $in", depfile=True),
        *_rule("cxx", f"{_shell([plan.cxx, *cxx])} $flags {depfile}", "CXX $in", depfile=True),
        *_rule("glibc", f"{_shell([plan.python])} build_tools/glibc.py $out $in", "GLIBC $out"),
        *_rule(
            "link", f"{_shell([plan.cxx, *link])} -Wl,--version-script,csrc/exports.map $in $libs -o $out", "LINK $out"
        ),
    ]
    if plan.toolkit:
        nvcc = [
            str(plan.toolkit.nvcc), "-ccbin", plan.cxx, "-std=c++17", "-O3", "--expt-relaxed-constexpr",
            "-DUSE_CUDA", define, *(plan.flavour.cuda if plan.flavour else ()),
            "-Xcompiler", ",".join([*COMPILE[1:], *WARNINGS, remap]),
            # zstd halves the size. Every driver that runs CUDA 13 code can unpack it; not so for CUDA 12.
            *(["--compress-mode=size"] if plan.toolkit.version >= (13, 0) else []),
            *include,
        ]  # fmt: skip
        rules += _rule("nvcc", f"{_shell(nvcc)} $flags {depfile}", "NVCC $in", depfile=True)
        if not plan.torch.has_cuda:
            stub = f"{_shell([plan.cc])} -shared -fPIC -Wl,-soname,libtorch_cuda.so $in -o $out"
            rules += _rule("stub", stub, "STUB $out")
    return rules


def _rule(name: str, command: str, description: str, depfile: bool = False) -> list[str]:
    rule = ["", f"rule {name}", f"  command = {command}", f"  description = {description}"]
    return rule + (["  depfile = $out.d", "  deps = gcc"] if depfile else [])


def _compile(plan: Plan, module: str, source: Path, out: Path) -> list[str]:
    rule = {".c": "cc", ".cpp": "cxx", ".cu": "nvcc"}[source.suffix]
    flags: list[str] = []
    if source.suffix == ".c":
        flags = [f"-DRF_MODULE={module}", *(["-DRF_UNCHANGED"] if module == "_C" else [])]
    elif source.suffix == ".cu":
        archs = [Arch("90a", ptx=False)] if _is_hoppers(source) else plan.archs
        flags = [arch.flag for arch in archs]
    elif "avx2" in source.parts:
        flags = [*AVX2, *(plan.flavour.avx2 if plan.flavour else ())]
    elif {"avx512", "amx"} & {*source.parts} and plan.flavour and plan.flavour.avx512:
        flags = [*plan.flavour.avx512]
    elif "avx512" in source.parts or source.match("amx/bf16.cpp"):
        flags = [*AVX512, *(["-mavx512bf16"] if "bf16" in source.stem else [])]
    elif "cuda" in source.parts and source.suffix == ".cpp" and plan.toolkit:
        flags = ["-DUSE_CUDA", *_system(plan.toolkit.include)]
    if plan.flavour and plan.flavour.own and plan.flavour.owns(source):
        flags += plan.flavour.compile
    return ["", f"build {_ninja(out)}: {rule} {_ninja(source)}", *([f"  flags = {_shell(flags)}"] if flags else [])]


def _link(plan: Plan, module: str, objects: Sequence[Path]) -> list[str]:
    stubs = plan.library(module).parent / f"glibc-{module}" / "stubs.rsp"
    archives, needs = [], [stubs, Path("csrc/exports.map")]
    libs = [f"-L{plan.torch.root / 'lib'}", "-ltorch_cpu"]
    lines: list[str] = []
    if module == "_C_cuda" and plan.toolkit:
        if plan.torch.has_cuda:
            libs += ["-ltorch_cuda"]
        else:
            stub = plan.folder / "stub/libtorch_cuda.so"
            lines += ["", f"build {_ninja(stub)}: stub build_tools/torch_cuda_stub.c"]
            needs.append(stub)
            libs.append(str(stub))
        archives.append(plan.toolkit.cudart)
        libs += [str(plan.toolkit.cudart), f"@{stubs}", "-lrt", "-lpthread", "-ldl"]
    else:
        libs.append(f"@{stubs}")
    # libgcc has half-precision helpers since gcc 12; link them from the archive, ahead of the shared library.
    libs.append("-lgcc")
    inputs = " ".join(map(_ninja, objects))
    return [
        *lines,
        "",
        f"build {_ninja(stubs)}: glibc {' '.join(map(_ninja, [*objects, *archives]))} | build_tools/glibc.py",
        "",
        f"build {_ninja(plan.library(module))}: link {inputs} | {' '.join(map(_ninja, needs))}",
        f"  libs = {_shell(libs)}",
    ]


def _system(folder: Path) -> list[str]:
    """System include flags for third-party headers: no warnings, not tracked."""
    return ["-isystem", str(folder)]


def _shell(words: Iterable[str]) -> str:
    return " ".join(shlex.quote(word) for word in words).replace("$", "$$")


def _ninja(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
