"""Links libraries on a machine with a new glibc so that they load with an old one (manylinux_2_28).

glibc keeps every old version of a symbol, but the linker always takes the newest. So stub libraries that define
the symbols in the newest version of the old system are linked first. The stubs are never loaded; they only decide
which versions are recorded. A symbol without an old version keeps the new one, and ``auditwheel`` reports it.
csrc/compat has copies of a few.

Run as a script by ninja: ``python build_tools/glibc.py OUT.rsp OBJECT...`` writes stubs beside OUT.rsp and their
paths into it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# manylinux_2_28's versions.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11)}
# {symbol: (its default version, its other versions)}
Symbols = Mapping[str, tuple[str, set[str]]]

COMPILER = os.environ.get("CC") or "gcc"

# glibc 2.34 moved the symbols of these libraries into libc, so stubs of them shadow nothing.
MOVED = (
    (re.compile(r"dl[a-z]"), "libdl.so.2"),
    (re.compile(r"(shm|timer|mq|aio|lio)_"), "librt.so.1"),
    (re.compile(r"(pthread|sem|thrd|mtx|cnd|tss)_|call_once$"), "libpthread.so.0"),
)
# Replaced completely by its stub of the same name, because the linker reads only one library of each name.
LIBM = "libm.so.6"
LIBC = "libc.so.6"


def too_new(version: str) -> bool:
    """Whether ``GLIBC_2.34`` is newer than what the old system has. A private version never is."""
    family, _, number = version.partition("_")
    if family not in NEWEST or not number[:1].isdigit():
        return False
    return _key(version) > NEWEST[family]


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.partition("_")[2].split("."))


def old_version(default: str, others: Iterable[str]) -> str | None:
    """The newest version of a symbol that the old system has, if it has any."""
    if not too_new(default):
        return default
    family = default.partition("_")[0] + "_"
    return max((v for v in others if v.startswith(family) and not too_new(v)), key=_key, default=None)


def plan(undefined: Iterable[str], libc: Symbols, libm: Symbols) -> dict[str, dict[str, list[str]]]:
    """``{stub: {version: [symbol]}}`` for what the objects need, where the newest version is too new."""
    undefined = sorted(set(undefined))
    stubs: dict[str, dict[str, list[str]]] = {}

    def add(stub: str, symbol: str, version: str | None) -> None:
        if version is not None:
            stubs.setdefault(stub, {}).setdefault(version, []).append(symbol)

    for symbol in undefined:
        moved = next((stub for pattern, stub in MOVED if pattern.match(symbol)), None)
        if moved and symbol in libc and too_new(libc[symbol][0]):
            add(moved, symbol, old_version(*libc[symbol]))
    if any(symbol in libm and too_new(libm[symbol][0]) for symbol in undefined):
        for symbol in undefined:
            if symbol in libm:
                add(LIBM, symbol, old_version(*libm[symbol]) or libm[symbol][0])
    return stubs


def undefined_symbols(objects: Iterable[str]) -> set[str]:
    lines = _run("nm", "--undefined-only", "--no-sort", *objects).splitlines()
    return {fields[-1] for fields in map(str.split, lines) if len(fields) == 2 and fields[0] in "Uw"}


def exported_symbols(library: str) -> Symbols:
    # Ask the compiler for the path. Without glibc it prints the bare name.
    path = _run(COMPILER, f"-print-file-name={library}").strip()
    symbols: dict[str, tuple[str, set[str]]] = {}
    if not Path(path).is_absolute():
        return symbols
    for line in _run("readelf", "--dyn-syms", "--wide", path).splitlines():
        match = re.search(r" ([\w.]+)(@@?)([\w.]+)(?: \(\d+\))?$", line)
        if match is None or " UND " in line:
            continue
        name, mark, version = match.groups()
        default, others = symbols.get(name, ("", set()))
        symbols[name] = (version, others) if mark == "@@" else (default, others | {version})
    return {name: versions for name, versions in symbols.items() if versions[0]}


def write_stub(folder: Path, name: str, versions: Mapping[str, list[str]]) -> Path:
    source, script, stub = folder / f"{name}.c", folder / f"{name}.map", folder / name
    names = [symbol for symbols in versions.values() for symbol in symbols]
    # With -fno-builtin a function may have a built-in's name, such as exp.
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    script.write_text("".join(f"{v} {{ global: {'; '.join(symbols)}; }};\n" for v, symbols in versions.items()))
    _run(
        COMPILER, "-shared", "-nostdlib", "-fno-builtin", "-fPIC", f"-Wl,-soname,{name}",
        f"-Wl,--version-script,{script}", "-o", str(stub), str(source),
    )  # fmt: skip
    return stub


def _run(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def main(out: str, *objects: str) -> None:
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    stubs = plan(undefined_symbols(objects), exported_symbols(LIBC), exported_symbols(LIBM))
    paths = [write_stub(folder, name, versions) for name, versions in sorted(stubs.items())]
    Path(out).write_text("".join(f"{path}\n" for path in paths))


if __name__ == "__main__":
    main(*sys.argv[1:])
