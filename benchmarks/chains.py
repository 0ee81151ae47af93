"""``python -m benchmarks.chains [--rounds N]``: networks without fusable blocks, with ``convert(model, chains=True)``.

Inference in channels_last, eager and converted in turn; prints medians and the ratio, after comparing the outputs.
"""

import argparse
import copy
import statistics
import time

import torch
from torch import nn

import resnet_fused

from .coverage.models import load_torchvision

BATCH, SIZE = 4, 160
NETWORKS = {
    "timm": ("seresnet50", "res2net50_26w_4s", "efficientnet_b0", "regnety_016"),
    "torchvision": ("vgg16_bn", "mobilenet_v2", "inception_v3"),
}


def network(library: str, name: str) -> nn.Module:
    """The network in eval mode and channels_last, without pretrained weights."""
    load_torchvision()
    if library == "timm":
        import timm

        model = timm.create_model(name)
    else:
        from torchvision import models

        options = {"init_weights": False} if name == "inception_v3" else {}
        model = getattr(models, name)(weights=None, **options)
    return model.eval().to(memory_format=torch.channels_last)


def compare(model: nn.Module, rounds: int) -> tuple[float, float, int]:
    """Median milliseconds of eager and of the converted network, and how many modules were converted."""
    fused = resnet_fused.convert(copy.deepcopy(model), chains=True)
    converted = resnet_fused.report(fused).count("converted")
    x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    times: tuple[list[float], list[float]] = ([], [])
    with torch.inference_mode():
        assert torch.allclose(fused(x), model(x), rtol=1e-3, atol=1e-4)
        for _ in range(rounds):
            for each, seconds in zip((model, fused), times, strict=True):
                start = time.perf_counter()
                each(x)
                seconds.append(time.perf_counter() - start)
    eager, own = (1e3 * statistics.median(seconds) for seconds in times)
    return eager, own, converted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    print(f"fp32, batch {BATCH}, {SIZE}x{SIZE}, {torch.get_num_threads()} threads, {rounds} rounds\n")
    print("| network | modules | eager, ms | chains=True, ms | ratio |\n|---|---:|---:|---:|---:|")
    for library, names in NETWORKS.items():
        for name in names:
            eager, own, converted = compare(network(library, name), rounds)
            print(f"| {name} ({library}) | {converted} | {eager:.0f} | {own:.0f} | {eager / own:.2f} |", flush=True)


if __name__ == "__main__":
    main()
