"""Runs the CUDA kernels on the CPU and checks every access. See docs/kernels/emulator.md.

``load()`` returns the kernel libraries, compiled with g++ from the unchanged sources; ninja rebuilds what changed. A
library has the functions of ``bindings/``. ``load_mutant(Patch(...))`` returns them with a mutation.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from . import build, report
from .build import Mutant, missing
from .libraries import CHECKS, LIBRARIES, PRIMITIVES, ROOT, SOURCES, Own, containing

__all__ = [
    "CHECKS",
    "PRIMITIVES",
    "Kernels",
    "Library",
    "Patch",
    "load",
    "load_mutant",
    "load_own",
    "missing",
    "prepare",
    "used",
]

#: Libraries whose functions were called since the last clear(), with the digest of the file as loaded (another process
#: may have rebuilt it since). A test's verdict depends on these.
used: dict[Path, str] = {}


class Patch(NamedTuple):
    """A mutation: replaces ``old`` by ``new`` in ``file`` (below csrc/).

    ``sources``: stems of the .cu files compiled with it. ``variants``: a C++ condition on a kernel's variant ``v``;
    other variants are not compiled and cannot be launched. ``own``: a test's library; ``file`` then names one of its
    kernel sources.
    """

    file: str
    old: str
    new: str
    sources: tuple[str, ...] = ()
    variants: str = "true"
    own: Own | None = None


class Library:
    """A loaded library's C++ functions. Those that run kernels return the emulator's report."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._native = _emulator()[0].Library(str(file))
        self._digest = digest_of(file)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._call, name)

    def _call(self, name: str, *arguments: Any) -> Any:
        used.update({self.file: self._digest, build.EMULATOR: _emulator()[1]})
        result = self._native.call(name, *arguments)
        return report.finish(result, str(self.file)) if isinstance(result, dict) and "findings" in result else result

    def close(self) -> None:
        self._native.close()


class Kernels:
    """Libraries by name, compiled and loaded on first use.

    Attributes are functions: ``compiled_*`` lists the variants of all libraries; any other must be in all of them.
    """

    def __init__(self, mutant: Mutant | None = None) -> None:
        self._mutant, self._open = mutant, dict[str, Library]()

    def __getitem__(self, name: str) -> Library:
        if name not in self._open:
            file = build.library(name)
            if self._mutant and name in self._mutant.libraries:
                file = self._mutant.library(name)
            build.build([file], [self._mutant] * (self._mutant is not None))
            self._open[name] = Library(file)
        return self._open[name]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("compiled_"):
            return lambda: [variant for library in LIBRARIES for variant in getattr(self[library], name)()]
        return getattr(self["bn_finish"], name)

    def close(self) -> None:
        """Unloads the loaded libraries."""
        for library in self._open.values():
            library.close()
        self._open.clear()


@functools.cache
def _emulator() -> tuple[ModuleType, str]:
    """The emulator module and the digest of its file."""
    build.build([build.EMULATOR])
    spec = importlib.util.spec_from_file_location("emulator", build.EMULATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, digest_of(build.EMULATOR)


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _clean() -> Kernels:
    return Kernels()


def load() -> Kernels:
    return _clean()


def load_mutant(patch: Patch) -> Kernels | Library:
    """The kernels with a bug. The caller must close() them."""
    return Kernels(_mutant(patch)) if patch.own is None else _own(patch.own, patch)


@functools.cache
def load_own(own: Own) -> Library:
    """A test's own library."""
    return _own(own)


def prepare(libraries: Iterable[Path], patches: Iterable[Patch] = ()) -> None:
    """Builds libraries and mutations in one ninja run."""
    mutants = [_mutant(patch) for patch in dict.fromkeys(patches)]  # two tests may have the same patch
    build.build([*libraries, *(mutant.library(name) for mutant in mutants for name in mutant.libraries)], mutants)


def _own(own: Own, patch: Patch | None = None) -> Library:
    mutants = [_mutant(patch)] if patch else []
    file = mutants[0].library(own.name) if mutants else build.library(own.name)
    build.build([file], mutants)
    return Library(file)


def _mutant(patch: Patch) -> Mutant:
    """Writes a copy of the source file with the bug."""
    own = patch.own
    by_name = {path.name: path for path in own.kernels} if own else {}
    original = by_name.get(patch.file, ROOT / "csrc" / patch.file)
    text = original.read_text()
    if text.count(patch.old) != 1:
        raise ValueError(f"{patch.old!r} occurs {text.count(patch.old)} times in {patch.file}")
    if own is None and not patch.sources:
        raise ValueError(f"no kernel source is compiled with the bug in {patch.file}; name those that read it")
    libraries = (own.name,) if own else containing(patch.sources)
    folder = build.BUILD / ("mutant_" + hashlib.sha256(repr(patch).encode()).hexdigest()[:12])
    copy = folder / "include" / patch.file
    text = text.replace(patch.old, patch.new)
    if not copy.exists() or copy.read_text() != text:
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    sources = (copy,) if own else tuple(copy if SOURCES[s] == original else SOURCES[s] for s in patch.sources)
    return Mutant(folder, sources, libraries, patch.variants, own)
