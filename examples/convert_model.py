"""Convert a model, compare it with eager and train it.

python examples/convert_model.py
"""

import copy
import time

import torch

import resnet_fused

try:
    from torchvision.models import resnet18
except (ImportError, RuntimeError):  # not installed, or built for another torch
    from resnet_fused.models import resnet18  # the same network with the same parameter names


def seconds(model, x, repeat=5):
    """Returns the time of the fastest of a few forward passes."""
    times = []
    with torch.inference_mode():
        for _ in range(repeat):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return min(times)


eager = resnet18().eval()
fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
print(resnet_fused.report(fused))

x = torch.randn(4, 3, 224, 224)
with torch.inference_mode():
    difference = (fused(x) - eager(x)).abs().max() / eager(x).abs().max()
print(f"\nlargest difference, relative to the largest output: {difference:.1e}")
print(f"eager {1e3 * seconds(eager, x):.0f} ms, fused {1e3 * seconds(fused, x):.0f} ms")

# Checkpoints load in both directions, and training is fused too.
eager.load_state_dict(fused.state_dict())
fused.train()
fused(x).sum().backward()
assert type(resnet_fused.revert(fused)) is type(eager)
