"""The constants of the CUDA plan's model, read from ``csrc/cuda/plan/cost_constants.h`` and written into it."""

import re
from pathlib import Path
from typing import NamedTuple

HEADER = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "plan" / "cost_constants.h"

_ROW = re.compile(r"^    \{\n(.*?)^    \},\n", re.M | re.S)
_VALUE = re.compile(r"^ +(.+?), +// (\w+)(.*)$", re.M)


class Family(NamedTuple):
    """A row of ``kFamilies``, in the struct's units."""

    oldest: int
    measured_by: str
    values: dict[str, float]  # in the struct's order


def families(text: str) -> list[Family]:
    """The rows of a header, the newest GPUs first."""
    found = []
    for row in _ROW.findall(text):
        values = {name: value for value, name, _ in _VALUE.findall(row)}
        oldest, measured_by = int(values.pop("oldest")), values.pop("measured_by").strip('"')
        found.append(Family(oldest, measured_by, {name: float(value) for name, value in values.items()}))
    return found


def family(arch: int, text: str | None = None) -> Family:
    """The constants for a GPU of this compute capability, as ``family_of`` in ``csrc/cuda/plan/cost_model.cpp``."""
    rows = families(HEADER.read_text() if text is None else text)
    return next((row for row in rows if arch >= row.oldest), rows[-1])


def rewritten(text: str, oldest: int, measured_by: str, values: dict[str, float]) -> str:
    """Returns the header with these values in one row, fitted to the run ``measured_by``."""

    def row(match: re.Match[str]) -> str:
        lines = [list(line) for line in _VALUE.findall(match[1])]
        if int(lines[0][0]) != oldest:
            return match[0]
        for line in lines:
            if line[1] == "measured_by":
                line[0] = f'"{measured_by}"'
            elif line[1] in values:
                line[0], line[2] = f"{values[line[1]]:.10g}", ": fitted"
        width = max(len(code) for code, _, _ in lines) + 1
        return "    {\n" + "".join(f"        {f'{c},':<{width}}  // {n}{s}\n" for c, n, s in lines) + "    },\n"

    return _ROW.sub(row, text)
