"""A report says which converted modules run eagerly, and names blocks of unknown classes."""

import pytest
import torch
from support import ops_of, randomise
from torch import nn

import resnet_fused
from resnet_fused import reference

resnet = pytest.importorskip("torchvision.models").resnet


def hooked(module, args, output):
    return output


def exchanging(name, value):
    return lambda block: setattr(block, name, value())


def hook_in(name):
    return lambda block: getattr(block, name).register_forward_hook(hooked)


def replace_forward(block):
    block.forward = lambda x: x


def weight_norm(block):
    torch.nn.utils.parametrizations.weight_norm(block.conv1)


def hook_in_shortcut(block):
    block.downsample = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    block.downsample[0].register_forward_hook(hooked)


def forget_statistics(block):
    block.bn1 = nn.BatchNorm2d(8, track_running_stats=False)


class MyConv(nn.Conv2d):
    pass


EAGER = {
    "0.conv1 is test_report.MyConv, not torch.nn.Conv2d": exchanging("conv1", lambda: MyConv(8, 8, 3, padding=1)),
    "0.bn2 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d": exchanging("bn2", lambda: nn.GroupNorm(2, 8)),
    "0.relu is torch.nn.GELU, not torch.nn.ReLU": exchanging("relu", nn.GELU),
    "a forward hook is registered on 0.conv2": hook_in("conv2"),
    "a forward hook is registered on 0.bn1": hook_in("bn1"),
    "a forward hook is registered on 0.downsample.0": hook_in_shortcut,
    "0.downsample may modify its input in place or contains a module that is not torch's own": exchanging(
        "downsample", lambda: nn.Sequential(nn.ReLU(inplace=True))
    ),
    "0.conv1 is parametrised (torch.nn.utils.parametrize)": weight_norm,
    "its forward was replaced on this instance": replace_forward,
    "0.downsample is torch.nn.Dropout; resnet_fused.reference.ZeroPadShortcut, torch.nn.Identity, torch.nn.Sequential, "
    "torch.nn.Conv2d or None expected": exchanging("downsample", nn.Dropout),
}
FUSED = {
    "nothing": lambda block: None,
    "SyncBatchNorm": exchanging("bn1", lambda: nn.SyncBatchNorm(8)),
    "no statistics": forget_statistics,
    "a hook on the block": lambda block: block.register_forward_hook(hooked),
    "an identity as shortcut": exchanging("downsample", nn.Identity),
    "a 3x3 convolution as shortcut": exchanging("downsample", lambda: nn.Conv2d(8, 8, 3, padding=1)),
}


def changed(change):
    model = nn.Sequential(resnet_fused.convert(reference.BasicBlock(8, 8))).eval()
    model(torch.randn(1, 8, 6, 6))  # the block remembers what its modules held in the last call
    change(model[0])
    return model.eval()


@pytest.mark.parametrize("reason", EAGER)
def test_eager_converted_block_has_a_reason(reason):
    model = changed(EAGER[reason])
    assert not ops_of(model, torch.randn(1, 8, 6, 6))
    report = resnet_fused.report(model)
    assert report["0"] == resnet_fused.Entry("basic block", "converted", f"converted, but runs eagerly: {reason}")
    assert report["0"].runs_eagerly
    assert str(report).endswith("1 converted (1 of them eager), 0 convertible, 0 refused")


@pytest.mark.parametrize("change", FUSED)
def test_fused_converted_block_has_no_reason(change):
    model = changed(FUSED[change])
    assert ops_of(model, torch.randn(1, 8, 6, 6))
    report = resnet_fused.report(model)
    assert report["0"] == resnet_fused.Entry("basic block", "converted")
    assert not report["0"].runs_eagerly


def test_global_hook_is_reported():
    block = resnet_fused.convert(reference.BasicBlock(8, 8).eval())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "a global module hook is registered" in resnet_fused.report(block)[""].reason
        assert not ops_of(block, torch.randn(1, 8, 6, 6))
    finally:
        handle.remove()
    assert not resnet_fused.report(block)[""].runs_eagerly


def test_eager_stem_is_reported():
    model = resnet_fused.convert(randomise(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])).eval())
    model.conv1.register_forward_hook(hooked)
    assert resnet_fused.report(model)[""].reason == (
        "converted, but runs eagerly: a forward hook is registered on conv1"
    )
    assert resnet_fused.report(model).count("converted") == 5


def test_explain_shows_torch_for_an_eager_block(capsys, tmp_path, monkeypatch):
    from resnet_fused import cli

    (tmp_path / "changed_model.py").write_text(
        "from torch import nn\n"
        "from resnet_fused import FusedBasicBlock\n"
        "def make():\n"
        "    model = nn.Sequential(FusedBasicBlock(8, 8), FusedBasicBlock(8, 8))\n"
        "    model[1].relu = nn.ReLU6()\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["explain", "changed_model:make", "--input", "1,8,9,9"]) == 0
    out = capsys.readouterr().out
    assert "converted, but runs eagerly: 1.relu is torch.nn.ReLU6" in out
    kernels = {row[0]: row[-1] for row in map(str.split, out.splitlines()) if row and row[0].endswith("conv1")}
    assert kernels["1.conv1"] == "torch"
    assert kernels["0.conv1"] != "torch"


class ConvNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class FrozenBatchNorm2d(nn.Module):
    """Like that of several detection libraries, not a subclass of nn.BatchNorm2d."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))


class ConvThatHoldsItsNorm(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)
        self.norm = FrozenBatchNorm2d(channels)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))


class OfUnits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.shortcut = ConvNorm(8), ConvNorm(8), nn.Sequential(ConvNorm(8))


class OfUnitsInASequential(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(ConvNorm(8), nn.ReLU(), ConvNorm(8))


class OfConvsWithNorms(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.shortcut = ConvThatHoldsItsNorm(8), ConvThatHoldsItsNorm(8), None


class OfAList(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)])
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8), nn.GroupNorm(2, 8)])


UNKNOWN = [Nested, OfUnits, OfUnitsInASequential, OfConvsWithNorms, OfAList]


@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_blocks_are_reported_without_their_parts(kind):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.layers = nn.Sequential(nn.Sequential(kind(), kind()), reference.BasicBlock(8, 8))

    report = resnet_fused.report(Network())
    assert list(report) == ["layers.0.0", "layers.0.1", "layers.1"]
    error = f'builtins.NotImplementedError: Module [{kind.__name__}] is missing the required "forward" function'
    reason = f"it is no residual block: its forward cannot be traced: {error}"
    assert report["layers.0.1"] == resnet_fused.Entry("unknown", "refused", reason)
    alone = resnet_fused.report(kind())
    assert alone[""].reason == reason


def test_plain_convolutions_and_attention_are_not_blocks():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    class Normalize(nn.Module):
        """Normalises images, not activations."""

    assert not resnet_fused.report(nn.Sequential(Normalize(), SqueezeExcite(), nn.Conv2d(8, 8, 3)))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny", "googlenet"])
def test_reports_of_other_networks_are_not_empty(name):
    import torchvision

    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(**options)
    report = resnet_fused.report(model)
    assert len(report) > 10
    assert {entry.status for entry in report.values()} == {"refused"}
    expected = {"mobilenet_v2": "InvertedResidual", "efficientnet_b0": "MBConv", "convnext_tiny": "CNBlock"}
    assert any(expected.get(name, "torchvision.models.") in entry.class_name for entry in report.values())
