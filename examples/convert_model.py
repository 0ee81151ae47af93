"""Convert a model: same parameters, same answers, less time.

python examples/convert_model.py
"""

import copy
import time

import torch

import resnet_fused

try:
    from torchvision.models import resnet18
except (ImportError, RuntimeError):  # not installed, or made for another torch than this one
    from resnet_fused.models import resnet18  # the same network with the same parameter names


def seconds(model, x, repeat=5):
    """The fastest of a few forward passes."""
    times = []
    with torch.inference_mode():
        for _ in range(repeat):
            start = time.perf_counter()
            model(x)
            times.append(time.perf_counter() - start)
    return min(times)


eager = resnet18().eval()
fused = resnet_fused.convert(copy.deepcopy(eager))  # in place; the copy is for comparing
print(resnet_fused.report(fused))

x = torch.randn(4, 3, 224, 224)
with torch.inference_mode():
    difference = (fused(x) - eager(x)).abs().max() / eager(x).abs().max()
print(f"\nlargest difference, relative to the largest output: {difference:.1e}")
print(f"eager {1e3 * seconds(eager, x):.0f} ms, fused {1e3 * seconds(fused, x):.0f} ms")

# Checkpoints of either load into the other, and training works: on the CPU fused, on CUDA as before.
eager.load_state_dict(fused.state_dict())
fused.train()
fused(x).sum().backward()
assert type(resnet_fused.revert(fused)) is type(eager)
