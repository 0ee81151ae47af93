"""Times single layers on a GPU against other libraries: ``python -m benchmarks.gpu_kernels OUT``.

Covers the ResNet convolutions with everything fused into them (listed in ``gpu_layers.py``) at batch 1, 32 and 256 in
fp16 and bf16. Every contender is verified against fp64, then timed interleaved with the others in two ways: a single
launch after an L2 flush (``median_us``), and one of twenty back-to-back launches (``warm_us``). Both use CUDA graphs
and events. Byte and FLOP counts are minimal, so the share of the roofline is a lower bound. The roofline itself is
measured in the same run, by a pass over memory and a matrix product. ``RESNET_FUSED_CUDA_ENGINE``
selects the resnet_fused kernel. Writes ``OUT/kernels-<gpu>-<engine>.json`` after each layer. Contenders from other
packages (``--contenders cudnn_graph``) need a separate run; its file is named after them.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import cudnn_graph, gpu
from .gpu_layers import LAYERS, STAGES, Layer, ulps
from .peers import Unavailable
from .timing import interleave

BATCHES = (1, 32, 256)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LAUNCHES = 20  # per layer in one graph
MISTAKEN = 3  # times our error limit: a peer may round differently, but a larger error is a mistake


def _cudnn(layer: Layer) -> Callable[[], Any]:
    call = layer.cudnn()
    if call is None:
        raise Unavailable("torch exposes no kernel of cuDNN that does this")
    return call


# Name on the command line -> name in the results, and the function that makes the call.
CONTENDERS: dict[str, tuple[str, Callable[[Layer], Callable[[], Any]]]] = {
    "ours": ("resnet_fused", lambda layer: layer.ours),
    "cudnn": ("cudnn_convolution_add_relu", _cudnn),
    "eager": ("eager", lambda layer: layer.eager),
    "compiled": (
        "torch.compile max-autotune",
        lambda layer: torch.compile(layer.eager, mode="max-autotune-no-cudagraphs", dynamic=False, fullgraph=True),
    ),
    "cudnn_graph": ("cuDNN graph API", cudnn_graph.fused),
}
APART = ("cudnn_graph",)  # only in separate runs
USUAL = tuple(name for name in CONTENDERS if name not in APART)
OURS, EAGER = CONTENDERS["ours"][0], CONTENDERS["eager"][0]


def roofline(device: torch.device, capture: gpu.Capture = gpu.captured) -> dict[str, float]:
    """Measured peaks: bytes/s of a pass over memory, FLOP/s of a large matrix product."""
    a = torch.randn(256 << 20, device=device)
    b = torch.empty_like(a)
    m = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    # A kernel, like ours. In a graph, a plain copy would use the copy engine, at two thirds of the rate.
    copy, product = capture(lambda: torch.neg(a, out=b))[0], capture(lambda: m @ m)[0]
    seconds = interleave({"copy": copy, "product": product}, 1.0, device)
    return {
        "bytes_per_s": 2 * a.numel() * a.element_size() / statistics.median(seconds["copy"]),
        "flop_per_s": 2 * 8192**3 / statistics.median(seconds["product"]),
    }


def errors_of(layer: Layer, result: Any, picked: list[int], expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """The largest absolute error of each part of a result; inf if it is not finite."""
    parts = layer.parts(result, picked)
    errors = {part: (parts[part].double() - truth).abs().max().item() for part, truth in expected.items()}
    return {part: error if error == error else float("inf") for part, error in errors.items()}


@torch.no_grad()
def measure(
    layer: Layer,
    names: Sequence[str],
    peak: dict[str, float],
    budget_s: float,
    capture: gpu.Capture = gpu.captured,
) -> dict[str, Any]:
    """Medians, rates and errors of every contender, or the reason why it failed."""
    torch._dynamo.reset()  # all layers share code; past the recompile limit torch.compile would run eager
    flops, moved = layer.work()
    floor = max(flops / peak["flop_per_s"], moved / peak["bytes_per_s"])
    picked, device = sorted({0, len(layer.x) - 1}), layer.x.device
    expected = layer.expected(picked)
    allowance = {part: ulps(layer, part, truth) for part, truth in expected.items()}
    running, warm, failed = {}, {}, {}
    errors: dict[str, dict[str, float]] = {}
    for key in dict.fromkeys(["eager", *names]):  # eager is always the correctness reference
        name, make = CONTENDERS[key]
        try:
            call = make(layer)
            replay, out = capture(call)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            errors[name] = errors_of(layer, out, picked, expected)
            if EAGER not in errors:
                raise Unavailable("eager failed, so nothing says how large an error may be")
            times = 1 if key == "ours" else MISTAKEN
            limits = {part: times * (2 * errors[EAGER][part] + allowance[part]) for part in expected}
            if wrong := [part for part, error in errors[name].items() if not error <= limits[part]]:
                told = (f"{part} {errors[name][part]:.3e}, allowed {limits[part]:.3e}" for part in wrong)
                failed[name] = f"wrong: error of {'; '.join(told)}"
            elif key in names:
                running[name], warm[name] = replay, capture(call, LAUNCHES)[0]
        except Exception as error:  # a peer that cannot run is reported, not fatal
            failed[name] = gpu.sentence(error)
            running.pop(name, None)
    rows = {}
    samples = interleave(running, budget_s / 2, device) if running else {}
    warmed = interleave(warm, budget_s / 2, device, warm=True) if running else {}
    for name, taken in samples.items():
        median = statistics.median(taken)
        rows[name] = {
            "median_us": median * 1e6,
            "samples": len(taken),
            "warm_us": statistics.median(warmed[name]) / LAUNCHES * 1e6,
            "warm_samples": len(warmed[name]),
            "tflops": flops / median * 1e-12,
            "gbytes_per_s": moved / median * 1e-9,
            "share_of_roofline": floor / median,
            "error": errors[name]["y"],
            "errors": errors[name],
        }
    return {"flops": flops, "bytes": moved, "floor_us": floor * 1e6, "contenders": rows, "failed": failed}


def run(
    out: Path,
    engine: str = gpu.PLANNED,
    budget: float = 1.0,
    contenders: Sequence[str] = USUAL,
    layers: Sequence[str] = tuple(STAGES),
    *,
    batches: Sequence[int] = BATCHES,
    dtypes: Sequence[str] = tuple(DTYPES),
    seconds: float | None = None,
    peak: dict[str, float] | None = None,
    device: str = "cuda",
    capture: gpu.Capture = gpu.captured,
) -> dict[str, Any]:
    """Measures ``layers`` with our kernels from ``engine``. Writes the report after each layer and returns it.

    ``budget`` is seconds of timing a layer. After ``seconds`` no further layer begins; the report's ``left_out`` names
    the rest. ``peak`` reuses an earlier roofline measurement.
    """
    for what, asked, known in (("contenders", contenders, CONTENDERS), ("layers", layers, LAYERS)):
        gpu.require(what, asked, known)
    gpu.require("dtypes", dtypes, DTYPES)
    # Gives peers their best algorithm. The search takes a second per layer, so it runs only if peers are timed.
    torch.backends.cudnn.benchmark = list(contenders) != ["ours"] or engine == "torch"
    late, where = gpu.deadline(seconds), torch.device(device)
    environment = gpu.environment(engine if "ours" in contenders else "-".join(contenders), where)
    path = gpu.path(Path(out), "kernels", environment)
    measured: dict[str, Any] = {}
    report: dict[str, Any] = {
        "environment": environment,
        "roofline": peak or roofline(where, capture),
        "layers": measured,
    }
    report["left_out"] = []
    for dtype, title, batch in itertools.product(dtypes, layers, batches):
        name = f"{title} batch {batch} {dtype}"
        if late():
            report["left_out"].append(name)
            continue
        with gpu.engine(engine, where):
            layer = LAYERS[title](batch, DTYPES[dtype], where)
            result = measure(layer, contenders, report["roofline"], budget, capture)
        shapes = {"kind": type(layer).__name__, "x": list(layer.x.shape), "weight": list(layer.weight.shape)}
        measured[name] = {**result, **shapes, "stride": layer.stride, "dtype": dtype, "batch": batch}
        gpu.write(path, report)
        rows = result["contenders"].items()
        cells = [f"{n} {r['median_us']:.1f} us, warm {r['warm_us']:.1f}, {r['share_of_roofline']:.0%}" for n, r in rows]
        cells += [f"{n} failed: {why}" for n, why in result["failed"].items()]
        print(f"{name}: {'; '.join(cells)}", flush=True)
    gpu.write(path, report)
    return report


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing a layer (%(default)s)")
    parser.add_argument("--seconds", type=float, help="no layer begins after so many")
    parser.add_argument("--contenders", default=",".join(USUAL), help=f"of {','.join(CONTENDERS)} (%(default)s)")
    parser.add_argument("--layers", default=",".join(STAGES), help=f"all, or of {','.join(LAYERS)} (%(default)s)")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="(%(default)s)")
    parser.add_argument("--dtypes", default=",".join(DTYPES), help="(%(default)s)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device: this measures GPU kernels")
    try:
        report = run(
            args.out, gpu.engine_asked_for(), args.budget, args.contenders.split(","),
            list(LAYERS) if args.layers == "all" else args.layers.split(","),
            batches=[int(batch) for batch in args.batches.split(",")], dtypes=args.dtypes.split(","),
            seconds=args.seconds,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    peak = report["roofline"]
    print(f"measured: {peak['bytes_per_s'] * 1e-12:.2f} TB/s, {peak['flop_per_s'] * 1e-12:.0f} TFLOP/s")
    broken = [name for name, result in report["layers"].items() if OURS in result["failed"]]
    if broken:
        raise SystemExit(f"resnet_fused failed on {', '.join(broken)}")


if __name__ == "__main__":
    main()
