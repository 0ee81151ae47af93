"""Tables of benchmark results, rendered as Markdown or in a terminal."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from ._bench_results import OURS, Entry, Results, Row

MISSING = "n/a"
LOSS = "▼ "  # marks a ratio below 1
NAMES = {"model": "Models", "block": "Blocks"}


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False
    loss: bool = False


@dataclass(frozen=True)
class Grid:
    title: str
    header: list[str]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        lines = ["|" + "|".join(self.header) + "|", "|---" + "|---:" * (len(self.header) - 1) + "|"]
        for row in self.rows:
            lines.append("|" + "|".join(f"**{c.text}**" if c.best else c.text for c in row) + "|")
        return f"### {self.title}\n\n" + "\n".join(lines)

    def table(self) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        for i, name in enumerate(self.header):
            table.add_column(name, justify="right" if i else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(c.text, "bold green" if c.best else "red" if c.loss else "") for c in row))
        return table


def speed_grids(results: Results) -> list[Grid]:
    """For each kind and dtype: the speed of all contenders, ours relative to each peer, and latency at batch 1."""
    grids = []
    for kind, dtype, rows in results.sections():
        grids.append(_speed(results, kind, dtype, rows))
        if results.has_ours:
            grids.append(_ratios(results, kind, dtype, rows))
        if single := [row for row in rows if any(entry.p50_ms is not None for entry in row.entries.values())]:
            grids.append(_latency(results, kind, dtype, single))
    return grids


def _speed(results: Results, kind: str, dtype: str, rows: list[Row]) -> Grid:
    labels = results.labels(rows)
    unit = "images per second" if kind == "model" else "milliseconds"
    cells = [[Cell(row.workload), Cell(str(row.batch)), *(_speed_cell(row, name) for name in labels)] for row in rows]
    return Grid(f"{NAMES[kind]}, {dtype}: {unit}", [kind, "batch", *labels.values()], cells)


def _speed_cell(row: Row, name: str) -> Cell:
    if name not in row.entries:
        return Cell(MISSING)
    entry = row.entries[name]
    text = number(entry.images_per_s if row.kind == "model" else entry.median_ms)
    return Cell(text, best=row.winner() == name)


def _ratios(results: Results, kind: str, dtype: str, rows: list[Row]) -> Grid:
    peers = results.peers(rows)
    cells = [[Cell(row.workload), Cell(str(row.batch)), *(_ratio_cell(row.ratio(p)) for p in peers)] for row in rows]
    title = f"{NAMES[kind]}, {dtype}: how many times as fast resnet_fused is as ..."
    return Grid(title, [kind, "batch", *peers.values()], cells)


def _ratio_cell(ratio: float | None) -> Cell:
    if ratio is None:
        return Cell(MISSING)
    return Cell(f"{LOSS if ratio < 1 else ''}{ratio:.2f}", loss=ratio < 1)


def _latency(results: Results, kind: str, dtype: str, rows: list[Row]) -> Grid:
    labels = results.labels(rows)
    cells = [[Cell(row.workload), *(_latency_cell(row.entries.get(name)) for name in labels)] for row in rows]
    return Grid(f"{NAMES[kind]}, {dtype}, batch 1: p50 / p99, ms per call", [kind, *labels.values()], cells)


def _latency_cell(entry: Entry | None) -> Cell:
    if entry is None or entry.p50_ms is None:
        return Cell(MISSING)
    return Cell(f"{number(entry.p50_ms)} / {MISSING if entry.p99_ms is None else number(entry.p99_ms)}")


def detail_grid(results: Results) -> Grid:
    """Throughput, bandwidth, spread, peak memory and errors of ours for each workload."""
    header = [
        "workload", "TFLOP/s", "GB/s", "IQR, % of median", "calls",
        "peak MiB, eager", "peak MiB, eager channels_last", "peak MiB, ours",
        "error, eager", "error, ours", "error allowed",
    ]  # fmt: skip
    rows = [_detail_row(row) for row in results.rows if OURS in row.entries]
    return Grid("resnet_fused in detail", header, rows)


def _detail_row(row: Row) -> list[Cell]:
    ours = row.entries[OURS]
    eager = row.entries.get("eager")
    peaks = [_peak(row.entries.get(name)) for name in ("eager", "eager_cl", OURS)]
    texts = [
        row.title,
        number(ours.tflops),
        number(ours.gbytes_per_s),
        f"{100 * ours.iqr_ms / ours.median_ms:.1f}",
        str(ours.rounds),
        *peaks,
        f"{eager.error:.2g}" if eager else MISSING,
        f"{ours.error:.2g}",
        f"{ours.error_limit:.2g}",
    ]
    return [Cell(text) for text in texts]


def _peak(entry: Entry | None) -> str:
    return MISSING if entry is None or entry.peak_mib is None else number(entry.peak_mib)


def losses(results: Results) -> list[str]:
    """One sentence for each workload and peer where the peer is faster, the largest loss first."""
    found = []
    for row in results.rows:
        for name, label in results.peers([row]).items():
            ratio = row.ratio(name)
            if ratio is not None and ratio < 1:
                found.append((ratio, f"{row.title}: {label} is {1 / ratio:.2f} times as fast"))
    return [sentence for _, sentence in sorted(found)]


def not_measured(results: Results) -> list[str]:
    """Each reason once, with the number of workloads it applies to."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in results.rows:
        for label, reason in row.unavailable.items():
            reasons.setdefault((label, reason), []).append(row.title)
    return [
        f"{label}: {reason} ({titles[0] if len(titles) == 1 else f'{len(titles)} workloads'})"
        for (label, reason), titles in reasons.items()
    ]


def spread(results: Results) -> float:
    """Median over all cells of IQR / median."""
    return statistics.median(e.iqr_ms / e.median_ms for row in results.rows for e in row.entries.values())


def notes(results: Results) -> list[str]:
    """The contenders' notes on how they ran."""
    found = {f"{e.label}, {row.dtype}: {e.note}" for row in results.rows for e in row.entries.values() if e.note}
    return sorted(found)


def number(value: float) -> str:
    """Three significant digits, no exponent."""
    magnitude = math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{max(0, 2 - magnitude)}f}"


def bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences)
