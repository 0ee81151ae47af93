"""The demo's results as a rich table, Markdown and JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from .digits import DigitsResult
from .settings import Settings
from .speed import EAGER, Row

HEADER = ("model", "dtype", "variant", "images/s", "x eager", "error", "agree")


DIGITS = "A small residual network trained on scikit-learn's handwritten digits, then converted."
PHOTOS = (
    "Batches of {batch} crops of {size}x{size} pixels from scikit-learn's two photographs. Weights "
    "are random (pretrained weights would need a download); BatchNorm statistics are computed on the crops. Medians "
    "of {rounds} interleaved rounds. All variants but the first run in channels_last; torch.compile "
    "freezes the weights."
)
ERROR = (
    "Error is max|y - reference| / max|reference| of the logits; the reference is fp64 with the "
    "same rounded parameters. The fused error may be at most twice eager's plus 4 ulps. Agree counts the "
    "images whose argmax equals eager's."
)


def cells(rows: list[Row], batch: int) -> list[tuple[str, ...]]:
    """``rows`` as text, one tuple of ``HEADER``'s length each."""
    eager = {(r.model, r.dtype): r.images_per_second for r in rows if r.variant == EAGER}
    text: list[tuple[str, ...]] = []
    for r in rows:
        speed = r.images_per_second
        base = eager.get((r.model, r.dtype))
        text.append(
            (
                r.model,
                r.dtype,
                r.variant,
                f"{speed:.1f}" if speed else r.status,
                f"{speed / base:.2f}" if speed and base else "",
                f"{r.error:.1e}" if r.error is not None else "",
                f"{r.same_predictions}/{batch}" if r.same_predictions is not None else "",
            )
        )
    return text


def table(rows: list[Row], batch: int) -> Table:
    """The table for the terminal, with a rule between networks and dtypes."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(HEADER):
        shown.add_column(name, justify="left" if i < 3 else "right", no_wrap=True)
    previous = None
    for row, text in zip(rows, cells(rows, batch), strict=True):
        if previous not in (None, (row.model, row.dtype)):
            shown.add_section()
        previous = (row.model, row.dtype)
        shown.add_row(*text)
    return shown


def notes(rows: list[Row]) -> list[str]:
    """The reasons why rows have no speed."""
    return [f"{r.variant}, {r.model} {r.dtype}: {r.note}" for r in rows if r.note]


def digits_sentence(digits: DigitsResult) -> str:
    """Accuracy before and after conversion, in one sentence."""
    return (
        f"Held-out accuracy {digits.accuracy_eager:.2%} eager, {digits.accuracy_fused:.2%} fused; "
        f"{digits.same_predictions} of {digits.images} predictions are the same "
        f"(trained in {digits.seconds:.0f} s)."
    )


def markdown(
    machine: dict[str, Any],
    settings: Settings,
    digits: DigitsResult,
    rows: list[Row],
    failures: list[str],
) -> str:
    """The report in Markdown."""
    lines = [
        "# resnet_fused demo",
        "",
        f"{machine['device']}; torch {machine['torch']}; {machine['date']}; commit {machine['commit'] or 'unknown'}; "
        f"load average {machine['load_average']} at the start.",
        "",
        "## A trained network keeps its predictions",
        "",
        f"{DIGITS} {digits_sentence(digits)}",
        "",
        "## Speed",
        "",
        PHOTOS.format(batch=settings.batch, size=settings.size, rounds=_rounds(rows)),
        "",
        ERROR,
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * 3 + "---:|" * (len(HEADER) - 3),
        *("| " + " | ".join(c.replace("|", "\\|") for c in text) + " |" for text in cells(rows, settings.batch)),
        "",
    ]
    for note in notes(rows):
        lines += [note, ""]
    if settings.omitted:
        lines += [f"Omitted from this short run: {'; '.join(settings.omitted)}.", ""]
    lines += [f"**FAILED** {failure}." for failure in failures] or ["All checks passed."]
    return "\n".join(lines) + "\n"


def _rounds(rows: list[Row]) -> str:
    counts = sorted({r.rounds for r in rows if r.rounds})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def write(
    out: Path,
    machine: dict[str, Any],
    settings: Settings,
    digits: DigitsResult,
    rows: list[Row],
    failures: list[str],
) -> None:
    """Writes ``demo.md`` and ``demo.json`` to ``out``."""
    (out / "demo.md").write_text(markdown(machine, settings, digits, rows, failures))
    content = {
        "machine": machine,
        "settings": dataclasses.asdict(settings) | {"device": str(settings.device)},
        "digits": dataclasses.asdict(digits),
        "inference": [dataclasses.asdict(row) for row in rows],
        "failures": failures,
    }
    (out / "demo.json").write_text(json.dumps(content, indent=2) + "\n")
