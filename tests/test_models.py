"""Our networks match torchvision and the papers, take any input size, and convert."""

import copy

import criterion
import pytest
import torch

import resnet_fused
from resnet_fused import models
from resnet_fused.cli._errors import CommandError
from resnet_fused.cli._torchvision import import_torchvision_models

IMAGENET = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
CIFAR_VARIANTS = [
    dict(preact=preact, residual=residual, shortcut=shortcut)
    for preact in (False, True)
    for residual in (False, True)
    for shortcut in ("A", "B")
]


@pytest.fixture(scope="module")
def torchvision_models():
    try:
        return import_torchvision_models()
    except CommandError as error:
        pytest.skip(str(error))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def randomise_statistics(model):
    """Sets statistics other than 0 and 1, so that a test notices an omitted or swapped norm."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()


@pytest.mark.parametrize("name", IMAGENET)
def test_names_shapes_and_order_match_torchvision(torchvision_models, name):
    with torch.device("meta"):
        ours, theirs = getattr(models, name)(), getattr(torchvision_models, name)()
    assert [(k, v.shape, v.dtype) for k, v in ours.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in theirs.state_dict().items()
    ]
    assert [k for k, _ in ours.named_modules()] == [k for k, _ in theirs.named_modules()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", dict(num_classes=7, zero_init_residual=True)),
        ("resnet50", dict(zero_init_residual=True)),
        ("resnet50", dict(groups=32, width_per_group=4)),
        ("resnet50", dict(width_per_group=128, replace_stride_with_dilation=[False, True, True])),
        ("resnet18", dict(norm_layer=lambda c: torch.nn.GroupNorm(8, c))),
    ],
)
def test_initialisation_and_output_match_torchvision(torchvision_models, name, options):
    torch.manual_seed(0)
    ours = getattr(models, name)(**options)
    torch.manual_seed(0)
    theirs = getattr(torchvision_models, name)(**options)
    for (key, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    x = torch.randn(2, 3, 33, 33)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_state_dict_loads_both_ways(torchvision_models):
    ours, theirs = models.resnet18(), randomise_statistics(torchvision_models.resnet18())
    x = torch.randn(2, 3, 33, 33)
    ours.load_state_dict(theirs.state_dict())
    expected = theirs(x)
    assert torch.equal(ours.eval()(x), expected)
    back = torchvision_models.resnet18().eval()
    back.load_state_dict(ours.state_dict())
    assert torch.equal(back(x), expected)


def test_replace_stride_with_dilation_needs_three_flags():
    with pytest.raises(ValueError, match="3 flags"):
        models.resnet50(replace_stride_with_dilation=[True])


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_parameter_counts_match_the_papers(depth, millions):
    digits = 1 if depth == 110 else 2  # as table 6 rounds them
    assert round(parameters(models.cifar_resnet(depth)) / 1e6, digits) == millions


@pytest.mark.parametrize("variant", CIFAR_VARIANTS)
def test_cifar_layers_and_output(variant):
    depth = 14
    model = models.cifar_resnet(depth, num_classes=7, in_channels=1, **variant).eval()
    layers = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len([n for n in layers if "downsample" not in n]) == depth
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.layer3(model.layer2(model.layer1(model.conv1(torch.randn(2, 1, 32, 32))))).shape == (2, 64, 8, 8)


@pytest.mark.parametrize("preact", [False, True])
def test_only_projections_add_parameters(preact):
    counts = {
        (residual, shortcut): parameters(models.cifar_resnet(20, preact, residual, shortcut))
        for residual in (False, True)
        for shortcut in ("A", "B")
    }
    assert counts[False, "A"] == counts[False, "B"] == counts[True, "A"] < counts[True, "B"]


@pytest.mark.parametrize("preact", [False, True])
def test_plain_nets_have_no_shortcut(preact):
    model = models.cifar_resnet(8, preact, residual=False).eval()
    block = model.layer1[0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 16, 4, 4)
    assert torch.equal(block(x), torch.zeros_like(x))


def test_preact_ends_in_norm_and_relu():
    model = randomise_statistics(models.cifar_resnet(8, preact=True))
    x = torch.randn(1, 3, 16, 16)
    features = model.layer3(model.layer2(model.layer1(model.conv1(x))))
    expected = model.fc(model.bn1(features).relu().mean((2, 3)))
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("depth", [2, 3, 21, -4, 18])
def test_depth_must_be_6n_plus_2(depth):
    with pytest.raises(ValueError, match=r"6n \+ 2.*got"):
        models.cifar_resnet(depth)


def test_unknown_shortcut():
    with pytest.raises(ValueError, match=r"shortcut must be .* got 'C'"):
        models.cifar_resnet(20, shortcut="C")


@pytest.mark.parametrize("make", [models.small_resnet, models.small_preact_resnet])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8), (17, 5), (64, 96)])
def test_small_networks_take_any_size(make, size):
    model = make(num_classes=5, in_channels=2).eval()
    assert model(torch.randn(3, 2, *size)).shape == (3, 5)
    assert model.layer2[0].conv2.weight.shape == (32, 32, 3, 3)


@pytest.mark.parametrize("make", [models.small_resnet, models.small_preact_resnet])
def test_small_networks_learn(make):
    model = make()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(16, 3, 8, 8), torch.arange(16) % 10
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1


CONVERTED = {
    "resnet18": (lambda: models.resnet18(num_classes=20), 3),
    "resnet50": (lambda: models.resnet50(num_classes=20), 3),
    "small_resnet": (models.small_resnet, 3),
    "small_preact_resnet": (models.small_preact_resnet, 3),
    **{
        f"cifar_resnet {variant}": (lambda variant=variant: models.cifar_resnet(14, in_channels=1, **variant), 1)
        for variant in CIFAR_VARIANTS
    },
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONVERTED)
def test_converted_models_match_eager(name, dtype):
    make, channels = CONVERTED[name]
    eager = randomise_statistics(make()).to(dtype)
    x = torch.randn(2, channels, 33, 35, dtype=dtype)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert resnet_fused.report(fused).count("converted") > 0
    with torch.no_grad():
        truth = copy.deepcopy(eager).double()(x.double())
        criterion.assert_close(fused(x), eager(x), truth)


@pytest.mark.parametrize("name", CONVERTED)
def test_conversion_keeps_the_state_dict_and_reverts(name):
    model = CONVERTED[name][0]()
    kinds = [type(m) for m in model.modules()]
    state = {k: (v.data_ptr(), v.shape) for k, v in model.state_dict().items()}
    resnet_fused.convert(model)
    assert {k: (v.data_ptr(), v.shape) for k, v in model.state_dict().items()} == state
    resnet_fused.revert(model)
    assert [type(m) for m in model.modules()] == kinds
