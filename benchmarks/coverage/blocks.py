"""What each class of residual block computes, read by hand from its ``forward``.

:data:`READINGS` maps class names to a function that gives a block's :class:`~.exact.Reading`, or None if this instance
adds no shortcut. A class that is not here counts neither as a block nor as missing: :data:`LEFT_OUT` lists what that
concerns in the surveyed models.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

from .exact import Reading, name_of, why_not

SPLITS = "splits channels into groups that feed each other (Res2Net)"
ATTENTION = "attention in the branch"


class Block(NamedTuple):
    """A residual block of a model."""

    name: str
    kind: str
    exact: bool
    why: str


def _of(branch: str, after: str = "") -> Callable[[Any], Reading]:
    """The reading of a class whose branch calls these attributes in this order, each that exists."""

    def read(block: Any) -> Reading:
        parts = (tuple(getattr(block, name, None) for name in names.split()) for names in (branch, after))
        return Reading(*parts)

    return read


def _if(attribute: str, reading: Callable[[Any], Reading]) -> Callable[[Any], Reading | None]:
    """As ``reading``, but no residual block if the attribute is None or False."""
    return lambda block: reading(block) if getattr(block, attribute) not in (None, False) else None


def _never(why: str) -> Callable[[Any], Reading]:
    return lambda block: Reading(never=why)


def _quantizable(block: Any) -> Reading:
    # FloatFunctional.add_relu adds, applies a ReLU, and calls an observer only after prepare().
    add = block.add_relu if hasattr(block, "add_relu") else block.skip_add_relu
    reading = _of("conv1 bn1 relu conv2 bn2")(block)
    if hasattr(block, "conv3"):
        reading = _of("conv1 bn1 relu1 conv2 bn2 relu2 conv3 bn3")(block)
    return reading._replace(after=(nn.ReLU(), add.activation_post_process))


def _ror(block: Any) -> Reading:
    return Reading((block.body,), (block.activ,) if block.last_activate else ())


def _dla_pytorchcv(block: Any) -> Reading:
    if block.return_down:
        return Reading(never="also returns the pooled input")
    return _of("body", "activ")(block)


BASIC, BOTTLENECK = "conv1 bn1 relu conv2 bn2", "conv1 bn1 relu conv2 bn2 relu conv3 bn3"
TORCHVISION = {
    "torchvision.models.resnet.BasicBlock": _of(BASIC, "relu"),
    "torchvision.models.resnet.Bottleneck": _of(BOTTLENECK, "relu"),
    "torchvision.models.quantization.resnet.QuantizableBasicBlock": _quantizable,
    "torchvision.models.quantization.resnet.QuantizableBottleneck": _quantizable,
    "torchvision.models.regnet.ResBottleneckBlock": _of("f", "activation"),
}

TIMM = {
    "resnet.BasicBlock": _of("conv1 bn1 drop_block act1 aa conv2 bn2 se drop_path", "act2"),
    "resnet.Bottleneck": _of("conv1 bn1 act1 conv2 bn2 drop_block act2 aa conv3 bn3 se drop_path", "act3"),
    "resnetv2.PreActBasic": _of("norm1 conv1 norm2 conv2 drop_path"),
    "resnetv2.PreActBottleneck": _of("norm1 conv1 norm2 conv2 norm3 conv3 drop_path"),
    "resnetv2.Bottleneck": _of("conv1 norm1 conv2 norm2 conv3 norm3 drop_path", "act3"),
    "regnet.Bottleneck": _if("downsample", _of("conv1 conv2 se conv3 drop_path", "act3")),
    "regnet.PreBottleneck": _if("downsample", _of("norm1 conv1 norm2 conv2 se norm3 conv3 drop_path")),
    "byobnet.BasicBlock": _if("shortcut", _of("conv1_kxk attn conv2_kxk attn_last drop_path", "act")),
    "byobnet.BottleneckBlock": _if(
        "shortcut", _of("conv1_1x1 conv2_kxk conv2b_kxk attn conv3_1x1 attn_last drop_path", "act")
    ),
    "byobnet.DarkBlock": _if("shortcut", _of("conv1_1x1 attn conv2_kxk attn_last drop_path", "act")),
    "byobnet.EdgeBlock": _if("shortcut", _of("conv1_kxk attn conv2_1x1 attn_last drop_path", "act")),
    "byobnet.SelfAttnBlock": _never(ATTENTION),
    # The shortcut is an argument, or the block's input.
    "dla.DlaBasic": _of(BASIC, "relu"),
    "dla.DlaBottleneck": _of(BOTTLENECK, "relu"),
    "dla.DlaBottle2neck": _never(SPLITS),
    "res2net.Bottle2neck": _never(SPLITS),
    "resnest.ResNestBottleneck": _never("split attention"),
    "sknet.SelectiveKernelBasic": _never("selective kernels"),
    "sknet.SelectiveKernelBottleneck": _never("selective kernels"),
    "cspnet.BottleneckBlock": _of("conv1 conv2 attn2 conv3 attn3 drop_path", "act3"),
    "cspnet.DarkBlock": _of("conv1 attn conv2 drop_path"),
    "cspnet.EdgeBlock": _of("conv1 attn conv2 drop_path"),
    "senet.SEBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "senet.SEResNetBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "senet.SEResNeXtBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "senet.SEResNetBlock": _of(f"{BASIC} se_module", "relu"),
}

HUGGING_FACE = {
    "resnet.modeling_resnet.ResNetBasicLayer": _of("layer", "activation"),
    "resnet.modeling_resnet.ResNetBottleNeckLayer": _of("layer", "activation"),
    "regnet.modeling_regnet.RegNetXLayer": _of("layer", "activation"),
    "regnet.modeling_regnet.RegNetYLayer": _of("layer", "activation"),
    "rt_detr.modeling_rt_detr_resnet.RTDetrResNetBasicLayer": _of("layer", "activation"),
    "rt_detr.modeling_rt_detr_resnet.RTDetrResNetBottleNeckLayer": _of("layer", "activation"),
    "bit.modeling_bit.BitPreActivationBottleneckLayer": _of("norm1 conv1 norm2 conv2 norm3 conv3 drop_path"),
    "bit.modeling_bit.BitBottleneckLayer": _of("conv1 norm1 conv2 norm2 conv3 norm3 drop_path", "activation"),
}

PYTORCHCV = {
    "resnet.ResUnit": _of("body", "activ"),
    "preresnet.PreResUnit": _of("body"),
    "resnext.ResNeXtUnit": _of("body", "activ"),
    "senet.SENetUnit": _of("body se", "activ"),
    "seresnet.SEResUnit": _of("body se", "activ"),
    "sepreresnet.SEPreResUnit": _of("body se"),
    "seresnext.SEResNeXtUnit": _of("body se", "activ"),
    "wrn.WRNUnit": _of("body", "activ"),
    "pyramidnet.PyrUnit": _of("body bn"),
    "resneta.ResAUnit": _of("body", "activ"),
    "airnet.AirUnit": _of("body", "activ"),
    "airnext.AirNeXtUnit": _of("body", "activ"),
    "bagnet.BagNetUnit": _of("body", "activ"),
    "dla.DLAResBlock": _dla_pytorchcv,
    "drn.DRNUnit": _if("residual", _of("body", "activ")),
    "cbamresnet.CbamResUnit": _never(ATTENTION),
    "ibnresnet.IBNResUnit": _of("body", "activ"),
    "ibnbresnet.IBNbResUnit": _of("body", "inst_norm activ"),
    "resnesta.ResNeStAUnit": _never("split attention"),
    "sknet.SKNetUnit": _never("selective kernels"),
    "regnet.RegNetUnit": _of("body", "activ"),
    "diaresnet.DIAResUnit": _never(ATTENTION),
    "resdropresnet_cifar.ResDropResUnit": _of("body", "activ"),
    "ror_cifar.RoRResUnit": _ror,
    "shakeshakeresnet_cifar.ShakeShakeResUnit": _never("adds scaled branches"),
    "shakedropresnet_cifar.ShakeDropResUnit": _never("scales its branch"),
    "resattnet.ResBlock": _of("body"),
}

MONAI = {
    "nets.resnet.ResNetBlock": _of("conv1 bn1 act conv2 bn2", "act"),
    "nets.resnet.ResNetBottleneck": _of("conv1 bn1 act conv2 bn2 act conv3 bn3", "act"),
    "blocks.squeeze_and_excitation.SEResNetBottleneck": _of("conv1 conv2 conv3 se_layer", "act"),
    "blocks.squeeze_and_excitation.SEResNeXtBottleneck": _of("conv1 conv2 conv3 se_layer", "act"),
    "blocks.segresnet_block.ResBlock": _of("norm1 act conv1 norm2 act conv2"),
    "blocks.convolutions.ResidualUnit": _of("conv"),
    "blocks.dynunet_block.UnetResBlock": _of("conv1 norm1 lrelu conv2 norm2", "lrelu"),
    "nets.highresnet.HighResBlock": _of("layers"),
}

OTHERS = {
    "segmentation_models_pytorch.encoders._senet.SEResNetBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "segmentation_models_pytorch.encoders._senet.SEResNeXtBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "segmentation_models_pytorch.encoders._senet.SEBottleneck": _of(f"{BOTTLENECK} se_module", "relu"),
    "open_clip.modified_resnet.Bottleneck": _of("conv1 bn1 act1 conv2 bn2 act2 avgpool conv3 bn3", "act3"),
}

READINGS: dict[str, Callable[[Any], Reading | None]] = {
    **TORCHVISION,
    **{f"timm.models.{name}": reading for name, reading in TIMM.items()},
    **{f"transformers.models.{name}": reading for name, reading in HUGGING_FACE.items()},
    **{f"pytorchcv.models.{name}": reading for name, reading in PYTORCHCV.items()},
    **{f"monai.networks.{name}": reading for name, reading in MONAI.items()},
    **OTHERS,
}

# Classes of the surveyed models that hold convolutions and add something, but are not counted, and why.
LEFT_OUT = {
    "timm's RepVggBlock and MobileOneBlock, Hugging Face's RepVggBlock": "sums of branches; those of two convert",
    "timm's DlaTree, HighResolutionModule and CrossStage, pytorchcv's DLATree and HRBlock": "stages that hold blocks",
    "timm's SelecSlsBlock and OsaBlock, pytorchcv's SelecSLSUnit, Hugging Face's HGNetV2BasicLayer": "concatenations",
    "pytorchcv's BamResUnit and resattnet's AttBlock": "attention around blocks that are counted",
    "pytorchcv's RiRUnit and RevUnit": "two streams instead of a shortcut",
    "heads, decoders and feature pyramids of detectors and segmenters": "no residual blocks",
}


def blocks_of(model: nn.Module) -> Iterator[Block]:
    """The residual blocks of an eager model, those inside other blocks included."""
    for name, module in model.named_modules():
        kind = name_of(type(module))
        reading = READINGS[kind](module) if kind in READINGS else None
        if reading is not None:
            why = why_not(reading)
            yield Block(name, kind, not why, why)
