"""Blocks of torchvision, timm, transformers and pytorchcv: the exact ones convert, no others, and they match eager."""

import copy
import functools
import importlib
import itertools
from collections import Counter

import pytest
import torch
from criterion import assert_close
from torch import Tensor, nn

import resnet_fused
from benchmarks.coverage import __main__ as page
from benchmarks.coverage import survey as surveyed
from benchmarks.coverage.blocks import blocks_of
from benchmarks.coverage.exact import Reading, why_not
from benchmarks.coverage.families import FAMILIES
from benchmarks.coverage.models import build, freeze
from benchmarks.coverage.survey import converted_names

LAYERS = (1, 2, 1, 1)  # a projection in every stage, one identity shortcut


def timm_model(name, **arguments):
    return importlib.import_module("timm").create_model(name, num_classes=100, **arguments)


def torchvision_model(name, folder="", **arguments):
    constructor = getattr(importlib.import_module(f"torchvision.models{folder}"), name)
    return constructor(weights=None, **arguments)


def transformers_model(name, config, **arguments):
    library = importlib.import_module("transformers")
    return getattr(library, name)(getattr(library, config)(**arguments))


def pytorchcv_model(file, name):
    """The network up to its last pooling, which needs larger images."""
    features = getattr(importlib.import_module(f"pytorchcv.models.{file}"), name)().features
    del features.final_pool
    return features


def monai_model(name, **arguments):
    return getattr(importlib.import_module("monai.networks.nets"), name)(spatial_dims=2, **arguments)


def resnet_config(**arguments):
    library = importlib.import_module("transformers")
    stages = ["stage2", "stage4"]
    return library.ResNetConfig(depths=LAYERS, hidden_sizes=[64, 128, 256, 512], out_features=stages, **arguments)


def detr(**arguments):
    arguments = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, **arguments}
    return transformers_model("DetrModel", "DetrConfig", **arguments)


def detr_backbone(**arguments):
    """The backbone inside the encoder, with frozen BatchNorms."""
    model = detr(**arguments)
    return next(part.model for part in model.modules() if type(part).__name__ == "DetrConvEncoder")


def regnet_x():
    """torchvision's RegNetX with fewer blocks."""
    regnet = importlib.import_module("torchvision.models.regnet")
    widths = {"depth": 6, "w_0": 24, "w_a": 24.48, "w_m": 2.54, "group_width": 16}
    return regnet.RegNet(regnet.BlockParams.from_init_params(**widths))


tiny = {"layers": LAYERS}
hf = {"depths": LAYERS, "hidden_sizes": [64, 128, 256, 512]}

# Models of the parity tests, by library.
MODELS = {
    "torchvision fasterrcnn backbone": lambda: freeze(
        torchvision_model("fasterrcnn_resnet50_fpn", ".detection", weights_backbone=None).backbone
    ),
    "torchvision regnet": regnet_x,
    "timm resnet50": lambda: timm_model("resnet50", **tiny),
    "timm resnet26d": lambda: timm_model("resnet26d", layers=(1, 2, 1, 1)),
    "timm resnetv2_50": lambda: timm_model("resnetv2_50", **tiny),
    "timm regnetx_002": lambda: timm_model("regnetx_002"),
    "timm dla34": lambda: timm_model("dla34"),
    "transformers ResNet": lambda: transformers_model("ResNetModel", "ResNetConfig", **hf),
    "transformers RegNet": lambda: transformers_model("RegNetModel", "RegNetConfig", layer_type="x", depths=LAYERS),
    "transformers RT-DETR backbone": lambda: transformers_model("RTDetrResNetBackbone", "RTDetrResNetConfig", **hf),
    "transformers DETR backbone": lambda: detr_backbone(use_timm_backbone=False, backbone_config=resnet_config()),
    "timm transformers DETR backbone": lambda: detr_backbone(backbone="resnet18"),
    "pytorchcv preresnet10": lambda: pytorchcv_model("preresnet", "preresnet10"),
    "monai resnet10, shortcut A": lambda: monai_model("resnet10", n_input_channels=3, shortcut_type="A"),
    "monai HighResNet": lambda: monai_model("HighResNet", in_channels=3),
}

# More models, whose blocks are only recognised. Some are exact in part or not at all.
SHORTENED = ("resnext50_32x4d", "resnetblur18", "seresnet18", "ecaresnet50t", "resnet50_gn", "resnetv2_50d")
WHOLE = (
    *("resnet18", "resnetv2_50x1_bit", "regnety_002", "regnetz_b16", "dla60_res2net", "res2net50d", "resnest14d"),
    *("gernet_s", "skresnet18", "cspresnet50", "darknet53", "resnet51q"),
)
RECOGNISED = {
    **{f"timm {name}": functools.partial(timm_model, name, **tiny) for name in SHORTENED},
    **{f"timm {name}": functools.partial(timm_model, name) for name in WHOLE},
    "timm hrnet_w18_small": lambda: timm_model("hrnet_w18_small"),
    "torchvision regnet_y_400mf": lambda: torchvision_model("regnet_y_400mf"),
    "transformers ResNet, basic": lambda: transformers_model("ResNetModel", "ResNetConfig", layer_type="basic", **hf),
    "transformers RegNet y": lambda: transformers_model("RegNetModel", "RegNetConfig", depths=LAYERS),
    "transformers BiT": lambda: transformers_model("BitModel", "BitConfig", depths=LAYERS),
    "pytorchcv seresnet10": lambda: pytorchcv_model("seresnet", "seresnet10"),
    "pytorchcv resnet10": lambda: pytorchcv_model("resnet", "resnet10"),
}


def constructed(name):
    """The model on the meta device. Skips if a library named in ``name`` is not installed."""
    known = ("torchvision", "timm", "transformers", "pytorchcv", "monai")
    for library in (word for word in name.split() if word in known):
        pytest.importorskip(library)
    construct = {**MODELS, **RECOGNISED}[name]
    if "torchvision regnet" in name:  # its initialisation needs values
        return construct().to("meta")
    with torch.device("meta"):
        return construct()


def shortened(model):
    """Removes layers of a stage that two others equal: tracing takes the time. The model no longer runs."""
    for stage in [part for part in model.modules() if isinstance(part, (nn.Sequential, nn.ModuleList))]:
        seen = Counter()
        for name, layer in list(stage.named_children()):
            seen[repr(layer)] += 1
            if seen[repr(layer)] > 2:
                del stage._modules[name]
    return model


def filled(name):
    """The model in eval mode with random values. Its BatchNorms are far from the identity."""
    model = constructed(name).to_empty(device="cpu").eval()
    with torch.no_grad():
        for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
            field = path.rpartition(".")[2]
            if not tensor.is_floating_point():
                tensor.zero_()
            elif tensor.dim() > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
            elif field in ("weight", "running_var"):
                tensor.uniform_(0.5, 1.2)
            else:
                tensor.normal_(0, 0.2)
    return model.requires_grad_()


def image(dtype):
    # No output one pixel wide: oneDNN 3.12 with AMX reads uninitialised memory there, and eager's bfloat16 may be NaN.
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 64, generator=generator, dtype=torch.float64).to(dtype)


def tensors(output):
    """The tensors of an output, which may be a dictionary or a list."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if hasattr(output, "values") else output
    return [tensor for part in parts if part is not None for tensor in tensors(part)]


def converted(model):
    """The names of the blocks that ``convert`` fuses in this model."""
    return set(converted_names(resnet_fused.report(resnet_fused.convert(model))))


def exact_blocks(model):
    """The names of an eager model's exact blocks, and of its others."""
    blocks = list(blocks_of(model))
    assert blocks
    return {block.name for block in blocks if block.exact}, {block.name for block in blocks if not block.exact}


@pytest.mark.parametrize("name", RECOGNISED)
def test_exact_blocks_convert_and_no_others(name):
    model = shortened(constructed(name).eval())
    exact, others = exact_blocks(model)
    assert converted(model) & (exact | others) == exact


@pytest.mark.parametrize(
    "names",
    [
        ("timm resnet18", "timm seresnet18", "timm resnetblur18"),
        ("transformers DETR backbone", "transformers ResNet"),
        ("transformers RegNet", "transformers RegNet y"),
    ],
    ids=lambda names: names[0],
)
def test_order_of_models_does_not_matter(names):
    forward = {name: converted(shortened(constructed(name))) for name in names}
    backward = {name: converted(shortened(constructed(name))) for name in reversed(names)}
    assert forward == backward


@pytest.mark.parametrize("name", MODELS)
def test_exact_blocks_convert_and_match_eager(name):
    eager = filled(name)
    exact, others = exact_blocks(eager)
    fused = copy.deepcopy(eager)
    assert converted(fused) & (exact | others) == exact
    assert_matches_in_float64(copy.deepcopy(eager).double(), copy.deepcopy(fused).double())
    for dtype in (torch.float32, torch.bfloat16):
        assert_matches_as_well_as_eager(eager.to(dtype), fused.to(dtype), dtype)


def assert_matches_in_float64(eager, fused):
    """Compares outputs in eval mode, then outputs, gradients and buffers of a training step."""
    x = image(torch.float64)
    with torch.no_grad():
        assert_same(numbered(tensors(fused(x))), numbered(tensors(eager(x))))
    for actual, expected in zip(step(fused, x), step(eager, x), strict=True):
        assert_same(actual, expected)


def numbered(outputs):
    return {f"output {number}": output for number, output in enumerate(outputs)}


def step(model, x):
    """Outputs, gradients and buffers of one training step. Every output contributes to the loss."""
    found = tensors(model.train()(x))
    generator = torch.Generator().manual_seed(2)
    loss = sum((y * torch.randn(y.shape, generator=generator, dtype=torch.float64)).sum() for y in found)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return numbered(y.detach() for y in found), gradients, dict(model.named_buffers())


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    # A gradient that is only rounding, such as a bias's before a BatchNorm, is relative to the largest.
    floor = 1e-6 * max((tensor.double().norm().item() for tensor in expected.values()), default=0)
    for name, tensor in expected.items():
        assert torch.isfinite(tensor).all(), name
        error = (actual[name].double() - tensor.double()).norm() / tensor.double().norm().clamp(min=floor)
        assert error <= 1e-9, f"{name} differs by {error:.1e}"


def assert_matches_as_well_as_eager(eager, fused, dtype):
    """Compares outputs in eval and training mode. Eager's error is that of its worse memory format."""
    formats = (torch.contiguous_format, torch.channels_last)
    truths = outputs(copy.deepcopy(eager).double(), torch.float64, formats[0], image(dtype))
    runs, ours = (
        [outputs(copy.deepcopy(model), dtype, memory_format, image(dtype)) for memory_format in formats]
        for model in (eager, fused)
    )
    for number, truth in enumerate(truths):
        worse = max((run[number] for run in runs), key=lambda y: (y.double() - truth).abs().max().item())
        for run in ours:
            assert len(run) == len(truths)
            assert_close(run[number], worse, truth)


@torch.no_grad()
def outputs(model, dtype, memory_format, x):
    """Outputs in eval mode, then in training mode, which changes the model's running averages."""
    model = model.to(memory_format=memory_format)
    x = x.to(dtype).contiguous(memory_format=memory_format)
    return [y for training in (False, True) for y in tensors(model.train(training)(x))]


def conv(**arguments):
    return nn.Conv2d(4, 4, 3, **arguments)


def norm():
    return nn.BatchNorm2d(4)


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (Reading((conv(), norm(), nn.ReLU(), conv(), norm()), (nn.ReLU(),)), ""),
        (Reading((nn.Sequential(conv(groups=2), nn.SyncBatchNorm(4)),), ()), ""),
        (Reading((norm(), nn.ReLU(), conv(), norm(), nn.ReLU(), conv(), nn.Dropout().eval())), ""),
        (Reading((norm(), nn.ReLU(), conv()), (nn.ReLU(),)), "pre-activation with a ReLU after the addition"),
        (Reading((conv(),), (nn.ReLU(),)), ""),
        (Reading((conv(), norm(), nn.ReLU())), "the branch is conv, norm, ReLU"),
        (Reading((conv(), nn.ReLU(), conv(), norm())), "the branch is conv, ReLU, conv, norm"),
        (Reading((conv(), norm(), nn.Dropout())), "Dropout in the branch"),
        (Reading((conv(), norm(), nn.ReLU6(), conv(), norm())), "ReLU6 in the branch"),
        (Reading((conv(), nn.GroupNorm(1, 4))), "GroupNorm in the branch"),
        (Reading((conv(), norm()), (nn.SiLU(),)), "SiLU after the addition"),
        (Reading((conv(padding="same"), norm())), "padding zeros same in the branch"),
        (Reading((conv(padding=1, padding_mode="reflect"), norm())), "padding reflect (1, 1) in the branch"),
    ],
    ids=lambda value: value or "exact" if isinstance(value, str) else "",
)
def test_criterion_by_hand(reading, why):
    assert why_not(reading) == why


def test_committed_page_lists_every_family():
    text = page.FILE.read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    families = [family.name for family in FAMILIES]
    assert [row for row in rows if row in families] == families, page.COMMAND


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_two_models_of_each_family(family, monkeypatch):
    """The rows of the page, for two models: all exact blocks convert and no others."""
    monkeypatch.setattr(surveyed, "build", lambda construct: shortened(build(construct)))
    for package in family.missing():
        pytest.skip(f"{package} is not installed")
    result = surveyed.survey(family, 2)
    assert not result.failed
    assert result.models
    assert result.found
    assert not result.missed()
    assert not result.overdone()
    assert not result.unlisted
