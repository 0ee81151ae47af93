"""Convert the backbones of DETR and RT-DETR in transformers, and compare the encoders' outputs with eager.

python examples/detr_backbone.py
"""

import copy

import torch
from utils import compare, library

import resnet_fused

transformers = library("transformers")

torch.manual_seed(0)
# Random weights; a model of from_pretrained converts in the same way.
resnet50 = transformers.ResNetConfig(out_features=["stage4"])
detr = transformers.DetrModel(transformers.DetrConfig(use_timm_backbone=False, backbone_config=resnet50))
rt_detr = transformers.RTDetrModel(transformers.RTDetrConfig())
x = torch.randn(1, 3, 128, 160)
for eager in (detr.eval(), rt_detr.eval()):
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(resnet_fused.report(fused))
    with torch.inference_mode():
        # Not the decoder's output: RT-DETR decodes the 300 best positions, and rounding may change which ones.
        exact = copy.deepcopy(eager).double()(x.double()).encoder_last_hidden_state
        actual, expected = fused(x).encoder_last_hidden_state, eager(x).encoder_last_hidden_state
    for i, feature_map in enumerate(exact):  # DETR's encoder returns one, RT-DETR's three
        compare(f"{type(eager).__name__}, feature map {i}", actual[i], expected[i], feature_map)
    print()
