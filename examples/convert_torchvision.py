"""Convert ResNet-50 and RegNet of torchvision, and compare the logits with eager.

python examples/convert_torchvision.py
"""

import copy

import torch
from utils import compare, library

import resnet_fused

torchvision = library("torchvision")

torch.manual_seed(0)
x = torch.randn(2, 3, 64, 64)
for name in ("resnet50", "regnet_x_400mf"):
    # weights=None: random weights, no download. weights="DEFAULT" converts in the same way.
    eager = torchvision.models.get_model(name, weights=None).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(f"{name}\n{resnet_fused.report(fused)}")
    with torch.inference_mode():
        exact = copy.deepcopy(eager).double()(x.double())
        compare(name, fused(x), eager(x), exact)
    print()

    # Checkpoints load in both directions.
    eager.load_state_dict(fused.state_dict())
    assert type(resnet_fused.revert(fused)) is type(eager)
