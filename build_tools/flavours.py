"""Other builds of a library for its tests, selected by ``RESNET_FUSED_FLAVOUR=name``.

A flavour goes to ``build/<flavour>/_C.abi3.so`` (or ``_C_cuda.abi3.so``) and never into the package;
``RESNET_FUSED_LIBRARY=<that file>`` (or ``RESNET_FUSED_CUDA_LIBRARY``) makes the package load it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import BuildError


@dataclass(frozen=True)
class Flavour:
    """How a flavour's compilation and linking differ from the shipped library's."""

    name: str
    avx2: tuple[str, ...] = ()  # more flags for csrc/cpu/avx2
    avx512: tuple[str, ...] = ()  # flags for csrc/cpu/avx512 and csrc/cpu/amx, instead of AVX-512's
    compile: tuple[str, ...] = ()  # extra flags for its own sources; an -O here wins
    own: tuple[str, ...] = ()  # patterns, below csrc, of its own sources; other objects are the shipped library's
    link: tuple[str, ...] = ()
    strip: bool = True
    cuda: tuple[str, ...] = ()  # nvcc flags; if any, the flavour is of the CUDA library

    @property
    def module(self) -> str:
        return "_C_cuda" if self.cuda else "_C"

    def owns(self, source: Path) -> bool:
        """Whether the flavour compiles this source (a path from csrc on) differently."""
        return not self.own or any(source.match(pattern) for pattern in self.own)


# AMX's instructions in C++. -iquote comes before any -I.
EMULATED_AMX = ("-iquote", "tests/emulated_amx")
# Runs on any processor with AVX2. Unrolled code with 512-bit vectors in two halves takes minutes to compile at -O3.
EMULATED = ("-Itests/avx512_on_avx2", *EMULATED_AMX, "-mavx2", "-mfma", "-mf16c", "-O1", "-Wno-psabi")
BELIEVES_AMX = "-DRESNET_FUSED_EMULATED_AMX"  # the plan assumes AMX
BELIEVES = ("-DRESNET_FUSED_EMULATED_AVX512", BELIEVES_AMX)  # the plan assumes AVX-512 and AVX512-BF16 too

# The first error ends the process, so no test can miss it. vptr checks would need an instrumented torch.
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")
# Emit address checks as calls. Inlined, they make unrolled kernels compile for minutes.
CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")
# Checks of the undefined-behaviour sanitizer that the address sanitizer covers too.
LESS = ("-fno-sanitize=null,alignment,object-size,pointer-overflow",)

FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour(
            "emulated-avx512",
            avx512=EMULATED,
            compile=BELIEVES,
            own=("cpu/avx512/*", "cpu/amx/*", "cpu/plan.cpp"),
        ),
        Flavour("emulated-amx", compile=(*EMULATED_AMX, BELIEVES_AMX), own=("cpu/amx/*", "cpu/plan.cpp")),
        Flavour(
            "sanitize",
            avx2=LESS,
            avx512=(*EMULATED, *LESS),
            compile=(*BELIEVES, *SANITIZE, *CALLS, "-fno-omit-frame-pointer", "-O1", "-g1"),
            link=SANITIZE,
            strip=False,
        ),
        # Kernels' waits time out and report: for finding hangs.
        Flavour("watchdog", cuda=("-DRESNET_FUSED_WATCHDOG",)),
    )
}


def choose(environ: Mapping[str, str]) -> Flavour | None:
    """The flavour that ``RESNET_FUSED_FLAVOUR`` selects; None for the shipped library."""
    name = environ.get("RESNET_FUSED_FLAVOUR")
    if not name:
        return None
    if name not in FLAVOURS:
        raise BuildError(
            f"RESNET_FUSED_FLAVOUR={name!r} is none of {', '.join(FLAVOURS)}; set one of them, or unset it for the "
            "library that is shipped."
        )
    return FLAVOURS[name]
