"""Convert ResNet-50 and its pre-activation version of timm, and compare the logits with eager.

python examples/convert_timm.py
"""

import copy

import torch
from utils import compare, library

import resnet_fused

timm = library("timm")

torch.manual_seed(0)
x = torch.randn(2, 3, 64, 64)
for name in ("resnet50", "resnetv2_50"):
    # With zero_init_last, timm's default, random blocks would add zero and hide an error. Pretrained ones do not.
    eager = timm.create_model(name, pretrained=False, zero_init_last=False).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(f"{name}\n{resnet_fused.report(fused)}")
    with torch.inference_mode():
        exact = copy.deepcopy(eager).double()(x.double())
        compare(name, fused(x), eager(x), exact)
    print()
