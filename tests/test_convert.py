"""convert, revert and report: what changes, what stays, and why modules are refused."""

import copy

import pytest
import torch
from criterion import assert_close
from support import randomise, truth
from torch import nn

import resnet_fused
from resnet_fused import models, modules, reference

# Many outputs make the largest error meaningful; over only ten, eager's may be small by chance.
CLASSES = 500

OURS = {
    "small_resnet": lambda: models.small_resnet(CLASSES),
    "small_preact_resnet": lambda: models.small_preact_resnet(CLASSES),
    "cifar_A": lambda: models.cifar_resnet(8, num_classes=CLASSES),
    "cifar_B": lambda: models.cifar_resnet(8, shortcut="B", num_classes=CLASSES),
    "cifar_plain": lambda: models.cifar_resnet(8, residual=False, num_classes=CLASSES),
    "cifar_preact": lambda: models.cifar_resnet(8, preact=True, num_classes=CLASSES),
    "cifar_plain_preact": lambda: models.cifar_resnet(8, preact=True, residual=False, num_classes=CLASSES),
    "resnet18": lambda: models.resnet18(CLASSES),
    "bottlenecks": lambda: models.ResNet(reference.Bottleneck, [1, 1, 1, 1], CLASSES, width_per_group=128),
}


class Custom(nn.Module):
    """A user's model with known and unknown blocks."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.known = reference.BasicBlock(8, 8)
        self.mine = CustomBlock()

    def forward(self, x):
        return self.mine(self.known(self.bn1(self.conv1(x))))


class CustomBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x):
        return torch.tanh(self.bn(self.conv(x)) + self.shortcut(x))


@pytest.mark.parametrize("name", OURS)
def test_our_models_convert_completely_and_match(name, device):
    model = randomise(OURS[name]()).eval().to(device)
    x = torch.randn(2, 3, 40, 40, device=device)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        assert resnet_fused.convert(model, strict=True) is model
        assert resnet_fused.report(model).count("converted") == len(resnet_fused.report(model)) > 0
        assert_close(model(x), expected, exact)
        resnet_fused.revert(model)
        assert torch.equal(model(x), expected)


def test_conversion_changes_classes_and_nothing_else():
    model = models.small_resnet()
    block = model.layer2[0]
    hook = block.register_forward_hook(lambda *_: None)
    model.layer1.eval()
    before = {name: (id(m), m.training, id(m.__dict__)) for name, m in model.named_modules()}
    contents = {name: dict(m.__dict__) for name, m in model.named_modules()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    buffers = {name: id(b) for name, b in model.named_buffers()}
    classes = [type(m) for m in model.modules()]
    for function, kind in (
        (resnet_fused.convert, modules.FusedBasicBlock),
        (resnet_fused.revert, reference.BasicBlock),
    ):
        function(model)
        assert type(block) is kind
        assert {name: (id(m), m.training, id(m.__dict__)) for name, m in model.named_modules()} == before
        assert {name: dict(m.__dict__) for name, m in model.named_modules()} == contents
        assert {name: id(p) for name, p in model.named_parameters()} == parameters
        assert {name: id(b) for name, b in model.named_buffers()} == buffers
        assert hook.id in block._forward_hooks
    assert [type(m) for m in model.modules()] == classes


def test_state_dicts_load_both_ways():
    eager, fused = models.small_resnet(), resnet_fused.convert(models.small_resnet())
    assert list(eager.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(eager.state_dict(), strict=True)
    randomise(fused)
    eager.load_state_dict(fused.state_dict(), strict=True)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(eager.eval()(x), fused.eval()(x))


def test_converting_twice_changes_nothing():
    model = resnet_fused.convert(models.small_resnet())
    classes = [type(m) for m in model.modules()]
    assert resnet_fused.convert(model, strict=True) is model
    assert [type(m) for m in model.modules()] == classes
    resnet_fused.revert(resnet_fused.revert(model))
    assert type(model) is models.CifarResNet


def test_single_and_shared_blocks_convert():
    block = reference.BasicBlock(8, 8)
    model = nn.Sequential(block, nn.Identity(), block)
    resnet_fused.convert(model)
    assert model[0] is model[2] is block
    assert list(resnet_fused.report(model)) == ["0"]
    alone = reference.Bottleneck(16, 4)
    assert type(resnet_fused.convert(alone)) is modules.FusedBottleneck
    assert isinstance(alone, reference.Bottleneck)
    assert list(resnet_fused.report(alone)) == [""]


def test_conversion_keeps_the_training_mode_of_modules():
    model = models.small_resnet().train()
    model.layer1[0].bn1.eval()
    flags = [m.training for m in model.modules()]
    assert [m.training for m in resnet_fused.convert(model).modules()] == flags


def test_fused_training_off_is_bitwise_eager(device):
    eager = randomise(models.ResNet(reference.Bottleneck, [1, 1, 1, 1], 10)).to(device)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    for module in fused.modules():
        module.fused_training = False
    x = torch.randn(2, 3, 33, 33, device=device)
    for model in (eager, fused):
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimiser.zero_grad()
            model(x).square().mean().backward()
            optimiser.step()
    for (name, a), b in zip(eager.state_dict().items(), fused.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(eager.named_parameters(), fused.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_filter_fn_selects_what_converts():
    model = models.small_resnet()
    seen = []

    def only_layer2(module, name):
        seen.append((type(module).__name__, name))
        return name.startswith("layer2")

    resnet_fused.convert(model, filter_fn=only_layer2, strict=True)
    assert seen == [("CifarResNet", ""), ("BasicBlock", "layer1.0"), ("BasicBlock", "layer2.0")]
    report = resnet_fused.report(model)
    assert {name: entry.status for name, entry in report.items()} == {
        "": "convertible",
        "layer1.0": "convertible",
        "layer2.0": "converted",
    }


def test_strict_lists_every_refusal_and_changes_nothing():
    model = Custom()
    hint = "; chains=True fuses its convolutions in inference"
    with pytest.raises(ValueError, match="strict=True") as error:
        resnet_fused.convert(model, strict=True)
    assert str(error.value).splitlines()[1:] == [
        f"  mine (test_convert.CustomBlock): tanh follows the addition; only a ReLU is supported{hint}",
    ]
    assert type(model.known) is reference.BasicBlock
    resnet_fused.convert(model, strict=True, filter_fn=lambda module, name: name == "known")
    assert type(model.known) is modules.FusedBasicBlock


def test_strict_accepts_a_network_of_fused_blocks():
    class Network(nn.Sequential):
        pass

    model = Network(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), reference.BasicBlock(8, 8))
    assert resnet_fused.report(model)[""].status == "refused"
    assert type(resnet_fused.convert(model, strict=True)[2]) is modules.FusedBasicBlock
    resnet_fused.convert(model, strict=True)


def test_filter_fn_must_be_a_function():
    with pytest.raises(TypeError, match=r"convert expects filter_fn\(module, name\) -> bool, but got 3"):
        resnet_fused.convert(models.small_resnet(), filter_fn=3)


def test_report_reads_like_a_table():
    model = resnet_fused.convert(Custom())
    report = resnet_fused.report(model)
    assert list(report) == ["", "known", "mine"]
    assert report["known"].status == "converted"
    assert "known" in report
    assert len(report) == 3
    lines = str(report).splitlines()
    assert lines[0].split() == ["module", "class", "kind", "status", "reason"]
    assert lines[2].split() == ["known", "resnet_fused.reference.BasicBlock", "basic", "block", "converted"]
    assert lines[-1] == "1 converted, 0 convertible, 2 refused"
    assert len({line.index("refused") for line in lines[1:-1] if "refused" in line}) == 1
    assert "no residual block" in str(resnet_fused.report(nn.Linear(1, 1)))
    assert resnet_fused.report(reference.BasicBlock(4, 4))[""].reason == "not converted yet; call resnet_fused.convert"


def refusal(change, build=lambda: reference.BasicBlock(8, 8)):
    block = build()
    change(block)
    resnet_fused.convert(block)
    entry = resnet_fused.report(block)[""]
    assert entry.status == "refused"
    assert type(block) is type(build()), "a refused block stays as it is"
    return entry.reason


def setting(name, value):
    return lambda block: setattr(block, name, value)


class MyConv(nn.Conv2d):
    pass


def parametrise(block):
    torch.nn.utils.parametrizations.weight_norm(block.conv1)


def replace_forward(block):
    block.forward = lambda x: x


def replace_inner_forward(block):
    block.conv2.forward = lambda x: x


REFUSALS = [
    (setting("bn1", nn.GroupNorm(2, 8)), "bn1 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d"),
    (
        setting("bn2", nn.BatchNorm2d(8, track_running_stats=False)),
        "bn2 has no running statistics (track_running_stats=False), so eval mode uses batch statistics",
    ),
    (setting("relu", nn.ReLU6()), "relu is torch.nn.ReLU6, not torch.nn.ReLU"),
    (setting("conv1", MyConv(8, 8, 3)), "conv1 is test_convert.MyConv, not torch.nn.Conv2d"),
    (
        setting("conv2", nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")),
        "conv2 has padding_mode 'reflect', not 'zeros'",
    ),
    (setting("conv2", nn.Conv2d(8, 8, 3, padding="same")), "conv2 has padding 'same', not an int or a pair of ints"),
    (parametrise, "conv1 is parametrised (torch.nn.utils.parametrize)"),
    (lambda b: b.conv1.register_forward_hook(print), "a forward hook is registered on conv1"),
    (lambda b: b.bn1.register_forward_pre_hook(print), "a forward pre-hook is registered on bn1"),
    (lambda b: b.relu.register_full_backward_hook(print), "a backward hook is registered on relu"),
    (replace_forward, "its forward was replaced on this instance"),
    (replace_inner_forward, "forward, weight or bias of conv2 was replaced by a plain attribute"),
    (
        setting("downsample", nn.MaxPool2d(1)),
        "downsample is torch.nn.MaxPool2d; resnet_fused.reference.ZeroPadShortcut, torch.nn.Identity, "
        "torch.nn.Sequential, torch.nn.Conv2d or None expected",
    ),
    (setting("conv1", None), "conv1 is None, not a torch.nn.Conv2d module"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSALS, ids=[reason[:30] for _, reason in REFUSALS])
def test_refusals_give_the_reason(change, reason):
    assert refusal(change) == reason


def test_subclass_of_a_fused_block_keeps_its_class():
    class Mine(modules.FusedBasicBlock):
        pass

    block = Mine(8, 8)
    assert resnet_fused.report(block)[""].status == "converted"
    assert type(resnet_fused.revert(resnet_fused.convert(block))) is Mine


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(3)], ids=["ceil_mode", "average"])
def test_unfusable_stem_stays_and_blocks_convert(pool, device):
    model = randomise(models.resnet18(10)).eval().to(device)
    model.maxpool = pool
    resnet_fused.convert(model)
    assert type(model) is models.ResNet
    report = resnet_fused.report(model)
    assert report[""].kind == "stem"
    assert report[""].reason.startswith("maxpool is ")
    assert report.count("converted") == 8


def test_stem_without_pooling_converts(device):
    model = randomise(models.resnet18(CLASSES)).eval().to(device)
    model.maxpool = nn.Identity()
    x = torch.randn(1, 3, 20, 20, device=device)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        assert_close(resnet_fused.convert(model, strict=True)(x), expected, exact)


def wrapped_in_compile():
    return torch.compile(models.small_resnet())


def compiled_in_place():
    model = models.small_resnet()
    model.compile()
    return model


def scripted():
    return torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))


@pytest.mark.parametrize("build", [wrapped_in_compile, compiled_in_place, scripted])
def test_a_wrapped_model_is_refused(build):
    with pytest.raises(ValueError, match=r"the model is wrapped by .*; convert the bare model first, then wrap"):
        resnet_fused.convert(build())
    (entry,) = resnet_fused.report(build()).values()
    assert (entry.kind, entry.status) == ("wrapped", "refused")
    assert "convert the bare model first" in entry.reason


@pytest.mark.parametrize("function", [resnet_fused.convert, resnet_fused.revert, resnet_fused.report])
def test_non_modules_are_refused(function):
    with pytest.raises(TypeError, match=rf"resnet_fused.{function.__name__} expects a torch.nn.Module, but got dict"):
        function({})
