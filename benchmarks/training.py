"""Times a training step (forward, backward, SGD) of blocks and of ResNet-18 and -50, contenders in turn.

    python -m benchmarks.training --out results             # everything
    python -m benchmarks.training --quick                   # four blocks and ResNet-18, small: minutes
    python -m benchmarks.training --device cuda --batch 256 --dtypes bf16
    python -m benchmarks.training --only "ResNet-18" --dtypes fp32 --contenders eager_cl,ours --budget 60

Writes ``training.json`` and ``training.md`` to ``--out`` after every workload, and prints the tables at the end: images
per second, and the bytes that autograd keeps (counted, parameters left out). bf16 is autocast's. Rules are README.md's:
one seed, verified before timed, interleaved, medians; a contender that fails is named with its reason.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from resnet_fused import ops
from resnet_fused.cli import _machine

from .timing import Call, interleave
from .trainee import CONTENDERS, Trainee, Workload, verify, workloads
from .training_report import report

QUICK = ("basic 128@28", "bottleneck 128@28", "preact 128@28", "preact bottleneck 128@28", "ResNet-18")


def measure(
    workload: Workload, dtype: str, names: list[str], budget_s: float, device: torch.device
) -> list[dict[str, Any]]:
    """A row for each contender: its samples, what it keeps, its gradients' error, or why there are none."""
    torch._dynamo.reset()
    trainees, rows = {}, {}
    for name in names:
        rows[name] = {"workload": workload.title, "dtype": dtype, "contender": name, "batch": workload.shape[0]}
        try:
            trainees[name] = Trainee(workload, name, dtype, device)
            if CONTENDERS[name][1]:
                trainees[name].step()  # compiles
        except Exception as error:
            if not CONTENDERS[name][1]:
                raise
            trainees.pop(name, None)
            rows[name]["unavailable"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    errors = verify(workload, dtype, trainees)
    calls: dict[str, Call] = {}
    for name, trainee in trainees.items():
        rows[name]["error"] = errors[name]
        if not CONTENDERS[name][1]:  # a compiled step decides for itself what it keeps
            rows[name]["kept_bytes"] = trainee.saved_bytes()
        calls[name] = trainee.step
    for name, samples in interleave(calls, budget_s, device).items():
        seconds = statistics.median(samples)
        if device.type == "cuda":
            rows[name]["peak_bytes"] = trainees[name].peak_bytes()
        rows[name] |= {"samples_s": samples, "median_s": seconds, "images_per_s": workload.shape[0] / seconds}
    return list(rows.values())


def chosen(args: argparse.Namespace) -> list[Workload]:
    return [w for w in workloads(args.batch) if args.only in w.title and (not args.quick or w.title in QUICK)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=0, help="images a step: 32, with --quick 8")
    parser.add_argument("--only", default="", help="workloads whose title contains this")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--contenders", default="", help=f"of {','.join(CONTENDERS)}; with --quick nothing is compiled")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of timing a workload and dtype: 15, quick 3")
    parser.add_argument("--quick", action="store_true", help="a block of each kind and ResNet-18 at batch 8")
    parser.add_argument("--out", type=Path, help="folder for training.json and training.md")
    args = parser.parse_args()
    args.batch = args.batch or (8 if args.quick else 32)
    budget_s = args.budget or (3.0 if args.quick else 15.0)
    some = args.contenders or ",".join(n for n, (_, compiled, _) in CONTENDERS.items() if not (args.quick and compiled))
    names = list(dict.fromkeys(["eager", *some.split(",")]))  # eager is correctness's yardstick
    run: dict[str, Any] = {"machine": _machine.record(args.device), "rows": []}
    out, run["options"] = args.out, {k: v if isinstance(v, int | float) else str(v) for k, v in vars(args).items()}
    start = time.monotonic()
    for workload in chosen(args):
        for dtype in args.dtypes.split(","):
            run["rows"] += measure(workload, dtype, names, budget_s, args.device)
            ops.release_memory()  # what one workload kept is no use to the next, and ResNet-50 kept gigabytes
            print(f"{time.monotonic() - start:6.0f} s  {workload.title} {dtype}", flush=True)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                (out / "training.json").write_text(json.dumps(run, indent=1))
                (out / "training.md").write_text(report(run))
    print(report(run))


if __name__ == "__main__":
    main()
