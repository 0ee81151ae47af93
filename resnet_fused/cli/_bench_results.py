"""Reads the JSON of ``pytest benchmarks`` into one :class:`Row` per workload."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._errors import CommandError

OURS = "ours"
VARIANTS = ("ours_frozen", "ours_compile")  # variants of ours, not peers


@dataclass(frozen=True)
class Entry:
    """One contender on one workload. Times in milliseconds, memory in MiB."""

    label: str
    median_ms: float
    iqr_ms: float
    min_ms: float
    rounds: int
    images_per_s: float
    tflops: float
    gbytes_per_s: float
    error: float
    error_limit: float
    peak_mib: float | None
    note: str
    p50_ms: float | None = None  # at batch 1 only, as p99
    p99_ms: float | None = None  # None also if there were too few calls


@dataclass
class Row:
    """One workload: the contenders that ran, and the reasons why others did not (label -> reason)."""

    kind: str  # "block" or "model"
    workload: str
    dtype: str
    batch: int
    entries: dict[str, Entry] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.workload} {self.dtype} batch {self.batch}"

    def winner(self) -> str:
        return min(self.entries, key=lambda name: self.entries[name].median_ms)

    def ratio(self, peer: str) -> float | None:
        """Speed of ours relative to ``peer`` (peer's median time / ours); None if either did not run."""
        if OURS not in self.entries or peer not in self.entries:
            return None
        return self.entries[peer].median_ms / self.entries[OURS].median_ms


@dataclass
class Results:
    """All rows of one machine, and the runs they come from, oldest first."""

    device: str
    runs: list[dict[str, Any]]
    rows: list[Row]

    @property
    def slug(self) -> str:
        """The machine's name as a folder name."""
        return re.sub(r"[^a-z0-9]+", "-", self.device.lower()).strip("-")

    def labels(self, rows: Iterable[Row]) -> dict[str, str]:
        """Contender -> label, for those that ran in any of ``rows``, in the order of the row with the most."""
        fullest_first = sorted(rows, key=lambda row: -len(row.entries))
        return {name: entry.label for row in fullest_first for name, entry in row.entries.items()}

    def peers(self, rows: Iterable[Row]) -> dict[str, str]:
        """:meth:`labels` without ours and its variants."""
        labels = self.labels(rows)
        return {name: label for name, label in labels.items() if name not in (OURS, *VARIANTS)}

    @property
    def has_ours(self) -> bool:
        return any(OURS in row.entries for row in self.rows)

    def sections(self) -> list[tuple[str, str, list[Row]]]:
        """``(kind, dtype, rows)`` for each kind and dtype, models first."""
        keys = list(dict.fromkeys((row.kind, row.dtype) for row in self.rows))
        keys.sort(key=lambda key: key[0] != "model")
        return [(k, d, [r for r in self.rows if (r.kind, r.dtype) == (k, d)]) for k, d in keys]


def load(paths: Sequence[Path]) -> list[Results]:
    """One :class:`Results` per machine. If several files contain the same workload, the latest counts."""
    machines: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        document = _read(path)
        machines.setdefault(document["machine_info"]["resnet_fused"]["device"], []).append(document)
    return [_merge(device, documents) for device, documents in machines.items()]


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict) or "resnet_fused" not in document.get("machine_info", {}):
        raise CommandError(f"{path} is not a results file of `pytest benchmarks --benchmark-json`")
    return document


def _merge(device: str, documents: list[dict[str, Any]]) -> Results:
    documents = sorted(documents, key=lambda document: document["datetime"])
    rows: dict[tuple[str, str, str, int], Row] = {}
    for document in documents:
        rows.update(_rows(document["benchmarks"]))  # whole rows: contenders are comparable only within a run
    return Results(
        device,
        [document["machine_info"]["resnet_fused"] for document in documents],
        list(rows.values()),
    )


def _rows(benchmarks: list[dict[str, Any]]) -> dict[tuple[str, str, str, int], Row]:
    rows: dict[tuple[str, str, str, int], Row] = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        key = (info["kind"], info["workload"], info["dtype"], info["batch"])
        row = rows.setdefault(key, Row(*key))
        row.entries[info["contender"]] = _entry(info, benchmark["stats"])
        row.unavailable.update(info["unavailable"])
    return rows


def _entry(info: dict[str, Any], stats: dict[str, Any]) -> Entry:
    peak = info["peak_bytes"]
    return Entry(
        label=info["label"],
        median_ms=stats["median"] * 1e3,
        iqr_ms=stats["iqr"] * 1e3,
        min_ms=stats["min"] * 1e3,
        rounds=stats["rounds"],
        images_per_s=info["images_per_s"],
        tflops=info["tflops"],
        gbytes_per_s=info["gbytes_per_s"],
        error=info["error"],
        error_limit=info["error_limit"],
        peak_mib=None if peak is None else peak / 2**20,
        note=info["note"],
        p50_ms=info.get("p50_ms"),
        p99_ms=info.get("p99_ms"),
    )
