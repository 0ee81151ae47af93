"""Settings of the demo: the full run, the quick run, and anything a test needs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """Settings of one run."""

    device: torch.device
    models: tuple[str, ...] = ("resnet18", "resnet50")
    batch: int = 8  # images per forward pass
    size: int = 224  # image height and width in pixels
    compile: bool = True  # also measure torch.compile
    compile_within: float = 120.0  # seconds after the start after which no further network is compiled
    rounds: int = 15  # each round runs every variant once
    seconds: float = 12.0  # no new round starts after this time for a model and dtype
    epochs: int = 10  # of training on the digits
    omitted: tuple[str, ...] = ()  # what a shorter run omits, for its report


def full(device: torch.device) -> Settings:
    """Under three minutes on two cores. On a GPU the batch is larger, since a small one would only measure launches."""
    if device.type == "cuda":
        return Settings(device, batch=64, rounds=50)
    return Settings(device)


def quick(device: torch.device) -> Settings:
    """About half a minute on two cores."""
    return Settings(
        device,
        models=("resnet18",),
        batch=64 if device.type == "cuda" else 8,
        compile=False,
        rounds=5,
        seconds=5.0,
        omitted=("ResNet-50", "torch.compile (compiling takes most of the full run)"),
    )
