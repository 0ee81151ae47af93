"""Writes a report: figures and ``results.json`` in a folder, and the tables into a file or into the study's page."""

import json
from pathlib import Path

from . import figures
from .report import Report, Table

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def write(report: Report, record: dict, folder: Path) -> None:
    """Writes ``<figure>.svg`` and ``results.json`` to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in report.figures.items():
        figures.save(figure, folder / f"{name}.svg")
    stored = {
        "run": record,
        "data": report.data,
        "tables": [vars(table) for table in report.tables],
        "agreement": [{**vars(a), "verdict": a.verdict} for a in report.agreements],
        "numbers": report.numbers,
    }
    (folder / "results.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def measured(report: Report, record: dict, folder: str) -> str:
    """The figures, tables and provenance in Markdown. ``folder`` is where the figures are, ending in "/" or empty."""
    parts = [f"![{name.replace('_', ' ')}]({folder}{name}.svg)" for name in report.figures]
    parts += [table.markdown() for table in report.tables]
    parts += _agreement(report)
    seeds = ", ".join(map(str, record["seeds"]))
    parts.append(
        f"Data: {report.data}. Seeds {seeds}; mean and, in brackets or as a band, the range over seeds. "
        f"Measured on {record['cpu'].rpartition(', ')[0]}, in processes of one thread, {record['date'][:10]}, "
        f"commit {record['commit']}, torch {record['torch']}: `{record['command']}`."
    )
    return "\n\n".join(parts) + "\n"


def update_page(page: Path, text: str) -> None:
    """Replaces what stands between the page's two markers.

    Raises:
        ValueError: the page does not hold both markers.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} must hold the lines {BEGIN} and {END}")
    page.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


def _agreement(report: Report) -> list[str]:
    """A folded table, which GitHub and the site unfold."""
    rows = tuple((a.what, f"{a.difference:.2g}", f"{a.limit:.2g}", a.unit, a.verdict) for a in report.agreements)
    table = Table("", ("compared", "difference", "allowed", "unit", "agree"), rows).markdown()
    verdicts = [a.verdict for a in report.agreements]
    counts = f"{verdicts.count('yes')} of {len(rows)} comparisons agree, {verdicts.count('cannot tell')} cannot tell"
    summary = f"<summary>Eager against fused blocks: {counts}</summary>"
    return [f"<details>{summary}", table, "</details>"]
