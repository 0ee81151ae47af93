"""Turns the emulator's findings into messages that name the kernel's lines."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
MOST_ERRORS = 8  # messages in a report; error_count counts all


def finish(raw: dict, module: str) -> dict:
    """The report that ``run_*`` returns.

    errors       messages of the first few findings
    error_count  occurrences of all findings
    hazards      the set of (hazard, line)
    given_up     whether a launch was aborted
    launched     kernel names, in launch order
    and counters: bytes_loaded, bytes_stored, wide_accesses, bytes_copied, collectives
    """
    findings = raw.pop("findings")
    line_of = _lines(module, frozenset(f[key] for f in findings for key in ("place", "other") if f[key]))
    found = [f for f in findings if not (f["only_if_lines_differ"] and line_of[f["place"]] == line_of[f["other"]])]
    return dict(
        raw,
        errors=[_sentence(f, line_of) for f in found[:MOST_ERRORS]],
        error_count=sum(f["count"] for f in found),
        hazards={(f["hazard"], line_of.get(f["place"])) for f in found},
    )


def _sentence(f: dict, line_of: dict[int, str]) -> str:
    s = f["hazard"]
    if f["place"]:
        s += f" at {line_of[f['place']]}"
    if f["in_thread"]:
        s += f", block {_index(f['block'])} thread {_index(f['thread'])}"
    if f["detail"]:
        s += f": {f['detail']}"
    if f["other"]:
        s += f" (the earlier one at {line_of[f['other']]})"
    return s + (f" [{f['count']} times]" if f["count"] > 1 else "")


def _index(i: tuple[int, int, int]) -> str:
    return str(i[0]) if i[1] == i[2] == 0 else str(i)


@functools.lru_cache(maxsize=256)
def _lines(module: str, places: frozenset[int]) -> dict[int, str]:
    """``file:line`` of each code address: the innermost inlined frame that is in kernel code."""
    if not places:
        return {}
    wanted = sorted(places)
    command = ["addr2line", "-i", "-a", "-e", module, *map(hex, wanted)]
    frames: dict[int, list[str]] = {}
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if line.startswith("0x"):
            here = frames.setdefault(int(line, 16), [])
        else:
            here.append(line.split(" ")[0])
    return {place: _own(frames[place]) for place in wanted}


def _own(frames: list[str]) -> str:
    """The first frame that is in neither the emulator nor a ptx header."""
    for frame in frames:
        name, _, line = frame.rpartition(":")
        path = Path(name)
        emulator = HERE in path.parents and path.relative_to(HERE).parts[0] in ("include", "runtime")
        if path.exists() and not emulator and "ptx" not in path.parts:
            return f"{_short(path)}:{line}"
    return frames[0] if frames else "?"


def _short(path: Path) -> str:
    """The path from the root; a mutant copy is shown as its original."""
    parts = path.resolve().parts
    if "include" in parts and any(p.startswith("mutant_") for p in parts):
        return str(Path("csrc", *parts[parts.index("include") + 1 :]))
    return str(path.resolve().relative_to(ROOT)) if ROOT in path.resolve().parents else str(path)
