"""Subclasses of known blocks and networks: converted if they do not change the computation, else refused by name."""

import abc
import copy
import io
import pickle
from typing import ClassVar

import pytest
import torch
from criterion import assert_close
from support import ops_of, randomise, truth
from torch import nn

import resnet_fused
from resnet_fused import models, modules, reference

resnet = pytest.importorskip("torchvision.models").resnet


class MyBlock(reference.BasicBlock):
    """Does not change the computation."""

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


def test_class_derived_as_by_fsdp_is_kept():
    block = resnet_fused.convert(MyBlock(8, 8))
    block.__class__ = kind = type("Sharded", (type(block),), {})
    assert resnet_fused.report(block)[""] == resnet_fused.Entry("basic block", "converted")
    assert type(resnet_fused.revert(resnet_fused.convert(block))) is kind


def input_of(model):
    return torch.randn(2, model.conv1.in_channels, 24, 24)


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_subclass_with_the_same_computation_converts(kind):
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
    assert {name: value for name, value in model.__dict__.items() if name != "_seen"} == contents
    assert isinstance(model, kind)
    assert isinstance(model, base)
    assert type(model).__name__ == f"Fused{kind.__name__}"
    assert resnet_fused.report(model).count("converted") == len(resnet_fused.report(model))
    assert type(resnet_fused.convert(SUBCLASSES[kind]())) is type(model), "one fused class for each"
    assert type(resnet_fused.revert(model)) is kind
    assert model.__dict__ == contents
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


def test_pickle_of_a_changed_subclass_loads_eager(monkeypatch):
    saved = pickle.dumps(resnet_fused.convert(MyBlock(8, 8)))
    monkeypatch.setattr(MyBlock, "forward", lambda self, x: x + 1, raising=False)
    block = pickle.loads(saved)
    assert type(block) is MyBlock
    x = torch.randn(1, 8, 4, 4)
    assert torch.equal(block(x), x + 1)


def test_forward_set_on_a_converted_subclass_runs(monkeypatch):
    block = resnet_fused.convert(MyBlock(8, 8).eval())
    x = torch.randn(1, 8, 4, 4)
    monkeypatch.setattr(MyBlock, "forward", lambda self, x: x + 1, raising=False)
    assert torch.equal(block(x), x + 1)
    entry = resnet_fused.report(block)[""]
    assert entry.reason == (
        "converted, but runs eagerly: test_convert_subclasses.MyBlock.forward was replaced by another function"
    )
    assert type(resnet_fused.revert(block)) is MyBlock


def subclass(base=reference.BasicBlock, **attributes):
    return type("Theirs", (base,), attributes)


class Meta(type):
    pass


class Registered(reference.BasicBlock):
    """Registers every subclass, so a generated fused subclass would be registered too."""

    known: ClassVar[list[type]] = []

    def __init_subclass__(cls):
        cls.known.append(cls)


OVERRIDES = {
    "forward": subclass(forward=lambda self, x: x),
    "__call__": subclass(__call__=lambda self, x: x),
    "_call_impl": subclass(_call_impl=lambda self, x: x),
    "__getattr__": subclass(__getattr__=lambda self, name: nn.Module.__getattr__(self, name)),
    "relu": subclass(relu=nn.ReLU6()),
    "__reduce__": subclass(__reduce__=lambda self: (reference.BasicBlock, (8, 8))),
    "fused_forward": subclass(fused_forward=True),
    "__init_subclass__": Registered,
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_subclass_with_overridden_computation_is_refused(name):
    kind = OVERRIDES[name]
    block = kind(8, 8).eval()
    resnet_fused.convert(block)
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert (entry.kind, entry.status) == ("basic block", "refused")
    assert (
        entry.reason == f"test_convert_subclasses.{kind.__name__} overrides {name} of resnet_fused.reference.BasicBlock"
    )
    with pytest.raises(ValueError, match=f"overrides {name}"):
        resnet_fused.convert(block, strict=True)


def test_subclass_with_its_own_metaclass_is_refused():
    kind = Meta("Theirs", (reference.BasicBlock,), {})
    block = resnet_fused.convert(kind(8, 8))
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert entry.reason.endswith("Theirs has the metaclass test_convert_subclasses.Meta")


def test_refused_subclass_is_not_subclassed():
    """``__init_subclass__`` of its bases would be called for a generated class."""
    resnet_fused.convert(Registered(8, 8))
    assert not Registered.known


def test_subclass_with_conflicting_bases_is_refused():
    kind = type("Both", (resnet.BasicBlock, reference.BasicBlock), {"__init__": lambda self: nn.Module.__init__(self)})
    block = resnet_fused.convert(kind())
    assert type(block) is kind
    entry = resnet_fused.report(block)[""]
    assert entry.status == "refused"
    assert entry.reason.startswith(
        "test_convert_subclasses.Both cannot be combined with resnet_fused.recognise.torchvision."
    )


def test_only_mixins_before_the_block_can_override():
    class Forward:
        def forward(self, x):
            return x

    before = type("Before", (Forward, reference.BasicBlock), {})(8, 8)
    behind = type("Behind", (reference.BasicBlock, Forward), {})(8, 8)
    assert "overrides forward" in resnet_fused.report(resnet_fused.convert(before))[""].reason
    assert resnet_fused.report(resnet_fused.convert(behind))[""].status == "converted"


def test_fused_subclass_with_its_own_forward_is_reported():
    class Mine(modules.FusedBasicBlock):
        def forward(self, x):
            return super().forward(x)

    entry = resnet_fused.report(resnet_fused.convert(Mine(8, 8)))[""]
    assert entry.runs_eagerly
    assert "Mine overrides forward of resnet_fused.modules.blocks.FusedBasicBlock" in entry.reason


def test_fused_subclass_with_the_same_forward_is_fused():
    class Mine(modules.FusedBasicBlock):
        def __reduce__(self):
            return super().__reduce__()

    block = resnet_fused.convert(Mine(8, 8).eval())
    assert resnet_fused.report(block)[""] == resnet_fused.Entry("basic block", "converted")
    assert ops_of(block, torch.randn(1, 8, 6, 6))
    block.relu = nn.GELU()
    assert resnet_fused.report(block)[""].runs_eagerly
