"""Golden files: a GPU's outputs of the cases. See tests/golden/README.md."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .case import Case

ABOUT = "about"  # the only key that is not a case


def save(path: Path, about: str, outputs: dict[str, np.ndarray], cases: dict[str, Case]) -> None:
    """Writes a golden file. Outputs that are fully defined and correct are stored as digests."""
    kept = {ABOUT: np.array(about)}
    for name, output in outputs.items():
        case = cases[name]
        short = case.bound is None and case.mismatch(output) is None
        kept[f"{name}/{case.digest}"] = np.array(case.fingerprint(output)) if short else output
    np.savez_compressed(path, **kept)


def load(path: Path) -> dict[str, np.ndarray]:
    """Returns outputs by ``name/digest of the inputs``, and ``about``."""
    with np.load(path) as file:
        return dict(file)


def mismatch(kept: np.ndarray, case: Case, output: np.ndarray) -> str | None:
    """How an output differs from the golden output of the same case, or None."""
    if kept.dtype.kind != "U":
        return case.mismatch(output, kept)
    return None if case.fingerprint(output) == str(kept) else "other bits than the GPU's, which were as defined"
