"""Constructors of the surveyed models, without weights. A function here gives an iterator of names and constructors."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

Model = tuple[str, Callable[[], nn.Module]]


def build(construct: Callable[[], nn.Module]) -> nn.Module:
    """The model in eval mode, on the meta device unless its constructor needs values."""
    try:
        with torch.device("meta"):
            return construct().eval()
    except (NotImplementedError, RuntimeError):
        return construct().eval()


def load_torchvision() -> None:
    """Makes torchvision and what imports it work beside a CPU-only torch."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    import torchvision_shim

    torchvision_shim.install()


def torchvision_models(folder: str, accepts: Callable[[str], bool], **arguments: Any) -> Callable[[], Iterator[Model]]:
    def models() -> Iterator[Model]:
        module = importlib.import_module(f"torchvision.models{folder}")
        for name in sorted(vars(module)):
            constructor = getattr(module, name)
            if name.islower() and accepts(name) and callable(constructor):
                yield name, functools.partial(constructor, weights=None, **arguments)

    return models


def is_resnet(name: str) -> bool:
    return name.startswith(("resnet", "resnext", "wide_resnet"))


def has_resnet(name: str) -> bool:
    return "_resnet" in name


def frozen_detectors() -> Iterator[Model]:
    """The detectors whose published weights come with frozen BatchNorms, which are built only with weights."""
    for name, construct in torchvision_models(".detection", has_resnet, weights_backbone=None)():
        if not name.endswith("_v2"):
            yield name, lambda construct=construct: freeze(construct())


def freeze(model: nn.Module) -> nn.Module:
    """Replaces BatchNorms by torchvision's FrozenBatchNorm2d, in place."""
    from torchvision.ops import FrozenBatchNorm2d

    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, FrozenBatchNorm2d(child.num_features, child.eps))
    return model


def timm_models(*modules: str) -> Callable[[], Iterator[Model]]:
    def models() -> Iterator[Model]:
        import timm

        for module in modules:
            for name in timm.list_models(module=module):
                yield name, functools.partial(timm.create_model, name, pretrained=False)

    return models


def timm_dropping() -> Iterator[Model]:
    import timm

    for name in ("resnet50", "resnetv2_50", "regnetx_002"):
        yield f"{name}, drop path 0.1", functools.partial(timm.create_model, name, drop_path_rate=0.1)


def configured(*names: str, **arguments: Any) -> Callable[[], Iterator[Model]]:
    """Classes of transformers, with these arguments of their configs. A function among them is called."""

    def models() -> Iterator[Model]:
        import transformers

        for name in names:
            prefix = name.removesuffix("ForSemanticSegmentation").removesuffix("Model").removesuffix("Backbone")
            kind, config = getattr(transformers, name), getattr(transformers, f"{prefix}Config")
            made = {key: value() if callable(value) else value for key, value in arguments.items()}
            yield name, lambda kind=kind, config=config, made=made: kind(config(**made))

    return models


def several(*families: Callable[[], Iterator[Model]]) -> Callable[[], Iterator[Model]]:
    def models() -> Iterator[Model]:
        for each in families:
            yield from each()

    return models


def resnet_config() -> Any:
    import transformers

    return transformers.ResNetConfig(out_features=["stage1", "stage2", "stage3", "stage4"])


def pytorchcv_models(*modules: str) -> Callable[[], Iterator[Model]]:
    def models() -> Iterator[Model]:
        for name in modules:
            module = importlib.import_module(f"pytorchcv.models.{name}")
            for constructor in module.__all__:
                # CIFAR networks are the same for each data set; those of 1001 layers repeat one block.
                repeated = ("cifar100", "svhn", "1001", "1202", "_cub", "block")
                if constructor.islower() and not constructor.startswith("get_") and not _any(repeated, constructor):
                    yield constructor, getattr(module, constructor)

    return models


def _any(parts: tuple[str, ...], name: str) -> bool:
    return any(part in name for part in parts)


def monai_resnets() -> Iterator[Model]:
    from monai.networks import nets

    for depth in (10, 18, 34, 50, 101):
        constructor = getattr(nets, f"resnet{depth}")
        for kind in "AB":
            arguments = {"spatial_dims": 2, "n_input_channels": 3, "shortcut_type": kind}
            yield f"resnet{depth}, shortcut {kind}", functools.partial(constructor, **arguments)


def monai_others() -> Iterator[Model]:
    from monai.networks import nets

    plane = {"spatial_dims": 2, "in_channels": 3}
    yield "SegResNet", lambda: nets.SegResNet(**plane)
    yield "SegResNet, batch norm", lambda: nets.SegResNet(**plane, norm="batch")
    yield "HighResNet", lambda: nets.HighResNet(**plane, out_channels=2)
    yield "SEResNet50", lambda: nets.SEResNet50(**plane)
    yield "SEResNext50", lambda: nets.SEResNext50(**plane)
    unet = {**plane, "out_channels": 2, "channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
    yield "UNet", lambda: nets.UNet(**unet)
    yield "UNet, batch norm and ReLU", lambda: nets.UNet(**unet, norm="batch", act="relu")
    dynamic = (2, 3, 2, [3, 3, 3, 3], [1, 2, 2, 2], [2, 2, 2])
    yield "DynUNet", lambda: nets.DynUNet(*dynamic, res_block=True)
    batch = {"norm_name": "batch", "act_name": "relu", "res_block": True}
    yield "DynUNet, batch norm and ReLU", lambda: nets.DynUNet(*dynamic, **batch)


def segmentation_models() -> Iterator[Model]:
    import segmentation_models_pytorch as smp

    encoders = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "se_resnet50", "timm-resnest50d")
    for encoder in (*encoders, "timm-regnetx_002", "timm-regnety_002", "timm-skresnet18", "timm-res2net50_26w_4s"):
        yield f"Unet {encoder}", functools.partial(smp.Unet, encoder, encoder_weights=None)
    yield "DeepLabV3Plus resnet50", lambda: smp.DeepLabV3Plus("resnet50", encoder_weights=None)


def open_clip_models() -> Iterator[Model]:
    from open_clip.modified_resnet import ModifiedResNet

    towers = {"RN50": ((3, 4, 6, 3), 64), "RN101": ((3, 4, 23, 3), 64), "RN50x4": ((4, 6, 10, 6), 80)}
    for name, (layers, width) in towers.items():
        yield f"{name}, vision tower", functools.partial(ModifiedResNet, layers, 1024, width // 2, width=width)
