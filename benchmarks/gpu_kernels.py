"""Times conv_bn_act on a GPU against its peers: ``python -m benchmarks.gpu_kernels OUT``.

The 3x3 convolution of each of ResNet's four stages with BatchNorm, residual and ReLU; batch 1, 32 and 256; fp16
and bf16. Every contender is verified against fp64, then captured in a CUDA graph and timed in turn by events, with
L2 flushed before each sample. Bytes and FLOPs are the fewest possible, so that the share of the roofline, measured
in the same run by a copy and a matrix product, is a lower bound. ``RESNET_FUSED_CUDA_ENGINE`` says which kernel is
ours. Writes ``OUT/kernels-<gpu>-<engine>.json`` after each layer, so that a run cut short is not lost.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_fused import functional, reference

from .timing import interleave

STAGES = {"64@56": (64, 56), "128@28": (128, 28), "256@14": (256, 14), "512@7": (512, 7)}
BATCHES = (1, 32, 256)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
CONTENDERS = {
    "ours": "resnet_fused",
    "cudnn": "cudnn_convolution_add_relu",
    "eager": "eager",
    "compiled": "torch.compile max-autotune",
}
OURS, CUDNN, EAGER, COMPILED = CONTENDERS.values()


@dataclass
class Layer:
    """One layer's tensors, channels_last on the GPU, and its truth for two images."""

    x: Tensor
    weight: Tensor
    bn: functional.BatchNorm
    residual: Tensor

    @classmethod
    def random(cls, channels: int, size: int, batch: int, dtype: torch.dtype, device: str = "cuda") -> "Layer":
        """Seeded; never zeros, on which chips run faster."""
        g = torch.Generator(device=device).manual_seed(channels + batch)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, device=device)

        def image(*shape: int) -> Tensor:
            return randn(*shape).to(dtype).contiguous(memory_format=torch.channels_last)

        weight = image(channels, channels, 3, 3) / (3 * channels**0.5)
        bn = functional.BatchNorm(randn(channels), randn(channels).abs() + 0.5, randn(channels), randn(channels))
        activation = (batch, channels, size, size)
        return cls(image(*activation), weight, bn, image(*activation))

    def expected(self, picked: list[int]) -> Tensor:
        """fp64, of the picked images."""
        vectors = [v.double() for v in (self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var)]
        x, residual = self.x[picked].double(), self.residual[picked].double()
        return reference.conv_bn_act(
            x, self.weight.double(), None, *vectors, self.bn.eps, [1, 1], [1, 1], [1, 1], 1, residual, True
        )

    def work(self) -> tuple[int, int]:
        """FLOPs, and bytes with each tensor moved once."""
        tensors = (self.x, self.weight, self.residual, self.x)  # the output is as large as x
        return 2 * self.x.numel() * self.weight[0].numel(), sum(t.numel() * t.element_size() for t in tensors)


def calls_of(layer: Layer) -> dict[str, Callable[[], Tensor]]:
    """What is timed. cuDNN's fused kernel gets BatchNorm folded into its weights beforehand."""
    bn = layer.bn
    scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
    shift = (bn.bias.double() - bn.running_mean.double() * scale).to(layer.x.dtype)
    folded = (layer.weight.double() * scale[:, None, None, None]).to(layer.x.dtype)
    folded = folded.contiguous(memory_format=torch.channels_last)

    def eager() -> Tensor:
        y = F.conv2d(layer.x, layer.weight, None, 1, 1)
        y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return F.relu_(y.add_(layer.residual))

    return {
        OURS: lambda: functional.conv_bn_act(layer.x, layer.weight, bn, padding=1, residual=layer.residual),
        CUDNN: lambda: torch.cudnn_convolution_add_relu(
            layer.x, folded, layer.residual, 1.0, shift, [1, 1], [1, 1], [1, 1], 1
        ),
        EAGER: eager,
        COMPILED: torch.compile(eager, mode="max-autotune-no-cudagraphs", dynamic=False),
    }


def captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """The call as a CUDA graph, warmed up before, and its output."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()
    graph.replay()
    return graph.replay, out


def roofline() -> dict[str, float]:
    """What this GPU reaches: bytes a second of a large copy, FLOP a second of a large matrix product."""
    a = torch.randn(256 << 20, device="cuda")
    b = torch.empty_like(a)
    m = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    copy, product = captured(lambda: b.copy_(a))[0], captured(lambda: m @ m)[0]
    seconds = interleave({"copy": copy, "product": product}, 1.0, torch.device("cuda"))
    return {
        "bytes_per_s": 2 * a.numel() * a.element_size() / statistics.median(seconds["copy"]),
        "flop_per_s": 2 * 8192**3 / statistics.median(seconds["product"]),
    }


def measure(layer: Layer, names: list[str], peak: dict[str, float], budget_s: float) -> dict:
    """Medians, rates and errors of every contender; who fails has the reason instead."""
    flops, moved = layer.work()
    floor = max(flops / peak["flop_per_s"], moved / peak["bytes_per_s"])
    picked = sorted({0, len(layer.x) - 1})
    expected = layer.expected(picked)
    running, errors, failed = {}, {}, {}
    calls = calls_of(layer)
    for name in dict.fromkeys([EAGER, *names]):  # eager always, as the yardstick of correctness
        try:
            running[name], out = captured(calls[name])
            torch.cuda.synchronize()
            errors[name] = (out[picked].double() - expected).abs().max().item()
        except Exception as error:  # a peer that cannot run is reported, not fatal
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    ulps = 4 * torch.finfo(layer.x.dtype).eps * expected.abs().max().item()
    if OURS in names and not errors.get(OURS, float("inf")) <= 2 * errors[EAGER] + ulps:
        failed[OURS] = failed.get(OURS) or f"wrong: error {errors[OURS]:.3e}, eager's is {errors[EAGER]:.3e}"
        running.pop(OURS, None)
    rows = {}
    for name, samples in interleave(running, budget_s, torch.device("cuda")).items():
        median = statistics.median(samples)
        rows[name] = {
            "median_us": median * 1e6,
            "samples": len(samples),
            "tflops": flops / median * 1e-12,
            "gbytes_per_s": moved / median * 1e-9,
            "share_of_roofline": floor / median,
            "error": errors[name],
        }
    return {"flops": flops, "bytes": moved, "floor_us": floor * 1e6, "contenders": rows, "failed": failed}


def environment(engine: str) -> dict[str, str]:
    """What the numbers belong to."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], capture_output=True, text=True, check=False
    )
    return {
        "gpu": torch.cuda.get_device_name(),
        "engine": engine,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
        "commit": commit.stdout.strip() or "unknown",
    }


def main() -> None:
    """Measures, prints a table, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds of timing a layer (%(default)s)")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="(%(default)s)")
    args = parser.parse_args()
    unknown = set(args.contenders.split(",")) - set(CONTENDERS)
    if unknown:
        parser.error(f"--contenders names {', '.join(sorted(unknown))}; any of {', '.join(CONTENDERS)} expected")
    if not torch.cuda.is_available():
        parser.error("no CUDA device: this measures GPU kernels")
    torch.backends.cudnn.benchmark = True  # the peers at their best
    names = [CONTENDERS[name] for name in args.contenders.split(",")]
    engine = os.environ.get("RESNET_FUSED_CUDA_ENGINE") or "planned"
    gpu = torch.cuda.get_device_name()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{gpu} {engine}".lower()).strip("-")
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"kernels-{slug}.json"
    peak = roofline()
    print(f"measured: {peak['bytes_per_s'] * 1e-12:.2f} TB/s, {peak['flop_per_s'] * 1e-12:.0f} TFLOP/s", flush=True)
    layers: dict[str, dict] = {}
    for (dtype_name, dtype), (stage, (channels, size)), batch in itertools.product(
        DTYPES.items(), STAGES.items(), BATCHES
    ):
        name = f"{stage} batch {batch} {dtype_name}"
        with torch.no_grad():
            layers[name] = result = measure(Layer.random(channels, size, batch, dtype), names, peak, args.budget)
        rows = result["contenders"]
        cells = [f"{n} {r['median_us']:.1f} us, {r['share_of_roofline']:.0%}" for n, r in rows.items()]
        cells += [f"{n} failed: {why}" for n, why in result["failed"].items()]
        print(f"{name}: {'; '.join(cells)}", flush=True)
        report = {"environment": environment(engine), "roofline": peak, "layers": layers}
        path.write_text(json.dumps(report, indent=1))
    print(path)
    broken = [name for name, result in layers.items() if OURS in result["failed"]]
    if broken:
        raise SystemExit(f"resnet_fused failed on {', '.join(broken)}")


if __name__ == "__main__":
    main()
