"""Times a training step (forward, backward, SGD) of blocks and of ResNet-18 and -50, contenders in turn.

    python -m benchmarks.training --out results             # everything
    python -m benchmarks.training --quick                   # four blocks and ResNet-18, small: minutes
    python -m benchmarks.training --device cuda --only ResNet --batch 256,32 --out results
    python -m benchmarks.training --only "ResNet-18" --dtypes fp32 --contenders eager_cl,ours --budget 60

Writes ``training.json`` and ``training.md`` to ``--out`` (on CUDA ``training-<gpu>-<engine>``) after every workload.
Prints the tables at the end: images per second, and bytes saved by autograd (counted, without parameters). On CUDA,
events time the steps, contenders without compilation are measured and written first, and peak memory is reported.
bf16 means autocast. README.md has the rules: one seed, verification before timing, interleaving, medians. A failed
contender is listed with the reason.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnet_fused import ops
from resnet_fused.cli import _machine

from . import gpu
from .timing import Call, interleave
from .trainee import CONTENDERS, GRAPHED, YARDSTICKS, Trainee, Workload, verify, workloads
from .training_report import report

QUICK = ("basic 128@28", "bottleneck 128@28", "preact 128@28", "preact bottleneck 128@28", "ResNet-18")
NETWORKS = ("ResNet-50", "ResNet-18")
USUAL = {
    "cpu": tuple(name for name in CONTENDERS if name not in GRAPHED),
    "cuda": ("eager_cl", "eager_cl_graph", "ours", "ours_graph", "ours_recompute", "compile"),
}
DTYPES = {"cpu": "fp32,bf16", "cuda": "bf16"}
BATCHES = {"cpu": "32", "cuda": "256,32"}
PROFILED_STEPS = 3
Rows = dict[str, dict[str, Any]]  # contender -> row


def measure(workload: Workload, dtype: str, names: Sequence[str], budget_s: float, device: torch.device) -> Rows:
    """A row for each contender: samples, saved bytes, gradient error, or why there are none."""
    torch._dynamo.reset()
    trainees: dict[str, Trainee] = {}
    rows: Rows = {}
    for name in names:
        rows[name] = {"workload": workload.title, "dtype": dtype, "contender": name, "batch": workload.shape[0]}
        try:
            trainees[name] = Trainee(workload, name, dtype, device)
            trainees[name].step()  # compiles; a failure does not affect the others
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:
            trainees.pop(name, None)
            rows[name]["unavailable"] = gpu.sentence(error)
    errors, wrong = verify(workload, dtype, trainees)
    calls: dict[str, Call] = {}
    for name, trainee in trainees.items():
        rows[name]["error"] = errors[name]
        if name in wrong:
            rows[name]["unavailable"] = wrong[name]
            continue
        if not _compiles(name):  # torch.compile decides what to save
            rows[name]["kept_bytes"] = trainee.saved_bytes()
        try:
            calls[name] = trainee.timed_call()
        except Exception as error:
            rows[name]["unavailable"] = gpu.sentence(error)
    for name, samples in interleave(calls, budget_s, device).items() if calls else ():
        seconds = statistics.median(samples)
        if device.type == "cuda" and name not in GRAPHED:  # a graph's memory is allocated when it is captured
            rows[name]["peak_bytes"] = trainees[name].peak_bytes()
        rows[name] |= {"samples_s": samples, "median_s": seconds, "images_per_s": workload.shape[0] / seconds}
    return rows


def kernels(
    out: Path,
    engine: str = gpu.PLANNED,
    contenders: Sequence[str] = ("eager_cl", "ours"),
    titles: Sequence[str] = NETWORKS,
    *,
    batches: Sequence[int] = (256,),
    seconds: float | None = None,
) -> dict[str, Any]:
    """Profiles a bf16 step, host and GPU, kernel by kernel, with torch's profiler; one text file each."""
    where, late, left_out = torch.device("cuda"), gpu.deadline(seconds), []
    torch.backends.cudnn.benchmark = True
    for batch, title, name in itertools.product(batches, titles, contenders):
        if late():
            left_out.append(f"{title} batch {batch}: {name}")
            continue
        with gpu.engine(engine, where):
            trainee = Trainee(next(w for w in workloads(batch) if w.title == title), name, "bf16", where)
            for _ in range(PROFILED_STEPS):
                trainee.step()
            hosts, steps = [], []
            for _ in range(PROFILED_STEPS):  # start from an idle GPU: with a full queue the host would wait for it
                torch.cuda.synchronize(where)
                start = time.perf_counter()
                trainee.step()
                hosts.append(time.perf_counter() - start)
                torch.cuda.synchronize(where)
                steps.append(time.perf_counter() - start)
            host, step = statistics.median(hosts), statistics.median(steps)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(PROFILED_STEPS):
                    trainee.step()
                torch.cuda.synchronize(where)
        table = profile.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=120)
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / f"kernels-of-training-{title}-{batch}-{name}.txt").write_text(
            f"{gpu.environment(engine, where)}\n"
            f"a step, not profiled: {1e3 * step:.1f} ms, launched by the host in {1e3 * host:.1f} ms\n"
            f"{PROFILED_STEPS} steps, profiled:\n{table}\n"
        )
    return {"left_out": left_out}


def _measured(workload: Workload, dtype: str, names: Sequence[str], budget_s: float, device: torch.device) -> Rows:
    """The rows, with a reason if measuring failed, so that later workloads still run."""
    try:
        return measure(workload, dtype, names, budget_s, device)
    except Exception as error:
        shared = {"workload": workload.title, "dtype": dtype, "batch": workload.shape[0]}
        return {name: {**shared, "contender": name, "unavailable": gpu.sentence(error)} for name in names}


def _compiles(name: str) -> bool:
    return CONTENDERS[name][1]


def _passes(names: Sequence[str], device: torch.device) -> list[Sequence[str]]:
    """Groups measured together. On CUDA, contenders without a compiler come first: GPU time is scarce."""
    plain = [name for name in names if not _compiles(name)]
    return [plain, names] if device.type == "cuda" and len(plain) < len(names) else [names]


def run(
    out: Path | None,
    engine: str = gpu.PLANNED,
    budget: float = 5.0,
    contenders: Sequence[str] = USUAL["cuda"],
    titles: Sequence[str] = NETWORKS,
    *,
    batches: Sequence[int] = (256, 32),
    dtypes: Sequence[str] = ("bf16",),
    seconds: float | None = None,
    device: str = "cuda",
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Measures the workloads ``titles`` with kernels from ``engine``. Writes the report after each and returns it.

    ``budget`` is seconds of timing a workload, batch and dtype (twice on CUDA if a contender compiles). After
    ``seconds`` none of these begins; the report's ``left_out`` names the rest.
    """
    gpu.require("contenders", contenders, CONTENDERS)
    known = {w.title: w for w in workloads(1)}
    gpu.require("titles", titles, known)
    where, late, start = torch.device(device), gpu.deadline(seconds), time.monotonic()
    # Eager is the correctness reference: channels_last on a GPU, the default layout elsewhere.
    yardstick = [] if set(YARDSTICKS) & set(contenders) else [YARDSTICKS[where.type == "cuda"]]
    names = [*yardstick, *dict.fromkeys(contenders)]
    name = engine if any(n.startswith("ours") for n in names) else " ".join(contenders)
    machine = {**_machine.record(where), "engine": name}
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"machine": machine, "options": options or {}, "rows": rows, "left_out": []}
    path = None
    if out is not None:
        on_gpu = gpu.path(Path(out), "training", {"gpu": machine["device"], "engine": name})
        path = on_gpu if where.type == "cuda" else Path(out) / "training.json"
    torch.backends.cudnn.benchmark = True  # lets every contender use its best algorithms
    for batch, title, dtype in itertools.product(batches, titles, dtypes):
        workload = next(w for w in workloads(batch) if w.title == title)
        before = len(rows)
        found: Rows = {}
        for together in _passes(names, where):
            if late():
                missing = ", ".join(n for n in together if n not in found)
                result["left_out"].append(f"{title} {dtype} batch {batch}: {missing}")
                continue
            with gpu.engine(engine, where):
                new = _measured(workload, dtype, together, budget, where)
            # A compiler crash cannot lose the numbers measured so far.
            found |= {n: row for n, row in new.items() if "median_s" in row or n not in found}
            rows[before:] = found.values()
            ops.release_memory()  # pooled memory is of no use to the next workload, and ResNet-50 pools gigabytes
            if where.type == "cuda":
                torch.cuda.empty_cache()
            print(f"{time.monotonic() - start:6.0f} s  {title} {dtype} batch {batch}", flush=True)
            _write(path, result)
    _write(path, result)
    return result


def _write(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        gpu.write(path, result)
        path.with_suffix(".md").write_text(report(result))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", default="", help="images a step: 32, with --quick 8, on CUDA 256,32")
    parser.add_argument("--only", default="", help="workloads whose title contains this")
    parser.add_argument("--dtypes", default="", help="fp32,bf16, on CUDA bf16")
    parser.add_argument(
        "--contenders", default="", help=f"of {','.join(CONTENDERS)}; with --quick nothing is compiled; and eager's"
    )
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of timing a workload and dtype: 15, quick 3")
    parser.add_argument("--seconds", type=float, help="no workload begins after so many")
    parser.add_argument("--quick", action="store_true", help="a block of each kind and ResNet-18 at batch 8")
    parser.add_argument("--out", type=Path, help="folder for training.json and training.md")
    args = parser.parse_args(argv)
    kind = torch.device(args.device).type
    usual = [name for name in USUAL[kind] if not (args.quick and _compiles(name))]
    result = run(
        args.out, gpu.engine_asked_for(), args.budget or (3.0 if args.quick else 15.0),
        args.contenders.split(",") if args.contenders else usual,
        [w.title for w in workloads(1) if args.only in w.title and (not args.quick or w.title in QUICK)],
        batches=[int(batch) for batch in (args.batch or ("8" if args.quick else BATCHES[kind])).split(",")],
        dtypes=(args.dtypes or DTYPES[kind]).split(","), seconds=args.seconds, device=args.device,
        options={k: v if isinstance(v, int | float) else str(v) for k, v in vars(args).items() if k != "out"},
    )  # fmt: skip
    print(report(result))
    if broken := [r for r in result["rows"] if "unavailable" in r and r["contender"] in ("ours", "ours_recompute")]:
        told = "; ".join(f"{r['contender']}, {r['workload']} {r['dtype']}: {r['unavailable']}" for r in broken)
        raise SystemExit(f"not measured: {told}")


if __name__ == "__main__":
    main()
