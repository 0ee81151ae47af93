"""Convert ResNet-50 and RegNet of Hugging Face's transformers, and compare the logits with eager.

python examples/convert_transformers.py
"""

import copy

import torch
from utils import compare, library

import resnet_fused

transformers = library("transformers")

torch.manual_seed(0)
# Random weights from a config, no download. Pretrained ones convert in the same way:
#     eager = ResNetForImageClassification.from_pretrained("microsoft/resnet-50").eval()
#     images = AutoImageProcessor.from_pretrained("microsoft/resnet-50")(pictures, return_tensors="pt")
#     logits = fused(**images).logits
resnet50 = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
# RegNet X. Blocks of RegNet Y, the default, stay eager: they have squeeze-and-excitation.
regnet = transformers.RegNetForImageClassification(
    transformers.RegNetConfig(layer_type="x", depths=[1, 1, 4, 7], hidden_sizes=[24, 56, 152, 368], groups_width=8)
)
x = torch.randn(2, 3, 64, 64)
for eager in (resnet50.eval(), regnet.eval()):
    fused = resnet_fused.convert(copy.deepcopy(eager))  # convert works in place: keep the eager model to compare
    print(resnet_fused.report(fused))
    with torch.inference_mode():
        exact = copy.deepcopy(eager).double()(x.double()).logits
        compare(type(eager).__name__, fused(pixel_values=x).logits, eager(pixel_values=x).logits, exact)
    print()
