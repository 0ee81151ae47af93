"""Convert a ResNet of timm and compare it with eager.

pip install timm
python examples/timm_resnet.py
"""

import copy

import torch

import resnet_fused

try:
    import timm
except (ImportError, RuntimeError) as error:  # not installed, or its torchvision was built for another torch
    timm = None
    print(f"This example needs timm, but importing it failed: {error}")


def main():
    eager = timm.create_model("resnet50", pretrained=False).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(resnet_fused.report(fused))

    x = torch.randn(2, 3, 128, 128)
    with torch.inference_mode():
        difference = (fused(x) - eager(x)).abs().max() / eager(x).abs().max()
    print(f"\nlargest difference, relative to the largest output: {difference:.1e}")

    fused.train()(x).sum().backward()  # training is fused too


if timm is not None:
    main()
