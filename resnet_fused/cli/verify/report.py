"""The report of a verification: one row per kernel family, and JSON for bug reports."""

from __future__ import annotations

import collections
import datetime
import platform
from collections.abc import Iterable
from typing import Any

import torch

from ... import _library
from .._machine import commit, cpu_name, package_version

Result = dict[str, Any]

BAD = ("wrong", "error", "hang", "died")
MAX_FAILURES = 20  # to print; the JSON has all


def environment(facts: Result) -> Result:
    """What was verified, and on which machine."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": facts,
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "resnet_fused": package_version("resnet_fused"),
        **commit(),
        "cuda_library": "loaded" if _library.CUDA_LOADED else _library.CUDA_LOAD_ERROR,
    }


def families(results: Iterable[Result], refused: dict[str, str]) -> list[Result]:
    """One row per family: its kernels, its cases by status, and its time and eager PyTorch's."""
    rows: dict[str, Result] = {}
    for r in results:
        row = rows.setdefault(r["family"], {"family": r["family"], "kernels": set(), "statuses": collections.Counter()})
        if "ours_us" in r:
            row |= {"timed": r["case"], "ours_us": r["ours_us"], "torch_us": r["torch_us"]}
            continue
        row["kernels"].add(r["kernel"])
        row["statuses"][r["status"]] += 1
    found = [{**row, "kernels": len(row["kernels"]), "statuses": dict(row["statuses"])} for row in rows.values()]
    return found + [{"family": name, "refused": why} for name, why in refused.items()]


def verdict(results: Iterable[Result]) -> str:
    """ "wrong" if a case failed, "incomplete" if one did not run, else "right"."""
    statuses = {r["status"] for r in results}
    if statuses & set(BAD):
        return "wrong"
    return "incomplete" if "not run" in statuses or not statuses else "right"


def table(rows: Iterable[Result]) -> list[tuple[str, ...]]:
    """Cells of the printed table, header first."""
    head = ("kernels", "variants", "cases", "right", "wrong", "not run", "against torch")
    cells: list[tuple[str, ...]] = [head]
    for row in rows:
        if "refused" in row:
            cells.append((row["family"], "", "", "", "", "", f"refused: {row['refused']}"))
            continue
        statuses = row["statuses"]
        bad = {name: statuses[name] for name in BAD if statuses.get(name)}
        wrong = ", ".join(f"{count} {name}" for name, count in bad.items())
        speed = f"{row['torch_us'] / row['ours_us']:.2f}x" if "ours_us" in row else ""
        cells.append((
            row["family"], str(row["kernels"]), str(sum(statuses.values())), str(statuses.get("pass", 0)), wrong,
            str(statuses.get("not run", "")), speed,
        ))  # fmt: skip
    return cells


def failures(results: Iterable[Result]) -> list[str]:
    """One line for each of the first :data:`MAX_FAILURES` failed cases."""
    bad = [r for r in results if r["status"] in BAD]
    lines = [f"{r['status']}: {r['kernel']}, {r['case']}: {r.get('why', '')}" for r in bad[:MAX_FAILURES]]
    return lines + ([f"and {len(bad) - MAX_FAILURES} more"] if len(bad) > MAX_FAILURES else [])
