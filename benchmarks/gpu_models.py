"""Times whole networks on a GPU: ``python -m benchmarks.gpu_models OUT``.

ResNet-18, 34 and 50 at 224x224, bfloat16 (or ``--dtypes fp16``), batch 1, 32 and 256; in eval mode, and with batch
statistics under ``no_grad`` (the result of a forgotten ``eval()``). resnet_fused, eager channels_last, and
torch.compile's default and freezing modes are captured in a CUDA graph each; max-autotune brings its own; JAX is
jitted. A contender that cannot be captured is timed without a graph, with a note. All are verified against fp64
(running statistics are restored), then interleaved and timed by events with L2 flushed before each sample; medians.
Writes ``OUT/models-<gpu>-<engine>.json`` and ``.md`` after each network and batch. TensorRT and Torch-TensorRT
need a separate run (``--contenders "TensorRT fp16,TensorRT int8"``); its files are named after them instead of the
engine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnet_fused import models

from . import gpu, jax_models, peers, tensorrt_models
from .timing import interleave
from .verify import Oracle
from .workloads import Workload, model

NETWORKS = {"ResNet-18": models.resnet18, "ResNet-34": models.resnet34, "ResNet-50": models.resnet50}
BATCHES = (1, 32, 256)
DTYPES = ("bf16", "fp16")
STATISTICS = ("running", "batch")
OURS, EAGER = "resnet_fused", "eager channels_last"
Contenders = dict[str, tuple[peers.Builder, bool]]
# The builder of each, and whether its calls are captured here.
CONTENDERS: Contenders = {
    OURS: (peers.ours, True),
    EAGER: (peers.channels_last, True),
    "torch.compile": (peers.compiled, True),
    "torch.compile freezing": (peers.frozen, True),
    "torch.compile max-autotune": (peers.max_autotune, False),
    "JAX": (jax_models.jitted, False),
    "TensorRT fp16": (tensorrt_models.fp16, True),
    "TensorRT int8": (tensorrt_models.int8, True),
    "Torch-TensorRT fp16": (tensorrt_models.through_torch, False),
}
COMPILED = [name for name in CONTENDERS if name.startswith("torch.compile")]
APART = [name for name in CONTENDERS if "TensorRT" in name]  # only in separate runs
USUAL = [name for name in CONTENDERS if name not in APART]
MISTAKEN = 3  # times our error limit: a peer may round differently, but a larger error is a mistake


@torch.no_grad()
def measure(
    wanted: Workload,
    contenders: Contenders,
    budget_s: float,
    device: torch.device,
    capture: gpu.Capture = gpu.captured,
) -> dict[str, Any]:
    """Medians and errors of every contender, or why it failed or was wrong."""
    torch._dynamo.reset()
    oracle = Oracle(wanted, device)
    running, notes, errors, failed = {}, {}, {}, {}
    restored = []
    for name, (builder, graph) in {EAGER: contenders[EAGER], **contenders}.items():  # the reference first
        try:
            contender = builder(wanted, device)
            call, result, note = contender.call, None, contender.note
            if graph:
                try:
                    call, result = capture(contender.call)
                    note = "; ".join(filter(None, (note, "CUDA graph")))
                except Exception as error:
                    note = f"not captured: {gpu.sentence(error)}"
            result = contender.output(contender.call() if result is None else result)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            errors[name] = oracle.error(result)
            limit = oracle.limit(errors.get(EAGER, float("nan"))) * (1 if name == OURS else MISTAKEN)
            if not (contender.quantises or errors[name] <= limit):
                raise WrongAnswer(f"error {errors[name]:.3g}, allowed {limit:.3g}, eager's is {errors.get(EAGER)}")
            running[name], notes[name] = call, note
            restored.append(contender.restore)
        except WrongAnswer as error:
            failed[name] = f"wrong: {error}"
        except Exception as error:  # a peer that cannot run is reported, not fatal
            failed[name] = gpu.sentence(error)
    for restore in restored:
        restore()
    samples = interleave(running, budget_s, device) if running else {}
    rows = {
        name: {
            "median_us": statistics.median(taken) * 1e6,
            "samples": len(taken),
            "images_per_s": wanted.shape[0] / statistics.median(taken),
            "error": errors[name],
            "relative_error": errors[name] / oracle.largest,
            "note": notes[name],
        }
        for name, taken in samples.items()
    }
    return {"contenders": rows, "failed": failed}


class WrongAnswer(Exception):
    """A contender's result is wrong: it is not timed."""


def table(results: dict[str, dict[str, Any]]) -> str:
    """Microseconds by network and contender, and ours against eager and against the best of torch.compile's modes."""
    names = [
        n for n in CONTENDERS if n in USUAL or any(n in (*r["contenders"], *r["failed"]) for r in results.values())
    ]
    lines = ["| network | " + " | ".join(names) + " | over eager | over compiled |"]
    lines.append("|---|" + "---|" * (len(names) + 2))
    for title, result in results.items():
        rows = {name: row["median_us"] for name, row in result["contenders"].items()}
        best = min((rows[name] for name in COMPILED if name in rows), default=None)
        ours = rows.get(OURS)
        ratios = [f"{other / ours:.2f}x" if ours and other else "" for other in (rows.get(EAGER), best)]
        lines.append(
            f"| {title} | " + " | ".join([*(f"{rows[n]:.0f}" if n in rows else "" for n in names), *ratios]) + " |"
        )
    whys = [f"- {title}, {name}: {why}" for title, r in results.items() for name, why in r["failed"].items()]
    notes = {f"- {n}: {row['note']}" for r in results.values() for n, row in r["contenders"].items() if row["note"]}
    notes |= {
        f"- {n}, {title}: off by {row['relative_error']:.1%} of the largest output"
        for title, r in results.items()
        for n, row in r["contenders"].items()
        if "int8" in n
    }
    return "\n".join(
        ["Microseconds, medians.", "", *lines, "", *sorted(notes), *(["", "Not measured:", *whys] if whys else [])]
    )


def write(out: Path, report: dict[str, Any]) -> Path:
    """The JSON, and the table beside it."""
    known = report["environment"]
    path = gpu.path(out, "models", known)
    gpu.write(path, report)
    head = ", ".join(f"{key} {value}" for key, value in known.items())
    path.with_suffix(".md").write_text(f"{head}\n\n{table(report['models'])}\n")
    return path


def run(
    out: Path,
    engine: str = gpu.PLANNED,
    budget: float = 2.0,
    contenders: Sequence[str] = tuple(USUAL),
    networks: Sequence[str] = tuple(NETWORKS),
    *,
    batches: Sequence[int] = BATCHES,
    dtypes: Sequence[str] = DTYPES[:1],
    statistics: Sequence[str] = STATISTICS,
    seconds: float | None = None,
    device: str = "cuda",
    capture: gpu.Capture = gpu.captured,
) -> dict[str, Any]:
    """Measures ``networks`` with our kernels from ``engine``. Writes the report after each and returns it.

    ``budget`` is seconds of timing a network, batch, dtype and kind of statistics. After ``seconds`` none of these
    begins; the report's ``left_out`` names the rest. Eager runs always, as the yardstick.
    """
    for what, asked, known in (
        ("contenders", contenders, CONTENDERS), ("networks", networks, NETWORKS),
        ("dtypes", dtypes, DTYPES), ("statistics", statistics, STATISTICS),
    ):  # fmt: skip
        gpu.require(what, asked, known)
    torch.backends.cudnn.benchmark = True  # lets peers use their best algorithms
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # otherwise JAX reserves most of the GPU's memory
    late, where = gpu.deadline(seconds), torch.device(device)
    chosen = {name: CONTENDERS[name] for name in dict.fromkeys([EAGER, *contenders])}
    others = [name for name in contenders if name != EAGER] or [EAGER]
    measured: dict[str, Any] = {}
    environment = gpu.environment(engine if OURS in contenders else " ".join(others), where)
    report: dict[str, Any] = {"environment": environment, "models": measured, "left_out": []}
    for kind, network, dtype, batch in itertools.product(statistics, networks, dtypes, batches):
        wanted = model(network, NETWORKS[network], batch, dtype, kind == "batch")
        title = " ".join(filter(None, (wanted.title, "batch", str(batch), "" if dtype == DTYPES[0] else dtype)))
        if late():
            report["left_out"].append(title)
            continue
        with gpu.engine(engine, where):
            measured[title] = measure(wanted, chosen, budget, where, capture)
        write(Path(out), report)
        cells = [f"{name} {row['median_us']:.0f} us" for name, row in measured[title]["contenders"].items()]
        print(f"{title}: {'; '.join(cells)}", flush=True)
        for name, why in measured[title]["failed"].items():
            print(f"  {name}: {why}", flush=True)
    write(Path(out), report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints the table, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timing a network and batch (%(default)s)")
    parser.add_argument("--seconds", type=float, help="no network begins after so many")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="(%(default)s)")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="(%(default)s)")
    parser.add_argument("--dtypes", default=DTYPES[0], help=f"of {','.join(DTYPES)} (%(default)s)")
    parser.add_argument("--statistics", default=",".join(STATISTICS), help="(%(default)s)")
    parser.add_argument("--contenders", default=",".join(USUAL), help=f"of {','.join(CONTENDERS)} (%(default)s)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device: this measures GPU kernels")
    try:
        report = run(
            args.out, gpu.engine_asked_for(), args.budget, args.contenders.split(","), args.networks.split(","),
            batches=[int(batch) for batch in args.batches.split(",")], dtypes=args.dtypes.split(","),
            statistics=args.statistics.split(","), seconds=args.seconds,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    print(table(report["models"]))
    if broken := [title for title, result in report["models"].items() if OURS in result["failed"]]:
        raise SystemExit(f"resnet_fused failed on {', '.join(broken)}")


if __name__ == "__main__":
    main()
