"""Whether a chain of convolutions and BatchNorms with a shortcut computes a block exactly.

Judged from a hand-written reading of the block's ``forward`` (:mod:`.blocks`), by class and attributes. Two forms are
exact:

    post-activation:  conv norm relu ... conv [norm]  + shortcut, then a ReLU or nothing
    pre-activation:   norm relu conv ... norm relu conv  + shortcut

The shortcut may be any function of the block's input or, in the second form, of the first activated tensor. Eval mode:
dropout and drop path compute nothing.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn


class Reading(NamedTuple):
    """What a block's ``forward`` does.

    Attributes:
        branch: the modules of the residual branch, in the order of their calls. None stands for nothing.
        after: those after the addition.
        never: why no instance of the class is exact; empty if ``branch`` and ``after`` decide.
    """

    branch: tuple[nn.Module | None, ...] = ()
    after: tuple[nn.Module | None, ...] = ()
    never: str = ""


# The parts of other modules, in the order of their calls. An attribute that is missing or None stands for nothing.
PARTS = {
    "timm.layers.conv_bn_act.ConvNormAct": ("conv", "bn", "aa"),
    "transformers.models.resnet.modeling_resnet.ResNetConvLayer": ("convolution", "normalization", "activation"),
    "transformers.models.regnet.modeling_regnet.RegNetConvLayer": ("convolution", "normalization", "activation"),
    "transformers.models.rt_detr.modeling_rt_detr_resnet.RTDetrResNetConvLayer": (
        "convolution",
        "normalization",
        "activation",
    ),
    "pytorchcv.models.common.conv.ConvBlock": ("pad", "conv", "bn", "activ"),
    "pytorchcv.models.common.conv.PreConvBlock": ("bn", "activ", "conv"),
    "pytorchcv.models.drn.DRNConv": ("conv", "bn", "activ"),
    "pytorchcv.models.wrn.WRNConv": ("conv", "activ"),
    "pytorchcv.models.ibnresnet.IBNConvBlock": ("conv", "ibn", "bn", "activ"),
    "pytorchcv.models.ror_cifar.RoRBlock": ("conv1", "dropout", "conv2"),
    "pytorchcv.models.regnet.RegNetBottleneck": ("conv1", "conv2", "se", "conv3"),
    "pytorchcv.models.airnet.AirBottleneck": ("conv1", "conv2", "air", "conv3"),
    "pytorchcv.models.airnext.AirNeXtBottleneck": ("conv1", "conv2", "air", "conv3"),
    "pytorchcv.models.sknet.SKNetBottleneck": ("conv1", "conv2", "conv3"),
    **{
        f"pytorchcv.models.{name}": ("conv1", "conv2", "conv3")
        for name in (
            "resnet.ResBlock",
            "resnet.ResBottleneck",
            "preresnet.PreResBlock",
            "preresnet.PreResBottleneck",
            "resnext.ResNeXtBottleneck",
            "senet.SENetBottleneck",
            "wrn.WRNBottleneck",
            "pyramidnet.PyrBlock",
            "pyramidnet.PyrBottleneck",
            "bagnet.BagNetBottleneck",
            "dla.DLABottleneck",
            "dla.DLABottleneckX",
            "dla.DLABottleneckX64",
            "drn.DRNBlock",
            "drn.DRNBottleneck",
            "ibnresnet.IBNResBottleneck",
            "resattnet.PreResBottleneck",
        )
    },
}

# BatchNorms. Those with an activation inside apply `drop` and `act` afterwards.
NORMS = {
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
}
DROPS = {"Dropout", "Dropout2d", "DropPath", "BitDropPath", "StochasticDepth", "DropBlock2d"}

POST, PRE = re.compile(r"(cnr)*cn?"), re.compile(r"(nrc)+")
WORDS = {"c": "conv", "n": "norm", "r": "ReLU"}


def name_of(kind: type) -> str:
    """The class name with its module, by which the tables find it without importing a library."""
    return f"{kind.__module__}.{kind.__name__}"


def why_not(reading: Reading) -> str:
    """Why a block is not exact; empty if it is."""
    if reading.never:
        return reading.never
    branch, after = list(_symbols(reading.branch)), list(_symbols(reading.after))
    strange = next((symbol for symbol in branch if symbol not in WORDS), None)
    if strange is not None:
        return f"{strange} in the branch"
    strange = next((symbol for symbol in after if symbol != "r"), None)
    if strange is not None:
        return f"{WORDS.get(strange, strange)} after the addition"
    chain = "".join(branch)
    if POST.fullmatch(chain):
        return ""
    if PRE.fullmatch(chain):
        return "pre-activation with a ReLU after the addition" if after else ""
    return "the branch is " + ", ".join(WORDS[symbol] for symbol in branch)


def _symbols(modules: tuple[nn.Module | None, ...]) -> Iterator[str]:
    """``c``, ``n`` or ``r`` for each convolution, BatchNorm and ReLU; for another module what it is."""
    for module in modules:
        name = "" if module is None else name_of(type(module))
        if module is None or type(module) is nn.Identity:
            continue
        if name in PARTS:
            yield from _symbols(tuple(getattr(module, part, None) for part in PARTS[name]))
        elif isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from _symbols(tuple(module))
        elif type(module) is nn.Conv2d:
            plain = module.padding_mode == "zeros" and not isinstance(module.padding, str)
            yield "c" if plain else f"padding {module.padding_mode} {module.padding}"
        elif name in NORMS or (name.startswith("transformers.") and name.endswith("FrozenBatchNorm2d")):
            yield "n"
            yield from _symbols((getattr(module, "drop", None), getattr(module, "act", None)))
        elif type(module) is nn.ReLU:
            yield "r"
        elif type(module).__name__ not in DROPS or module.training:
            yield type(module).__name__
