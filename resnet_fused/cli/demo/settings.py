"""How much of the demo runs: the full one, the quick one, and whatever a test needs."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Settings:
    """One run of the demo."""

    device: torch.device
    models: tuple[str, ...] = ("resnet18", "resnet50")
    batch: int = 8  # images a forward pass
    size: int = 224  # pixels, both ways
    compile: bool = True  # also measure torch.compile
    compile_within: float = 120.0  # seconds after the start; later, no network is compiled any more
    rounds: int = 15  # each round runs every variant once
    seconds: float = 12.0  # no new round starts once a model and dtype has taken this long
    epochs: int = 10  # of the digits
    omitted: tuple[str, ...] = ()  # what a shorter run leaves out, for its report


def full(device: torch.device) -> Settings:
    """Under three minutes on two cores; on a GPU a larger batch, or it would measure launches."""
    if device.type == "cuda":
        return Settings(device, batch=64, rounds=50)
    return Settings(device)


def quick(device: torch.device) -> Settings:
    """About half a minute."""
    return Settings(
        device,
        models=("resnet18",),
        batch=64 if device.type == "cuda" else 8,
        compile=False,
        rounds=5,
        seconds=5.0,
        omitted=("ResNet-50", "torch.compile (compiling takes most of the full run)"),
    )
