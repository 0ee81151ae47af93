"""Convert the backbones of DETR and RT-DETR in transformers, and compare both networks with eager.

pip install transformers
python examples/detr_backbone.py
"""

import copy

import torch

import resnet_fused

try:
    import transformers
    from transformers import DetrConfig, DetrModel, ResNetConfig, RTDetrConfig, RTDetrModel
except (ImportError, RuntimeError) as error:  # not installed, or its torchvision was built for another torch
    transformers = None
    print(f"This example needs transformers, but importing it failed: {error}")


def main():
    # Random weights; a model of from_pretrained converts in the same way.
    backbone = ResNetConfig(out_features=["stage4"])
    detr = DetrModel(DetrConfig(use_timm_backbone=False, backbone_config=backbone))
    x = torch.randn(1, 3, 256, 320)
    for eager in (detr.eval(), RTDetrModel(RTDetrConfig()).eval()):
        fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
        print(resnet_fused.report(fused))
        with torch.inference_mode():
            expected, actual = eager(x).last_hidden_state, fused(x).last_hidden_state
        difference = (actual - expected).abs().max() / expected.abs().max()
        print(f"{type(eager).__name__}: largest difference, relative to the largest output: {difference:.1e}\n")


if transformers is not None:
    main()
