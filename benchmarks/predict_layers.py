"""Predicts single convolutions on an H200. Nothing in it is measured.

The cost model's times (``csrc/cuda/plan/cost_model.cpp``): convolutions with batch statistics at batch 256, and
sm90/conv_sm90 at small batches, data-parallel and stream-K.
"""

from resnet_fused import ops, plans
from resnet_fused.cli import _gpus
from resnet_fused.plans import Plan

from .predict_inference import DTYPE, GPU, engine

BATCH = 256
# Channels in and out, taps a side, image size: the bottleneck of each ResNet-50 stage.
BOTTLENECKS = [
    layer
    for width, size in ((64, 56), (128, 28), (256, 14), (512, 7))
    for layer in ((4 * width, width, 1, size), (width, width, 3, size), (width, 4 * width, 1, size))
]
SMALL = [(batch, width, size) for batch in (1, 32) for width, size in ((64, 56), (128, 28), (256, 14), (512, 7))]
TILES = ("256x128", "256x64", "128x128")


def plan(name: str, n: int, c: int, k: int, taps: int, size: int, mode: str = "plain", residual: bool = False) -> Plan:
    """By the engine of this name."""
    geometry = ([n, c, size, size], [k, c, taps, taps], [1, 1], [taps // 2] * 2, [1, 1], 1)
    with engine(name):
        found = ops.explain_cuda(*geometry, DTYPE, mode, [], [1, 1], residual, True, True, _gpus.GPUS[GPU])
    return plans.read(found)


def microseconds(plan: Plan) -> float:
    return round(float(plan.fields["microseconds"]), 1)


def statistics_row(c: int, k: int, taps: int, size: int) -> str:
    """sm80, torch and sm90; the first layer of a bottleneck without a prologue, the others with one."""
    mode = "statistics" if c > k else "prologue statistics"
    times = [microseconds(plan(name, BATCH, c, k, taps, size, mode)) for name in ("sm80", "torch", "sm90")]
    cells = (f"**{time}**" if time == min(times) else str(time) for time in times)
    channels = str(c) if c == k else f"{c} to {k}"
    return f"| {taps}x{taps}, {channels} at {size}x{size} | {' | '.join(cells)} |"


def small_row(batch: int, width: int, size: int) -> str:
    """The fastest tile with data-parallel tiles only, and the fastest with stream-K."""
    layer = (batch, width, width, 3, size)
    steps = 9 * width // 64

    def fastest(parts: str) -> Plan:
        return min((plan(f"sm90:{tile}{parts}", *layer, residual=True) for tile in TILES), key=microseconds)

    def tile(of: Plan) -> str:
        return f"{of.fields['tile_m']} x {of.fields['tile_n']}"

    whole, best = fastest(":1"), fastest("")
    units, cut = best.fields["sk_units"], best.fields["tiles"] - best.fields["dp_tiles"]
    stream_k = "no gain" if not units else f"{microseconds(best)} us: {tile(best)}, {cut} tiles in {units} units"
    cell = f"{microseconds(whole)} us: {tile(whole)}, {whole.fields['tiles']} tiles of {steps} steps"
    return f"| {batch} | {width}@{size} | {cell} | {stream_k} |"


def tables() -> str:
    """Both, in Markdown."""
    lines = [
        "| layer | `sm80/conv_fwd` | PyTorch's convolution and passes | `sm90/conv_sm90` |",
        "|---|---:|---:|---:|",
    ]
    lines += [statistics_row(*layer) for layer in BOTTLENECKS]
    lines += ["", "| batch | stage | data-parallel | stream-K |", "|---|---|---|---|"]
    lines += [small_row(*layer) for layer in SMALL]
    return "\n".join(lines)
