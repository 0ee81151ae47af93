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
    avx512: tuple[str, ...] = ()  # the kernels of csrc/cpu/avx512: these flags instead of AVX-512's
    compile: tuple[str, ...] = ()  # every source of its own; an -O among them overrules the usual one
    own: tuple[str, ...] = ()  # patterns of these sources, below csrc; the others are the shipped library's objects
    link: tuple[str, ...] = ()
    strip: bool = True
    cuda: tuple[str, ...] = ()  # nvcc; with any, it is a flavour of the CUDA library

    @property
    def module(self) -> str:
        return "_C_cuda" if self.cuda else "_C"

    def owns(self, source: Path) -> bool:
        """Whether the flavour compiles this source (a path from csrc on) differently."""
        return not self.own or any(source.match(pattern) for pattern in self.own)


# The kernels run on any processor with AVX2. Unrolled code of 512-bit vectors in two halves takes minutes at -O3.
EMULATED = ("-Itests/avx512_on_avx2", "-mavx2", "-mfma", "-mf16c", "-O1", "-Wno-psabi")
BELIEVES = "-DRESNET_FUSED_EMULATED_AVX512"  # the plan: this machine has AVX-512 and AVX512-BF16

# The first error ends the process: a test cannot pass over it. torch is compiled without, so vptr has nothing to read.
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all")
# Checks of addresses as calls: in line they make unrolled kernels compile for minutes.
CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")
# And what of the second sanitizer the first one sees as well.
LESS = ("-fno-sanitize=null,alignment,object-size,pointer-overflow",)

FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("emulated-avx512", avx512=EMULATED, compile=(BELIEVES,), own=("cpu/avx512/*", "cpu/plan.cpp")),
        Flavour(
            "sanitize",
            avx512=(*EMULATED, *LESS),
            compile=(BELIEVES, *SANITIZE, *CALLS, "-fno-omit-frame-pointer", "-O1", "-g"),
            link=SANITIZE,
            strip=False,
        ),
        # Waits of kernels give up and say so: to find out where a kernel hangs.
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
