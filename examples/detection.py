"""Convert torchvision's Faster R-CNN and compare the features of its backbone with eager.

pip install torchvision
python examples/detection.py
"""

import copy

import torch

import resnet_fused

try:
    from torchvision.models import detection
except (ImportError, RuntimeError) as error:  # not installed, or built for another torch
    detection = None
    print(f"This example needs torchvision, but importing it failed: {error}")


def main():
    # With weights="DEFAULT" its BatchNorms are frozen; they convert too.
    eager = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(resnet_fused.report(fused), "\n")

    # The heads need torchvision's compiled ops, which a CPU-only torch may lack. The backbone needs none.
    x = torch.randn(1, 3, 256, 320)
    with torch.inference_mode():
        expected, actual = eager.backbone(x), fused.backbone(x)
    for level, features in expected.items():
        difference = (actual[level] - features).abs().max() / features.abs().max()
        print(f"level {level}: largest difference, relative to the largest feature: {difference:.1e}")


if detection is not None:
    main()
