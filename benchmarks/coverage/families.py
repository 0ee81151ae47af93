"""The surveyed families."""

import importlib.util
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import models
from .models import Model, configured, pytorchcv_models, several, timm_models, torchvision_models


class Family(NamedTuple):
    """Models of a library: ``models()`` yields names and constructors. ``packages`` are what it imports."""

    name: str
    packages: tuple[str, ...]
    models: Callable[[], Iterator[Model]]

    def missing(self) -> list[str]:
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
HEADLESS = {"weights_backbone": None}

TORCHVISION = {
    "torchvision ResNet, ResNeXt, Wide ResNet": torchvision_models("", models.is_resnet),
    "torchvision RegNet": torchvision_models("", lambda name: name.startswith("regnet_")),
    "torchvision detection": torchvision_models(".detection", models.has_resnet, **HEADLESS),
    "torchvision detection, frozen BatchNorms": models.frozen_detectors,
    "torchvision segmentation": torchvision_models(".segmentation", models.has_resnet, **HEADLESS),
    "torchvision quantizable ResNet": torchvision_models(".quantization", models.is_resnet, quantize=False),
}

TIMM = {
    "timm ResNet and relatives": timm_models("resnet"),
    "timm ResNet v2": timm_models("resnetv2"),
    "timm RegNet": timm_models("regnet"),
    "timm ByobNet": timm_models("byobnet"),
    "timm HRNet": timm_models("hrnet"),
    "timm DLA": timm_models("dla"),
    "timm Res2Net, ResNeSt, SKNet, SENet": timm_models("res2net", "resnest", "sknet", "senet"),
    "timm CspNet": timm_models("cspnet"),
    "timm with drop path": models.timm_dropping,
}

HUGGING_FACE = {
    "Hugging Face ResNet": several(
        configured("ResNetModel"),
        configured("ResNetModel", **BASIC),
        configured("ResNetModel", downsample_in_bottleneck=True),
    ),
    "Hugging Face RegNet": several(configured("RegNetModel", layer_type="x"), configured("RegNetModel")),
    "Hugging Face RT-DETR": several(
        configured("RTDetrResNetBackbone", "RTDetrModel", "RTDetrV2Model"),
        configured("RTDetrResNetBackbone", **BASIC),
    ),
    "Hugging Face with a ResNet backbone": several(
        configured("DetrModel", use_timm_backbone=False, backbone_config=models.resnet_config),
        configured(
            *("MaskFormerModel", "Mask2FormerModel", "OneFormerModel", "GroundingDinoModel"),
            "UperNetForSemanticSegmentation",
            backbone_config=models.resnet_config,
        ),
    ),
    "Hugging Face BiT": configured("BitModel"),
}

HUGGING_FACE_TIMM = {
    "Hugging Face DETR family with timm": configured(
        *("DetrModel", "ConditionalDetrModel", "DeformableDetrModel", "TableTransformerModel", "DabDetrModel")
    )
}

PYTORCHCV = {
    "pytorchcv ResNet and relatives": pytorchcv_models(
        *("resnet", "resnext", "resneta", "resnetd", "drn", "bagnet", "dla", "hrnet", "bamresnet")
    ),
    "pytorchcv pre-activation": pytorchcv_models("preresnet", "resattnet"),
    "pytorchcv RegNet": pytorchcv_models("regnet"),
    "pytorchcv segmentation and pose": pytorchcv_models("simplepose_coco", "deeplabv3", "pspnet", "fcn8sd", "linknet"),
    "pytorchcv CIFAR": pytorchcv_models(
        *("resnet_cifar", "preresnet_cifar", "resnext_cifar", "wrn_cifar", "resdropresnet_cifar", "ror_cifar")
    ),
    "pytorchcv with attention": pytorchcv_models(
        *("senet", "seresnet", "sepreresnet", "seresnext", "cbamresnet", "diaresnet"),
        *("airnet", "airnext", "sknet", "resnesta"),
    ),
    "pytorchcv WRN, IBN, PyramidNet, shaken": pytorchcv_models(
        *("wrn", "ibnresnet", "ibnbresnet", "pyramidnet", "shakeshakeresnet_cifar", "shakedropresnet_cifar")
    ),
}

OTHERS = {
    "MONAI ResNet, 2-D": (models.monai_resnets, "monai"),
    "MONAI others, 2-D": (models.monai_others, "monai"),
    "segmentation_models_pytorch": (models.segmentation_models, "segmentation_models_pytorch"),
    "open_clip ModifiedResNet": (models.open_clip_models, "open_clip"),
}

FAMILIES = (
    *(Family(name, ("torchvision",), each) for name, each in TORCHVISION.items()),
    *(Family(name, ("timm",), each) for name, each in TIMM.items()),
    *(Family(name, ("transformers",), each) for name, each in HUGGING_FACE.items()),
    *(Family(name, ("transformers", "timm"), each) for name, each in HUGGING_FACE_TIMM.items()),
    *(Family(name, ("pytorchcv",), each) for name, each in PYTORCHCV.items()),
    *(Family(name, (package,), each) for name, (each, package) in OTHERS.items()),
)
