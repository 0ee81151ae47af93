"""``python -m benchmarks.cpu_layers [--isa avx2] [--out DIR]``: the CPU engines, one convolution at a time.

Every engine that can compute ``relu(bn(conv(x)) + residual)`` of a ResNet layer does so in turn, in channels_last and
with packed weights, after its result has passed the criterion. ``--isa`` caps our kernels, PyTorch and oneDNN alike.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


def _caps(ours: str, torch: str, onednn: str) -> dict[str, str]:
    return {"RESNET_FUSED_CPU_ISA": ours, "ATEN_CPU_CAPABILITY": torch, "ONEDNN_MAX_CPU_ISA": onednn}


CAPS = {
    "avx2": _caps("avx2", "avx2", "AVX2"),
    "avx512": _caps("avx512", "avx512", "AVX512_CORE"),
    "avx512_bf16": _caps("avx512_bf16", "avx512", "AVX512_CORE_BF16"),
}
#: glibc keeps freed results: page faults would hit whichever contender runs after memory was returned to the system.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "33554432"}
ENGINES = ("winograd", "direct", "onednn", "composed")


class Layer(NamedTuple):
    """A convolution; ``residual`` where ResNet-18 or ResNet-50 adds one."""

    kernel: int
    channels: int
    filters: int
    size: int
    stride: int = 1
    residual: bool = False
    groups: int = 1

    @property
    def name(self) -> str:
        return f"{self.kernel}x{self.kernel} {self.channels}-{self.filters}@{self.size}" + (
            (f"/{self.stride}" if self.stride > 1 else "") + (f" by {self.width}" if self.groups > 1 else "")
        )

    @property
    def width(self) -> int:
        """Input channels of a group."""
        return self.channels // self.groups

    def flop(self, batch: int) -> int:
        out = -(-self.size // self.stride)
        return 2 * batch * self.filters * self.width * self.kernel**2 * out**2


def resnet_layers() -> Iterator[Layer]:
    """Yields the distinct convolutions of ResNet-18 and ResNet-50, stems excepted."""
    for stage, size in enumerate((56, 28, 14, 7)):
        width, wide = 64 << stage, 256 << stage
        if stage:
            yield Layer(3, width // 2, width, 2 * size, 2)
            yield Layer(1, wide // 2, width, 2 * size)
            yield Layer(3, width, width, 2 * size, 2)
            yield Layer(1, wide // 2, wide, 2 * size, 2)
        yield Layer(3, width, width, size, residual=True)
        yield Layer(1, width, wide, size, residual=True)
        yield Layer(1, wide, width, size)


#: Group width, channels and image size of convolutions like RegNet's.
REGNET = (16, 128, 28), (16, 400, 14), (24, 168, 28), (24, 408, 14), (32, 256, 28), (48, 192, 28), (64, 384, 14)


def grouped_layers() -> Iterator[Layer]:
    """Yields the grouped convolutions of ResNeXt-50 32x4d and 101 32x8d, and RegNet-like ones of other group widths."""
    for width in (4, 8):
        for stage, size in enumerate((56, 28, 14, 7)):
            channels = 32 * width << stage
            yield Layer(3, channels, channels, size, groups=32)
            if stage:
                yield Layer(3, channels, channels, 2 * size, 2, groups=32)
    for width, channels, size in REGNET:
        yield Layer(3, channels, channels, size, groups=channels // width)


def measure(layer: Layer, batch: int, dtype_name: str, budget_s: float) -> dict[str, Any]:
    """Returns the plan's engine and each engine's median seconds.

    Raises:
        RuntimeError: an engine's error exceeds the criterion.
    """
    import torch

    from resnet_fused import criterion, functional, ops, plans, reference

    from .timing import interleave

    dtype, layout = getattr(torch, dtype_name), torch.channels_last
    torch.manual_seed(0)
    x = torch.randn(batch, layer.channels, layer.size, layer.size).to(dtype, memory_format=layout)
    weight = torch.randn(layer.filters, layer.width, layer.kernel, layer.kernel)
    weight = (weight / (layer.width * layer.kernel**2) ** 0.5).to(dtype, memory_format=layout)
    gamma, beta, mean, var = (torch.rand(layer.filters) + 0.5 for _ in range(4))
    out = -(-layer.size // layer.stride)
    residual = torch.randn(batch, layer.filters, out, out).to(dtype, memory_format=layout) if layer.residual else None
    geometry = ([layer.stride] * 2, [layer.kernel // 2] * 2, [1, 1], layer.groups)
    bn = functional.BatchNorm(mean, var, gamma, beta)

    def engine_with(first: str) -> str:
        os.environ["RESNET_FUSED_CPU_ENGINE"] = first
        return plans.read(ops.explain_cpu(list(x.shape), list(weight.shape), *geometry, dtype_name)).kernel

    def call(engine: str) -> torch.Tensor:
        os.environ["RESNET_FUSED_CPU_ENGINE"] = engine
        sizes = {"stride": layer.stride, "padding": layer.kernel // 2, "groups": layer.groups}
        return functional.conv_bn_act(x, weight, bn, **sizes, residual=residual, keep_packed=True)

    calls = {engine: functools.partial(call, engine) for engine in ENGINES if engine_with(engine) == engine}
    args = (x, weight, None, gamma, beta, mean, var, 1e-5, *geometry, residual)
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    with torch.inference_mode():
        truth, before = (reference.conv_bn_act(*double, relu) for relu in (True, False))
        everywhere = torch.ones_like(truth, dtype=torch.bool)
        allowed = criterion.allowed_error(reference.conv_bn_act(*args, True), truth, everywhere, before)
        for engine, once in calls.items():
            if not (error := criterion.largest_error(once(), truth, everywhere)) <= allowed:
                raise RuntimeError(f"{layer.name}: the error of {engine} is {error}, more than {allowed}")
        samples = interleave(calls, budget_s, torch.device("cpu"))
    return {
        "layer": layer.name,
        "batch": batch,
        "dtype": dtype_name,
        "planned": engine_with(ENGINES[0]),
        "gflop": layer.flop(batch) * 1e-9,
        "median_s": {name: statistics.median(values) for name, values in samples.items()},
        "rounds": min(len(values) for values in samples.values()),
    }


def line(row: dict[str, Any]) -> str:
    """Returns a row of the table: GFLOP/s of each engine, and the planned one's over the faster of PyTorch's two."""
    times = row["median_s"]
    rates = " | ".join(f"{row['gflop'] / times[e]:.0f}" if e in times else "" for e in ENGINES)
    theirs = min(times[e] for e in ("onednn", "composed") if e in times)
    ratio = f"{theirs / times[row['planned']]:.2f}x"
    return f"| {row['batch']} x {row['layer']} | {row['dtype']} | {rates} | {row['planned']} | {ratio} |"


def main(args: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_layers", description=__doc__)
    parser.add_argument("--isa", choices=CAPS, help="cap the instruction set of all contenders")
    parser.add_argument("--dtypes", default="float32", help="such as float32,bfloat16,float16")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--grouped", action="store_true", help="grouped convolutions of ResNeXt and RegNet instead")
    parser.add_argument("--layers", default="", help="only layers whose name contains this")
    parser.add_argument("--budget", type=float, default=1.5, help="seconds per row")
    parser.add_argument("--out", type=Path, help="folder for the JSON")
    options = parser.parse_args(args)
    environment = {**KEEP_MEMORY, **({} if options.isa is None else CAPS[options.isa])}
    if environment.items() - os.environ.items():  # glibc, PyTorch and oneDNN read them when they are loaded
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.cpu_layers", *args], {**os.environ, **environment})

    print(f"| GFLOP/s | | {' | '.join(ENGINES)} | plan | over PyTorch |")
    print("|---|---|" + "---:|" * len(ENGINES) + "---|---:|")
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes.split(","):
        for batch in map(int, options.batches.split(",")):
            for layer in dict.fromkeys(grouped_layers() if options.grouped else resnet_layers()):
                if options.layers in layer.name:
                    rows.append(measure(layer, batch, dtype, options.budget))
                    print(line(rows[-1]), flush=True)
    if options.out:
        import torch

        from resnet_fused.cli import _machine

        options.out.mkdir(parents=True, exist_ok=True)
        result = {"machine": _machine.record(torch.device("cpu")), "args": args, "rows": rows}
        path = options.out / f"cpu-layers-{options.isa or 'uncapped'}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
