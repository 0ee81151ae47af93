"""Convert torchvision's Faster R-CNN, with frozen BatchNorms, and compare the features of its backbone with eager.

python examples/detection.py
"""

import copy

import torch
from utils import compare, library

import resnet_fused

torchvision = library("torchvision")

torch.manual_seed(0)
# Frozen BatchNorms, as the detector with weights="DEFAULT" has them. Random weights here: no download.
backbone = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
    backbone_name="resnet50", weights=None, norm_layer=torchvision.ops.FrozenBatchNorm2d
)
eager = torchvision.models.detection.FasterRCNN(backbone, num_classes=91).eval()
fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
print(resnet_fused.report(fused), "\n")

# The heads need torchvision's compiled ops, which may not load with a CPU-only torch. The backbone needs none.
x = torch.randn(1, 3, 128, 160)
with torch.inference_mode():
    exact = copy.deepcopy(eager).double().backbone(x.double())
    expected, actual = eager.backbone(x), fused.backbone(x)
for level in expected:
    compare(f"level {level}", actual[level], expected[level], exact[level])
