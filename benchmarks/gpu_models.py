"""Times whole networks on a GPU: ``python -m benchmarks.gpu_models OUT``.

ResNet-18, 34 and 50 at 224x224, bfloat16, batch 1, 32 and 256. Ours, eager channels_last, and torch.compile's default
and freezing modes are captured in a CUDA graph each; max-autotune brings its own; JAX is jitted. Who cannot be
captured is timed as it is, and says so. Everyone is verified against fp64 first, then timed in turn by events with L2
flushed before each sample; medians. Writes ``OUT/models-<gpu>-<engine>.json`` and ``.md`` after each network and batch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from resnet_fused import models

from . import jax_models, peers
from .gpu_kernels import captured, environment
from .timing import interleave
from .verify import Oracle
from .workloads import Workload

NETWORKS = {"ResNet-18": models.resnet18, "ResNet-34": models.resnet34, "ResNet-50": models.resnet50}
BATCHES = (1, 32, 256)
OURS, EAGER = "resnet_fused", "eager channels_last"
# What builds each, and whether its calls are to be captured here.
CONTENDERS: dict[str, tuple[peers.Builder, bool]] = {
    OURS: (peers.ours, True),
    EAGER: (peers.channels_last, True),
    "torch.compile": (peers.compiled, True),
    "torch.compile freezing": (peers.frozen, True),
    "torch.compile max-autotune": (peers.max_autotune, False),
    "JAX": (jax_models.jitted, False),
}
COMPILED = [name for name in CONTENDERS if name.startswith("torch.compile")]

Capture = Callable[[Callable[[], object]], tuple[Callable[[], object], object]]


def workload(network: str, batch: int) -> Workload:
    return Workload("model", network, (batch, 3, 224, 224), "bf16", NETWORKS[network])


@torch.no_grad()
def measure(
    wanted: Workload,
    contenders: dict[str, tuple[peers.Builder, bool]],
    budget_s: float,
    device: torch.device,
    capture: Capture = captured,  # type: ignore[assignment]
) -> dict:
    """Medians and errors of every contender; who fails has the reason instead, and so has ours if it is wrong."""
    torch._dynamo.reset()
    oracle = Oracle(wanted)
    running, notes, errors, failed = {}, {}, {}, {}
    for name, (builder, graph) in {EAGER: contenders[EAGER], **contenders}.items():  # the yardstick first
        try:
            contender = builder(wanted, device)
            call, result, note = contender.call, None, contender.note
            if graph:
                try:
                    call, result = capture(contender.call)
                    note = "CUDA graph"
                except Exception as error:
                    note = f"not captured: {_sentence(error)}"
            result = contender.output(contender.call() if result is None else result)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            errors[name] = oracle.error(result)
            running[name], notes[name] = call, note
        except Exception as error:  # a peer that cannot run is reported, not fatal
            failed[name] = _sentence(error)
    if OURS in running and not errors[OURS] <= oracle.limit(errors.get(EAGER, float("nan"))):
        failed[OURS] = f"wrong: error {errors[OURS]:.3g}, eager's is {errors.get(EAGER)}"
        del running[OURS]
    samples = interleave(running, budget_s, device) if running else {}
    rows = {
        name: {
            "median_us": statistics.median(taken) * 1e6,
            "samples": len(taken),
            "images_per_s": wanted.shape[0] / statistics.median(taken),
            "error": errors[name],
            "note": notes[name],
        }
        for name, taken in samples.items()
    }
    return {"contenders": rows, "failed": failed}


def table(results: dict[str, dict]) -> str:
    """Microseconds by network and contender, and ours against eager and against the best of torch.compile's modes."""
    names = list(CONTENDERS)
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
    return "\n".join(
        ["Microseconds, medians.", "", *lines, "", *sorted(notes), *(["", "Not measured:", *whys] if whys else [])]
    )


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def write(out: Path, engine: str, results: dict[str, dict]) -> Path:
    known = environment(engine)
    slug = re.sub(r"[^a-z0-9]+", "-", f"{known['gpu']} {engine}".lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"models-{slug}.json"
    path.write_text(json.dumps({"environment": known, "models": results}, indent=1))
    head = ", ".join(f"{key} {value}" for key, value in known.items())
    path.with_suffix(".md").write_text(f"{head}\n\n{table(results)}\n")
    return path


def main() -> None:
    """Measures, prints the table, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of timing a network and batch (%(default)s)")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="(%(default)s)")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="(%(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="(%(default)s)")
    args = parser.parse_args()
    chosen = args.contenders.split(",")
    for what, asked, known in (("contenders", chosen, CONTENDERS), ("networks", args.networks.split(","), NETWORKS)):
        if unknown := set(asked) - set(known):
            parser.error(f"--{what} names {', '.join(sorted(unknown))}; any of {', '.join(known)} expected")
    if not torch.cuda.is_available():
        parser.error("no CUDA device: this measures GPU kernels")
    torch.backends.cudnn.benchmark = True  # the peers at their best
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax would take the GPU's memory for itself
    engine = os.environ.get("RESNET_FUSED_CUDA_ENGINE") or "planned"
    contenders = {name: CONTENDERS[name] for name in dict.fromkeys([EAGER, *chosen])}
    results: dict[str, dict] = {}
    for network, batch in itertools.product(args.networks.split(","), map(int, args.batches.split(","))):
        title = f"{network} batch {batch}"
        results[title] = measure(workload(network, batch), contenders, args.budget, torch.device("cuda"))
        path = write(args.out, engine, results)
        cells = [f"{name} {row['median_us']:.0f} us" for name, row in results[title]["contenders"].items()]
        print(f"{title}: {'; '.join(cells)}", flush=True)
        for name, why in results[title]["failed"].items():
            print(f"  {name}: {why}", flush=True)
    print(f"{table(results)}\n{path}")
    if broken := [title for title, result in results.items() if OURS in result["failed"] and OURS in chosen]:
        raise SystemExit(f"resnet_fused failed on {', '.join(broken)}")


if __name__ == "__main__":
    main()
