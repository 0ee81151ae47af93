"""Predicts single convolutions on an H200. Nothing in it is measured.

The cost model's times (``csrc/cuda/plan/cost_model.cpp``): convolutions with batch statistics at batch 256, and
sm90/conv_sm90 at small batches, data-parallel and stream-K.
"""

import re

from resnet_fused import ops
from resnet_fused.cli import _gpus

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


def plan(name: str, n: int, c: int, k: int, taps: int, size: int, mode: str = "plain", residual: bool = False) -> str:
    """In words, by the engine of this name."""
    geometry = ([n, c, size, size], [k, c, taps, taps], [1, 1], [taps // 2] * 2, [1, 1], 1)
    with engine(name):
        return ops.explain_cuda(*geometry, DTYPE, mode, [], [1, 1], residual, True, True, _gpus.GPUS[GPU])


def microseconds(words: str) -> float:
    found = re.search(r"([\d.]+) us predicted", words)
    assert found, words
    return float(found[1])


def statistics_row(c: int, k: int, taps: int, size: int) -> str:
    """sm80, torch and sm90; the first layer of a bottleneck without a prologue, the others with one."""
    mode = "statistics" if c > k else "prologue statistics"
    times = [microseconds(plan(name, BATCH, c, k, taps, size, mode)) for name in ("sm80", "torch", "sm90")]
    cells = (f"**{time}**" if time == min(times) else str(time) for time in times)
    channels = str(c) if c == k else f"{c} to {k}"
    return f"| {taps}x{taps}, {channels} at {size}x{size} | {' | '.join(cells)} |"


def small_row(batch: int, width: int, size: int) -> str:
    """The fastest tile with whole depth, and the fastest in shares."""
    layer = (batch, width, width, 3, size)
    steps = 9 * width // 64

    def fastest(parts: str) -> tuple[str, str]:
        plans = {tile: plan(f"sm90:{tile}{parts}", *layer, residual=True).splitlines()[0] for tile in TILES}
        tile = min(plans, key=lambda tile: microseconds(plans[tile]))
        return tile, plans[tile]

    tile, whole = fastest(":1")
    tiles = re.search(r"(\d+) tiles", whole)
    best_tile, best = fastest("")
    cut = re.search(r"(\d+) whole, (\d+) in (\d+) shares", best)
    assert tiles, whole
    assert cut, best
    shares = "no gain"
    if int(cut[3]):
        shares = f"{microseconds(best)} us: {best_tile.replace('x', ' x ')}, {cut[2]} tiles in {cut[3]} shares"
    cell = f"{microseconds(whole)} us: {tile.replace('x', ' x ')}, {tiles[1]} tiles of {steps} steps"
    return f"| {batch} | {width}@{size} | {cell} | {shares} |"


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
