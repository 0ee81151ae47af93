"""Conversion at its edges: wrapped parts, subclasses, changed blocks, unknown blocks, and what is no model."""

import abc
import copy
import io
import pickle
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from criterion import assert_close
from support import randomise, truth
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import resnet_fused
from resnet_fused import models, modules, reference

resnet = pytest.importorskip("torchvision.models").resnet


# Parts of a model that are wrapped.


def compiled(part):
    return torch.compile(part)


def compiled_in_place(part):
    part.compile()
    return part


def scripted(part):
    return torch.jit.script(part)


def traced(part):
    return torch.jit.trace(part.eval(), torch.randn(1, 3, 32, 32))


WRAPPERS = {
    compiled: "torch.compile",
    compiled_in_place: "torch.compile",
    scripted: "TorchScript",
    traced: "TorchScript",
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_part_stays_and_the_rest_converts(wrap):
    first = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])
    model = nn.ModuleDict({"wrapped": wrap(first), "bare": models.small_resnet()}).eval()
    classes = [type(m) for m in model["wrapped"].modules()]
    resnet_fused.convert(model)
    assert [type(m) for m in model["wrapped"].modules()] == classes
    report = resnet_fused.report(model)
    assert list(report) == ["wrapped", "bare", "bare.layer1.0", "bare.layer2.0"]
    reason = f"it is wrapped by {WRAPPERS[wrap]}; convert the bare model first, then wrap the result"
    assert report["wrapped"] == resnet_fused.Entry("wrapped", "refused", reason)
    assert report.count("converted") == 3
    with pytest.raises(ValueError, match=f"wrapped: it is wrapped by {WRAPPERS[wrap]}"):
        resnet_fused.convert(model, strict=True)


def test_a_wrapped_part_without_convolutions_is_no_refusal():
    model = nn.ModuleDict({"scripted": torch.jit.script(nn.Linear(2, 2)), "bare": models.small_resnet()})
    assert "scripted" not in resnet_fused.report(resnet_fused.convert(model, strict=True))


def test_a_part_converted_before_it_was_wrapped_is_reported_as_it_is():
    part = models.small_resnet()
    resnet_fused.convert(part, filter_fn=lambda module, name: name != "layer2.0")
    report = resnet_fused.report(resnet_fused.convert(nn.Sequential(torch.compile(part))))
    assert report["0._orig_mod.layer1.0"].status == "converted"
    assert report["0._orig_mod.layer2.0"].status == "refused"
    assert "wrapped by torch.compile" in report["0._orig_mod.layer2.0"].reason


# Subclasses.


class MyBlock(reference.BasicBlock):
    """Leaves the computation alone."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.drop_path = nn.Identity()
        self.note = "kept"

    def extra_repr(self):
        return self.note


class MyTorchvisionBlock(resnet.BasicBlock):
    expansion = 1


class MyDeeperBlock(MyTorchvisionBlock):
    def train(self, mode=True):
        return super().train(mode and False)


class MyAbstractBottleneck(resnet.Bottleneck, abc.ABC):
    pass


class MyPreActBlock(reference.PreActBlock):
    pass


class MyResNet(resnet.ResNet):
    def features(self, x):
        return self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))


class MyCifarResNet(models.CifarResNet):
    pass


def my_resnet():
    return MyResNet(MyTorchvisionBlock, [1, 1, 1, 1], 50)


def my_cifar_resnet():
    return MyCifarResNet((1, 1), (16, 32), shortcut="B", num_classes=50)


SUBCLASSES = {
    MyBlock: lambda: MyBlock(8, 8),
    MyTorchvisionBlock: lambda: MyTorchvisionBlock(8, 8),
    MyDeeperBlock: lambda: MyDeeperBlock(8, 8),
    MyAbstractBottleneck: lambda: MyAbstractBottleneck(8, 2),
    MyPreActBlock: lambda: MyPreActBlock(8, 8),
    MyResNet: my_resnet,
    MyCifarResNet: my_cifar_resnet,
}


def test_a_class_derived_from_a_converted_subclass_as_fsdp_does_is_left_alone():
    block = resnet_fused.convert(MyBlock(8, 8))
    block.__class__ = kind = type("Sharded", (type(block),), {})
    assert resnet_fused.report(block)[""] == resnet_fused.Entry("basic block", "converted")
    assert type(resnet_fused.revert(resnet_fused.convert(block))) is kind


class Recorder(TorchDispatchMode):
    """Which ops of this package ran."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "resnet_fused":
            self.ops.append(func)
        return func(*args, **(kwargs or {}))


def ops_of(model, x):
    with Recorder() as recorder, torch.no_grad():
        model(x)
    return recorder.ops


def input_of(model):
    return torch.randn(2, model.conv1.in_channels, 24, 24)


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_subclass_that_leaves_the_computation_alone_converts(kind):
    model = randomise(SUBCLASSES[kind]()).eval()
    base = kind.__mro__[1]
    x = input_of(model)
    exact = truth(model, x)
    contents = dict(model.__dict__)
    with torch.no_grad():
        expected = model(x)
        resnet_fused.convert(model, strict=True)
        assert_close(model(x), expected, exact)
    assert ops_of(model, x)
    assert model.__dict__ == contents
    assert isinstance(model, kind)
    assert isinstance(model, base)
    assert type(model).__name__ == f"Fused{kind.__name__}"
    assert resnet_fused.report(model).count("converted") == len(resnet_fused.report(model))
    assert type(resnet_fused.convert(SUBCLASSES[kind]())) is type(model), "one fused class for each"
    assert type(resnet_fused.revert(model)) is kind
    assert not ops_of(model, x)


def test_a_subclass_keeps_its_own_methods():
    block = resnet_fused.convert(MyBlock(8, 8))
    assert isinstance(block, modules.FusedBasicBlock)
    assert "kept" in repr(block)
    assert not resnet_fused.convert(MyDeeperBlock(8, 8)).train().training
    network = randomise(my_resnet()).eval()
    x = input_of(network)
    with torch.no_grad():
        expected = network.features(x)
        torch.testing.assert_close(resnet_fused.convert(network).features(x), expected, rtol=1e-4, atol=1e-4)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved_and_loaded])
@pytest.mark.parametrize("kind", SUBCLASSES)
def test_converted_subclasses_copy_and_save(kind, copied):
    model = randomise(SUBCLASSES[kind]()).eval()
    model.remembered = [1, 2]
    resnet_fused.convert(model)
    hook = model.register_forward_hook(hooked)
    other = copied(model)
    assert type(other) is type(model)
    assert other.remembered == [1, 2]
    assert list(other._forward_hooks) == [hook.id]
    x = input_of(model)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
    assert type(resnet_fused.revert(other)) is kind
    assert type(model) is not kind


def hooked(module, args, output):
    return output


def test_a_pickle_of_a_subclass_that_has_changed_loads_eager(monkeypatch):
    saved = pickle.dumps(resnet_fused.convert(MyBlock(8, 8)))
    monkeypatch.setattr(MyBlock, "forward", lambda self, x: x + 1, raising=False)
    block = pickle.loads(saved)
    assert type(block) is MyBlock
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x + 1)


def test_a_forward_given_to_a_converted_subclass_runs(monkeypatch):
    block = resnet_fused.convert(MyBlock(8, 8).eval())
    x = torch.randn(1, 8, 4, 4)
    monkeypatch.setattr(MyBlock, "forward", lambda self, x: x + 1, raising=False)
    assert torch.equal(block(x), x + 1)
    entry = resnet_fused.report(block)[""]
    assert entry.reason == (
        "converted, but runs eagerly: test_convert_edges.MyBlock.forward was replaced by another function"
    )
    assert type(resnet_fused.revert(block)) is MyBlock


def subclass(base=reference.BasicBlock, **attributes):
    return type("Theirs", (base,), attributes)


class Meta(type):
    pass


class Registered(reference.BasicBlock):
    """Every subclass announces itself, so a fused one would too."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls):
        cls.known.append(cls)


OVERRIDES = {
    "forward": subclass(forward=lambda self, x: x),
    "__call__": subclass(__call__=lambda self, x: x),
    "_call_impl": subclass(_call_impl=lambda self, x: x),
    "__getattr__": subclass(__getattr__=lambda self, name: nn.Module.__getattr__(self, name)),
    "downsample": subclass(downsample=None),
    "relu": subclass(relu=nn.ReLU6()),
    "__reduce__": subclass(__reduce__=lambda self: (reference.BasicBlock, (8, 8))),
    "_fused": subclass(_fused=True),
    "__init_subclass__": Registered,
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_a_subclass_that_may_compute_something_else_is_refused(name):
    kind = OVERRIDES[name]
    block = kind(8, 8).eval()
    resnet_fused.convert(block)
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert (entry.kind, entry.status) == ("basic block", "refused")
    assert entry.reason == f"test_convert_edges.{kind.__name__} overrides {name} of resnet_fused.reference.BasicBlock"
    with pytest.raises(ValueError, match=f"overrides {name}"):
        resnet_fused.convert(block, strict=True)


def test_a_subclass_with_a_metaclass_of_its_own_is_refused():
    kind = Meta("Theirs", (reference.BasicBlock,), {})
    entry = resnet_fused.report(resnet_fused.convert(kind(8, 8)))[""]
    assert entry.reason.endswith("Theirs has the metaclass test_convert_edges.Meta")
    assert not Registered.known


def test_a_subclass_that_no_fused_class_can_derive_from_is_refused():
    kind = type("Both", (resnet.BasicBlock, reference.BasicBlock), {"__init__": lambda self: nn.Module.__init__(self)})
    block = resnet_fused.convert(kind())
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert entry.status == "refused"
    assert entry.reason.startswith(
        "test_convert_edges.Both cannot be combined with resnet_fused.recognise.torchvision."
    )


def test_a_mixin_before_the_block_counts_and_one_behind_it_does_not():
    class Forward:
        def forward(self, x):
            return x

    before = type("Before", (Forward, reference.BasicBlock), {})(8, 8)
    behind = type("Behind", (reference.BasicBlock, Forward), {})(8, 8)
    assert "overrides forward" in resnet_fused.report(resnet_fused.convert(before))[""].reason
    assert resnet_fused.report(resnet_fused.convert(behind))[""].status == "converted"


def test_a_subclass_of_a_fused_block_with_another_forward_says_so():
    class Mine(modules.FusedBasicBlock):
        def forward(self, x):
            return super().forward(x)

    entry = resnet_fused.report(resnet_fused.convert(Mine(8, 8)))[""]
    assert entry.runs_eagerly
    assert "Mine overrides forward of resnet_fused.modules.basic.FusedBasicBlock" in entry.reason


def test_a_subclass_of_a_fused_block_with_its_forward_is_fused():
    class Mine(modules.FusedBasicBlock):
        def __reduce__(self):
            return super().__reduce__()

    block = resnet_fused.convert(Mine(8, 8).eval())
    assert resnet_fused.report(block)[""] == resnet_fused.Entry("basic block", "converted")
    assert ops_of(block, torch.randn(1, 8, 6, 6))
    block.relu = nn.GELU()
    assert resnet_fused.report(block)[""].runs_eagerly


# Converted blocks that something happened to.


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


CHANGES = {
    "conv1 is test_convert_edges.MyConv, not torch.nn.Conv2d": exchanging("conv1", lambda: MyConv(8, 8, 3, padding=1)),
    "bn2 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d": exchanging("bn2", lambda: nn.GroupNorm(2, 8)),
    "relu is torch.nn.GELU, not torch.nn.ReLU": exchanging("relu", nn.GELU),
    "a forward hook is registered on conv2": hook_in("conv2"),
    "a forward hook is registered on bn1": hook_in("bn1"),
    "conv1 is parametrised (torch.nn.utils.parametrize)": weight_norm,
    "its forward was replaced on this instance": replace_forward,
    "downsample is torch.nn.Dropout; resnet_fused.reference.ZeroPadShortcut, torch.nn.Identity, torch.nn.Sequential, "
    "torch.nn.Conv2d or None expected": exchanging("downsample", nn.Dropout),
    "": lambda block: None,
    # These are fused all the same: nothing to say.
    "sync": exchanging("bn1", lambda: nn.SyncBatchNorm(8)),
    "hook in a shortcut": hook_in_shortcut,
    "no statistics": forget_statistics,
    "hook on the block": lambda block: block.register_forward_hook(hooked),
    "identity": exchanging("downsample", nn.Identity),
    "3x3": exchanging("downsample", lambda: nn.Conv2d(8, 8, 3, padding=1)),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_a_report_says_which_converted_blocks_run_eagerly(reason):
    model = nn.Sequential(resnet_fused.convert(reference.BasicBlock(8, 8))).eval()
    CHANGES[reason](model[0])
    model.eval()
    entry = resnet_fused.report(model)["0"]
    fused = bool(ops_of(model, torch.randn(1, 8, 6, 6)))
    assert entry.status == "converted"
    assert entry.runs_eagerly is not fused
    assert fused is not (" " in reason and reason not in ("hook in a shortcut", "no statistics", "hook on the block"))
    if not fused:
        full = reason if reason.startswith("its") else reason.replace("conv", "0.conv").replace("bn", "0.bn", 1)
        assert entry.reason.startswith("converted, but runs eagerly: ")
        assert entry.reason.endswith(full) or f" 0.{reason}" in entry.reason
        assert str(resnet_fused.report(model)).endswith("1 converted (1 of them eager), 0 convertible, 0 refused")


def test_a_hook_for_all_modules_is_said():
    block = resnet_fused.convert(reference.BasicBlock(8, 8).eval())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert "a hook for all modules is registered" in resnet_fused.report(block)[""].reason
        assert not ops_of(block, torch.randn(1, 8, 6, 6))
    finally:
        handle.remove()
    assert not resnet_fused.report(block)[""].runs_eagerly


def test_a_stem_that_runs_eagerly_says_so():
    model = resnet_fused.convert(randomise(resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1])).eval())
    model.conv1.register_forward_hook(hooked)
    assert resnet_fused.report(model)[""].reason == (
        "converted, but runs eagerly: a forward hook is registered on conv1"
    )
    assert resnet_fused.report(model).count("converted") == 5


def test_explain_shows_torch_for_a_converted_block_that_runs_eagerly(capsys, tmp_path, monkeypatch):
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


# Blocks that nobody knows.


class ConvNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.norm(self.conv(x))


class FrozenBatchNorm2d(nn.Module):
    """As several detection libraries have it: no subclass of nn.BatchNorm2d."""

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
def test_blocks_of_unknown_classes_are_named_and_their_parts_are_not(kind):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.layers = nn.Sequential(nn.Sequential(kind(), kind()), reference.BasicBlock(8, 8))

    report = resnet_fused.report(Network())
    assert list(report) == ["layers.0.0", "layers.0.1", "layers.1"]
    reason = f"class test_convert_edges.{kind.__name__} is not a block that resnet_fused knows"
    assert report["layers.0.1"] == resnet_fused.Entry("unknown", "refused", reason)
    alone = resnet_fused.report(kind())
    assert alone[""].reason == reason


def test_plain_convolutions_and_attention_are_no_blocks():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)

    class Normalize(nn.Module):
        """Of images, not of activations."""

    assert not resnet_fused.report(nn.Sequential(Normalize(), SqueezeExcite(), nn.Conv2d(8, 8, 3)))


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b0", "densenet121", "convnext_tiny", "googlenet"])
def test_no_network_of_convolutions_and_norms_has_an_empty_report(name):
    import torchvision

    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(**options)
    report = resnet_fused.report(model)
    assert len(report) > 10
    assert {entry.status for entry in report.values()} == {"refused"}
    expected = {"mobilenet_v2": "InvertedResidual", "efficientnet_b0": "MBConv", "convnext_tiny": "CNBlock"}
    assert any(expected.get(name, "class torchvision.models.") in entry.reason for entry in report.values())


# What is no model.


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got NoneType; some libraries' eval() and train() return nothing: pass the model itself"),
        ((nn.Linear(1, 1), 1), "got tuple; pass one model at a time"),
        ([nn.Linear(1, 1)], "got list; pass one model at a time"),
        (nn.Linear(1, 1).state_dict(), "got OrderedDict; load a state_dict into a model, and pass the model"),
        ("resnet18.pt", "got str; load the file first, and pass the model"),
        (Path("resnet18.pt"), f"got {type(Path()).__name__}; load the file first, and pass the model"),
        (nn.Linear, "got the class Linear; pass an instance of it"),
        (3, "takes a torch.nn.Module, got int"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_model_has_a_hint(value, message):
    for function in (resnet_fused.convert, resnet_fused.revert, resnet_fused.report):
        with pytest.raises(TypeError) as error:
            function(value)
        assert str(error.value).startswith(f"resnet_fused.{function.__name__} takes a torch.nn.Module, got ")
        assert str(error.value).endswith(message)
