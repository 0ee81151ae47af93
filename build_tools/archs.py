"""Which GPU architectures to compile for. Pure: strings in, nvcc flags out."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import BuildError

# Shipped: A100; L4 and RTX 4090; H100 and H200 (wgmma needs the "a"); B200 and B300 (one family); RTX 50.
# Newer GPUs compile the PTX on first use.
DEFAULT = "8.0+PTX;8.9;9.0a;10.0f;12.0"
# For in-place builds without a GPU: one architecture per kind of kernel, because tests read the machine code.
WITHOUT_GPU = "8.0+PTX;9.0a"
OLDEST = 80

# torch's names of GPU generations that the kernels support.
NAMED = {"Ampere": "8.0;8.6+PTX", "Ada": "8.9+PTX", "Hopper": "9.0+PTX", "Blackwell": "10.0;12.0+PTX"}

# Their tensor-core instructions exist only in architecture-specific code ("a", "f"); torch's own build
# compiles such code for a plain 9.0 too.
TIED = {"90": "90a", "100": "100f"}


@dataclass(frozen=True)
class Arch:
    """``code`` is nvcc's name without its prefix, "90a"; ``ptx`` embeds PTX, which later GPUs can compile."""

    code: str
    ptx: bool

    @property
    def number(self) -> int:
        return int(self.code.rstrip("af"))

    @property
    def label(self) -> str:
        return f"ptx_{self.code}" if self.ptx else f"sm_{self.code}"

    @property
    def flag(self) -> str:
        if self.ptx:
            return f"-gencode=arch=compute_{self.code},code=compute_{self.code}"
        # The kernels use nothing that 8.6 and 8.9 have and 8.0 lacks: nvcc generates the same PTX for all, here once.
        virtual = "80" if self.number < 90 else self.code
        return f"-gencode=arch=compute_{virtual},code=sm_{self.code}"


def parse(text: str) -> list[Arch]:
    """``TORCH_CUDA_ARCH_LIST``: "8.0;9.0a+PTX", separated by ``;``, commas or spaces; "8.0+PTX" is both."""
    words = [word for word in re.split(r"[;,\s]+", text) if word]
    archs: dict[Arch, None] = {}  # an ordered set
    for word in words:
        for item in NAMED.get(word, word).split(";"):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item)
            if match is None:
                raise BuildError(
                    f"TORCH_CUDA_ARCH_LIST={text!r} holds {word!r}, which is no architecture; "
                    'write numbers such as "8.0;9.0a+PTX", or unset it for the default.'
                )
            major, minor, suffix, ptx = match.groups()
            base = major + minor
            archs[Arch(base + suffix if suffix else TIED.get(base, base), ptx=False)] = None
            if ptx:
                archs[Arch(base + suffix, ptx=True)] = None
    return list(archs)


def supported(archs: Iterable[Arch], known: Iterable[int], nvcc_version: tuple[int, int]) -> list[Arch]:
    """The architectures that the kernels support and this nvcc compiles; ``known`` is ``nvcc --list-gpu-code``."""
    known = set(known)

    def compiles(arch: Arch) -> bool:
        if arch.number < OLDEST or arch.number not in known:
            return False
        return not arch.code.endswith("f") or nvcc_version >= (12, 9)

    return [arch for arch in archs if compiles(arch)]


def choose(
    requested: str | None, known: Iterable[int], nvcc_version: tuple[int, int], default: str = DEFAULT
) -> list[Arch]:
    """The architectures to compile for; ``requested`` is ``TORCH_CUDA_ARCH_LIST``."""
    known = sorted(set(known))
    archs = supported(parse(requested or default), known, nvcc_version)
    if not archs:
        raise BuildError(
            f"TORCH_CUDA_ARCH_LIST={requested or default!r} leaves nothing to compile: the kernels need 8.0 or "
            f"newer, and nvcc {nvcc_version[0]}.{nvcc_version[1]} knows "
            f"{', '.join(f'{n // 10}.{n % 10}' for n in known)}; name one of those."
        )
    return archs


def of_machine(gpus: Iterable[str], known: Iterable[int], nvcc_version: tuple[int, int]) -> str:
    """Returns the list for an in-place build; ``gpus`` are compute capabilities, "9.0".

    GPUs that the kernels do not run on, or that this nvcc does not know, count as none.
    """
    known = set(known)
    return ";".join(gpu for gpu in gpus if supported(parse(gpu), known, nvcc_version)) or WITHOUT_GPU


def as_list(labels: Iterable[str]) -> str:
    """Labels, such as ``CUDA_ARCHS`` of ``_build_info``, as ``TORCH_CUDA_ARCH_LIST``: "8.0;8.0+PTX;9.0a"."""
    words = []
    for label in labels:
        kind, _, code = label.partition("_")
        major, minor, suffix = re.fullmatch(r"(\d+)(\d)([af]?)", code).groups()  # type: ignore[union-attr]
        words.append(f"{major}.{minor}{suffix}{'+PTX' if kind == 'ptx' else ''}")
    return ";".join(words)
