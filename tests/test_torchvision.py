"""torchvision's ResNet family converts completely, matches, and keeps its classes."""

import copy

import pytest
import torch
from criterion import assert_close
from support import randomise, truth
from torch import nn

import resnet_fused

tv = pytest.importorskip("torchvision.models")
resnet = tv.resnet

# Many outputs make the largest error meaningful; over only ten, eager's may be small by chance.
CLASSES = 500

FAMILY = [name for name in resnet.__all__ if name.islower()]


def build(constructor, **arguments):
    """Builds with uniform weights whose variance is that of torchvision's initialisation, which is slow."""
    with torch.device("meta"):
        model = constructor(**arguments)
    model = model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            bound = (6 / fan_in) ** 0.5
            module.weight.data.uniform_(-bound, bound)
            if module.bias is not None:
                module.bias.data.zero_()
    return randomise(model).eval()


def test_the_family_is_complete():
    assert {"resnet18", "resnet50", "resnet152", "resnext101_64x4d", "wide_resnet101_2"} <= set(FAMILY)


@pytest.mark.parametrize("name", FAMILY)
def test_every_constructor_converts_completely_and_matches(name, device):
    model = build(getattr(tv, name), num_classes=CLASSES).to(device)
    blocks = [m for m in model.modules() if isinstance(m, resnet.BasicBlock | resnet.Bottleneck)]
    side = 32 if any(large in name for large in ("101", "152", "wide")) else 64
    x = torch.randn(1, 3, side, side, device=device)
    with torch.no_grad():
        expected = model(x)
        resnet_fused.convert(model, strict=True)
        assert resnet_fused.report(model).count("converted") == len(blocks) + 1
        actual = model(x)
        resnet_fused.revert(model)
        assert type(model) is resnet.ResNet
        exact = model.double()(x.double())
    assert_close(actual, expected, exact)


def test_converted_parts_keep_torchvisions_classes():
    model = resnet_fused.convert(tv.resnet18())
    assert isinstance(model, resnet.ResNet)
    assert isinstance(model.layer1[0], resnet.BasicBlock)
    assert isinstance(model.layer1[0], resnet_fused.FusedBasicBlock)
    assert isinstance(resnet_fused.convert(tv.resnet50()).layer1[0], resnet_fused.FusedBottleneck)


@pytest.mark.parametrize(
    ("fused", "eager"),
    [(resnet_fused.FusedBasicBlock, resnet.BasicBlock), (resnet_fused.FusedBottleneck, resnet.Bottleneck)],
)
def test_torchvisions_network_builds_from_fused_blocks(fused, eager, device):
    torch.manual_seed(0)
    reference = resnet.ResNet(eager, [1, 1, 1, 1], num_classes=CLASSES).eval().to(device)
    torch.manual_seed(0)
    model = resnet.ResNet(fused, [1, 1, 1, 1], num_classes=CLASSES).eval().to(device)
    for a, b in zip(reference.state_dict().items(), model.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1])
    x = torch.randn(2, 3, 40, 40, device=device)
    with torch.no_grad():
        assert_close(model(x), reference(x), truth(reference, x))
    resnet_fused.convert(model, strict=True)
    assert resnet_fused.report(model)[""].status == "converted"


@pytest.mark.parametrize("fused", [resnet_fused.FusedPreActBlock, resnet_fused.FusedPreActBottleneck])
def test_torchvisions_network_builds_from_preactivation_blocks(fused, device):
    model = randomise(resnet.ResNet(fused, [1, 1, 1, 1], num_classes=CLASSES)).eval().to(device)
    x = torch.randn(2, 3, 40, 40, device=device)
    with torch.no_grad():
        actual = model(x)
        resnet_fused.revert(model)
        assert_close(actual, model(x), truth(model, x))


@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("model_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_formats_and_dtypes(x_format, model_format, dtype, device):
    model = randomise(tv.resnet18(num_classes=CLASSES)).eval().to(device, dtype, memory_format=model_format)
    x = torch.randn(2, 3, 48, 48, device=device).to(dtype=dtype, memory_format=x_format)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        assert_close(resnet_fused.convert(model)(x), expected, exact)


def test_autocast(device):
    model = randomise(tv.resnet50(num_classes=CLASSES)).eval().to(device)
    x = torch.randn(2, 3, 48, 48, device=device)
    exact = truth(model, x)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        expected = model(x)
        assert_close(resnet_fused.convert(model)(x), expected, exact)


def test_dilated_backbone(device):
    dilate = [False, True, True]
    model = randomise(tv.resnet50(num_classes=CLASSES, replace_stride_with_dilation=dilate)).eval().to(device)
    x = torch.randn(1, 3, 64, 64, device=device)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        assert_close(resnet_fused.convert(model, strict=True)(x), expected, exact)


def test_fused_training_off_is_bitwise_eager(device):
    eager = tv.resnet18(num_classes=CLASSES, zero_init_residual=True).to(device)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    for module in fused.modules():
        module.fused_training = False
    x = torch.randn(2, 3, 40, 40, device=device)
    for model in (eager, fused):
        model(x).square().mean().backward()
    for (name, a), b in zip(eager.named_parameters(), fused.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(eager.named_buffers(), fused.buffers(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_quantizable_blocks_convert_until_they_are_prepared(name):
    quantizable = pytest.importorskip("torchvision.models.quantization")
    eager = randomise(getattr(quantizable, name)(quantize=False)).double().eval()
    model = resnet_fused.convert(copy.deepcopy(eager))
    report = resnet_fused.report(model)
    assert report.coverage.fused == report.coverage.blocks == len(report) - 1
    theirs = "torchvision.models.quantization.resnet.Quantizable"
    assert report[""].reason == f"{theirs}ResNet overrides forward of torchvision.models.resnet.ResNet"
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert {run.how for name, run in resnet_fused.explain(model, x).items() if name} == {"inference"}
        assert torch.allclose(model(x), eager(x), rtol=1e-9)


def test_group_norm_is_refused():
    model = tv.resnet18(norm_layer=lambda planes: nn.GroupNorm(2, planes))
    report = resnet_fused.report(resnet_fused.convert(model))
    assert report.count("converted") == 0
    assert report["layer1.0"].reason == "layer1.0.bn1 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d"
    assert report[""].reason == "bn1 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d"
    with pytest.raises(ValueError, match=r"layer4.1 \(\S+\): layer4.1.bn1 is torch.nn.GroupNorm"):
        resnet_fused.convert(model, strict=True)


def test_a_users_model_of_torchvision_blocks(device):
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(resnet.BasicBlock(4, 4), resnet.Bottleneck(4, 1))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    model = randomise(Pyramid()).eval().to(device)
    x = torch.randn(2, 4, 9, 9, device=device)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        assert_close(resnet_fused.convert(model, strict=True)(x), expected, exact)
    assert list(resnet_fused.report(model)) == ["body.0", "body.1"]


def test_parts_of_a_network_can_be_used_alone(device):
    model = randomise(tv.resnet18(num_classes=CLASSES)).eval().to(device)
    features = nn.Sequential(*list(resnet_fused.convert(model).children())[:-2])
    x = torch.randn(1, 3, 32, 32, device=device)
    with torch.no_grad():
        actual = features(x)
        resnet_fused.revert(model)
        assert_close(actual, features(x), truth(features, x))
