"""Formats the JSON of a training run as Markdown: images per second, then the bytes that autograd saves."""

import statistics
from typing import Any

LABELS = {
    "eager": "eager",
    "eager_cl": "eager channels_last",
    "eager_cl_graph": "eager channels_last, CUDA graph",
    "compile": "torch.compile",
    "ours": "resnet_fused",
    "ours_graph": "resnet_fused, CUDA graph",
    "ours_recompute": "resnet_fused, recompute",
    "ours_compile": "resnet_fused + torch.compile",
}


def report(run: dict[str, Any]) -> str:
    """The tables and the run's conditions."""
    rows = run["rows"]
    names = [name for name in LABELS if any(row["contender"] == name for row in rows)]
    cases: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        cases.setdefault((row["workload"], row["dtype"], row["batch"]), {})[row["contender"]] = row
    machine = run["machine"]
    lines = [
        "Images per second of a step (forward, backward, SGD); in brackets, resnet_fused's ratio to that peer.",
        "bf16 is autocast. Medians of interleaved rounds; spread is the interquartile range of resnet_fused's samples.",
        "",
        f"| | batch | {' | '.join(LABELS[name] for name in names)} | spread |",
        f"|---|---:|{'---:|' * (len(names) + 1)}",
    ]
    for (workload, dtype, batch), case in cases.items():
        cells = [_speed(case.get(name), case.get("ours")) for name in names]
        lines.append(f"| {workload} {dtype} | {batch} | {' | '.join(cells)} | {_spread(case.get('ours'))} |")
    counted = [name for name in ("eager", "ours", "ours_recompute") if name in names]
    lines += [
        "",
        "MiB that autograd keeps for the backward pass, counted with its own hooks; in brackets, of eager's.",
        "Errors are gradients' relative L2 distances from float64, of two images.",
        "",
        f"| | {' | '.join(LABELS[name] for name in counted)} | error, eager | error, resnet_fused |",
        f"|---|{'---:|' * (len(counted) + 2)}",
    ]
    for (workload, dtype, _), case in cases.items():
        cells = [_kept(case.get(name), case.get("eager")) for name in counted]
        cells += [_error(case.get("eager") or case.get("eager_cl")), _error(case.get("ours"))]
        lines.append(f"| {workload} {dtype} | {' | '.join(cells)} |")
    if any("peak_bytes" in row for row in rows):
        lines += ["", "Peak MiB of a step beyond what was allocated before it.", ""]
        lines += [f"| | {' | '.join(LABELS[name] for name in names)} |", f"|---|{'---:|' * len(names)}"]
        for (workload, dtype, _), case in cases.items():
            peaks = [case.get(name, {}).get("peak_bytes") for name in names]
            cells = ["" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks]
            lines.append(f"| {workload} {dtype} | {' | '.join(cells)} |")
    missing = [
        f"- {LABELS[r['contender']]}, {r['workload']} {r['dtype']}: {r['unavailable']}"
        for r in rows
        if "unavailable" in r
    ]
    lines += ["", *(["Not measured:", *missing, ""] if missing else [])]
    lines.append(
        f"{machine['device']}, torch {machine['torch']}, load average before the run {machine['load_average']}; "
        f"{machine['date'][:10]}, commit {machine['commit']}"
    )
    return "\n".join(lines) + "\n"


def _speed(row: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    if row is None or "median_s" not in row:
        return ""
    shown = f"{row['images_per_s']:.1f}"
    if row is ours or ours is None or "median_s" not in ours:
        return f"**{shown}**"
    return f"{shown} ({row['median_s'] / ours['median_s']:.2f}x)"


def _error(row: dict[str, Any] | None) -> str:
    return f"{row['error']:.1e}" if row and "error" in row else ""


def _spread(row: dict[str, Any] | None) -> str:
    if row is None or "samples_s" not in row:
        return ""
    low, _, high = statistics.quantiles(row["samples_s"], n=4)
    return f"{100 * (high - low) / row['median_s']:.0f} %"


def _kept(row: dict[str, Any] | None, eager: dict[str, Any] | None) -> str:
    if row is None or "kept_bytes" not in row:
        return ""
    shown = f"{row['kept_bytes'] / 2**20:.1f}"
    return shown if eager is None or row is eager else f"{shown} ({row['kept_bytes'] / eager['kept_bytes']:.2f})"
