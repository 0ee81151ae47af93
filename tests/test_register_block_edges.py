"""register_block and explain in unusual surroundings; blocks that nearly match their spec, or change later."""

import numpy
import pytest
import torch
import torch.nn.functional as F
from registered_blocks import BASIC, SPECS, BasicBlock
from support import randomise
from torch import nn

import resnet_fused
from resnet_fused import BlockSpec, modules
from resnet_fused.recognise import registered


@pytest.fixture(autouse=True)
def _clear():
    registered._registered.clear()
    yield
    registered._registered.clear()


@torch.no_grad()
@pytest.mark.parametrize("part", ["conv1", "bn2", "relu"])
def test_block_is_fused_again_once_a_hook_is_removed(part):
    block, x = modules.FusedBasicBlock(8, 8).eval(), torch.randn(1, 8, 6, 6)
    handle = getattr(block, part).register_forward_hook(lambda *_: None)
    block(x)
    handle.remove()
    assert resnet_fused.explain(block, x)[""].how == "inference"


@torch.no_grad()
def test_a_class_of_executed_code_converts():
    """Its module is not in ``sys.modules``: a snippet, or a script that ``runpy`` has run."""
    namespace = {"__name__": "no_such_module", "Base": BasicBlock}
    exec("class Block(Base):\n    def forward(self, x):\n        return Base.forward(self, x)\n", namespace)
    resnet_fused.register_block(namespace["Block"], SPECS[BasicBlock])
    block, x = randomise(namespace["Block"](8, 8)).eval(), torch.randn(2, 8, 6, 6)
    expected = block(x)
    fused = resnet_fused.convert(block, strict=True)
    assert resnet_fused.explain(fused, x)[""].how == "inference"
    torch.testing.assert_close(fused(x), expected)
    replaced = namespace["Block"].forward
    namespace["Block"].forward = lambda self, x: 2 * replaced(self, x)
    torch.testing.assert_close(fused(x), 2 * expected)


@pytest.mark.parametrize("disabled", [torch.no_grad, torch.inference_mode])
def test_conversion_without_gradients(disabled):
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    with disabled():
        assert isinstance(resnet_fused.convert(BasicBlock(8, 8), strict=True), modules.FusedBlock)


def test_conversion_with_another_default_device():
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    block = BasicBlock(8, 8)
    with torch.device("meta"):
        assert resnet_fused.report(block)[""].status == "convertible"


def test_block_with_fused_training_off_converts():
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    block = BasicBlock(8, 8)
    block.fused_training = False
    assert resnet_fused.report(block)[""].status == "convertible"


def test_block_that_stores_its_output_does_not_raise():
    class Stores(BasicBlock):
        def forward(self, x):
            self.last = super().forward(x)
            return self.last

    resnet_fused.register_block(Stores, BASIC)
    block = Stores(8, 8)
    block(torch.randn(2, 8, 4, 4))
    resnet_fused.report(block)


@pytest.mark.parametrize("spec", [lambda block: None, lambda block: BASIC._replace(norms=(None, "bn1"))])
def test_function_with_a_wrong_result_gives_a_sentence(spec):
    resnet_fused.register_block(BasicBlock, spec)
    assert resnet_fused.report(BasicBlock(8, 8))[""].status == "refused"


def test_forward_that_counts_no_batches_is_refused():
    class Uncounted(BasicBlock):
        def forward(self, x):
            n = self.bn1
            y = F.batch_norm(
                self.conv1(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, n.momentum, n.eps
            )
            return F.relu(self.bn2(self.conv2(F.relu(y))) + self.shortcut(x))

    resnet_fused.register_block(Uncounted, BASIC)
    assert resnet_fused.report(Uncounted(8, 8))[""].status == "refused"


def test_calls_with_keywords_still_work():
    class Named(BasicBlock):
        def forward(self, inputs, unused=None):
            return super().forward(inputs)

    resnet_fused.register_block(Named, BASIC)
    block = Named(8, 8).eval()
    x = torch.randn(2, 8, 6, 5)
    resnet_fused.convert(block)
    block(inputs=x, unused=None)


@pytest.mark.parametrize("name", ["forget_packed", "packable_weights", "_spec", "_eager_class", "_eager_methods"])
def test_classes_with_attributes_of_fused_blocks_are_refused(name):
    kind = type("Taken", (BasicBlock,), {name: lambda self: None})
    with pytest.raises(ValueError, match=f"Taken defines {name}, which fused blocks use; rename it"):
        resnet_fused.register_block(kind, BASIC)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x):
        return self.body(x)


class Doubles(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", ["append", "class"])
def test_a_changed_container_runs(change):
    resnet_fused.register_block(Nested, BlockSpec(("body.0",), (None, "body.1"), relus=("body.2",)))
    block = resnet_fused.convert(Nested(), strict=True).eval()
    x = torch.randn(2, 8, 6, 5)
    with torch.no_grad():
        block(x)
    if change == "append":
        block.body.append(nn.Sigmoid())
    else:
        block.body = Doubles(*block.body)
    with torch.no_grad():
        torch.testing.assert_close(block(x), Nested.forward(block, x), rtol=1e-4, atol=1e-4)


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = modules.FusedBasicBlock(8, 8)

    def forward(self, x):
        self.block(x)
        raise ValueError


def test_explain_restores_buffers_after_an_error():
    model = Fails().train()
    with pytest.raises(ValueError):
        resnet_fused.explain(model, torch.randn(2, 8, 4, 4))
    assert model.block.bn1.num_batches_tracked == 0


class Rebinds(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = modules.FusedBasicBlock(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls = self.calls + 1
        return self.block(x)


def test_explain_restores_buffers_that_forward_replaces():
    model = Rebinds()
    resnet_fused.explain(model, torch.randn(2, 8, 4, 4))
    assert model.calls == 0


def test_explain_names_itself_in_its_error():
    with pytest.raises(TypeError, match=r"resnet_fused\.explain expects a torch\.nn\.Module, but got dict"):
        resnet_fused.explain({})


def test_command_explains_a_model_of_fused_blocks(capsys, tmp_path, monkeypatch):
    from resnet_fused import cli

    (tmp_path / "fused_model.py").write_text(
        "from torch import nn\nfrom resnet_fused import FusedBasicBlock\n"
        "def make():\n    return nn.Sequential(FusedBasicBlock(8, 8))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["explain", "fused_model:make", "--input", "1,8,9,9"]) == 0
    row = next(r for r in map(str.split, capsys.readouterr().out.splitlines()) if r[1:2] == ["basic"])
    assert row == ["0", "basic", "block", "converted", "fused", "fused"]


class Base(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.relu = nn.ReLU()

    def main(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        return self.relu(self.main(x) + x)


IDENTITY = BlockSpec(("conv1", "conv2"), (None, "bn1", "bn2"), shortcut="")


class Pooled(Base):
    def __init__(self):
        super().__init__()
        self.maxpool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.maxpool(self.relu(self.main(x)))


class PooledSum(Pooled):
    def forward(self, x):
        return self.maxpool(self.relu(self.main(x) + x))


class PooledWithoutReLU(Pooled):
    def forward(self, x):
        return self.maxpool(self.main(x))


class PooledPreAct(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn, self.conv, self.maxpool = nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3), nn.MaxPool2d(2)

    def forward(self, x):
        return self.maxpool(F.relu(self.conv(F.relu(self.bn(x)))))


class WithoutInnerNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 1, bias=False), nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x):
        return F.relu(self.bn(self.b(self.a(x))) + x)


class PreActWithoutInnerNorm(WithoutInnerNorm):
    def forward(self, x):
        return self.b(self.a(F.relu(self.bn(x)))) + x


class NestedShortcut(Base):
    def __init__(self):
        super().__init__()
        self.side = nn.ModuleDict({"proj": nn.Conv2d(16, 16, 3, padding=1)})

    def forward(self, x):
        return self.relu(self.main(x) + self.side["proj"](x))


UNUSUAL = {
    Pooled: IDENTITY._replace(shortcut=None, pool="maxpool"),
    PooledSum: IDENTITY._replace(pool="maxpool"),
    PooledWithoutReLU: IDENTITY._replace(shortcut=None, relu=False, pool="maxpool"),
    PooledPreAct: BlockSpec(("conv",), ("bn", None), (), pool="maxpool"),
    WithoutInnerNorm: BlockSpec(("a", "b"), (None, None, "bn"), (), ""),
    PreActWithoutInnerNorm: BlockSpec(("a", "b"), ("bn", None, None), (), "", relu=False),
    NestedShortcut: IDENTITY._replace(shortcut="side.proj"),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", UNUSUAL, ids=lambda kind: kind.__name__)
def test_unusual_chains_match_eager(kind, grad):
    resnet_fused.register_block(kind, UNUSUAL[kind])
    block, x = randomise(kind()).eval(), torch.randn(2, 16, 8, 8)
    with torch.set_grad_enabled(grad):
        expected = block(x)
        resnet_fused.convert(block, strict=True)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)
        assert resnet_fused.explain(block, x)[""].how == ("training" if grad else "inference")


class Clamps(Base):
    def forward(self, x):
        return F.relu6(self.main(x) + x)


class DetachesWeight(Base):
    def forward(self, x):
        y = F.conv2d(x, self.conv1.weight.detach(), padding=1)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(y)))) + x)


class ReadsTraining(Base):
    def forward(self, x):
        n = self.bn1
        y = F.batch_norm(self.conv1(x), n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps)
        if self.training:
            n.num_batches_tracked += 1
        return self.relu(self.bn2(self.conv2(self.relu(y))) + x)


class SkipsInTraining(Base):
    def forward(self, x):
        return self.relu(x) if self.training and torch.rand(()) < 0 else super().forward(x)


class HasAnotherModule(Base):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.relu(self.drop(self.main(x)) + x)


class HasAFlag(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("doubles", torch.tensor(True))

    def forward(self, x):
        return super().forward(x) * 2 if self.doubles else super().forward(x)


class UsesAbsoluteGamma(Base):
    def forward(self, x):
        n = self.bn1
        rest = n.weight.abs(), n.bias, n.training, n.momentum, n.eps
        y = F.batch_norm(self.conv1(x), n.running_mean, n.running_var, *rest)
        if n.training:
            n.num_batches_tracked.add_(1)
        return self.relu(self.bn2(self.conv2(self.relu(y))) + x)


class HoldsAFunction(Base):
    def __init__(self):
        super().__init__()
        self.act = F.relu

    def forward(self, x):
        return self.act(self.main(x) + x)


class DrawsFromNumpy(Base):
    def forward(self, x):
        return self.relu(x) if self.training and numpy.random.rand() < 0.01 else super().forward(x)


class StoresItsOutput(Base):
    def forward(self, x):
        self.last = super().forward(x)
        return self.last


NEARLY = [Clamps, DetachesWeight, ReadsTraining, SkipsInTraining, HasAnotherModule, HasAFlag, UsesAbsoluteGamma]
NEARLY += [HoldsAFunction, DrawsFromNumpy, StoresItsOutput]


@pytest.mark.parametrize("kind", NEARLY)
def test_blocks_that_nearly_match_are_refused(kind):
    resnet_fused.register_block(kind, IDENTITY)
    assert resnet_fused.report(kind())[""].status == "refused"


def exchanges_identity(block):
    block.extra = nn.Sigmoid()


def patches_method(block):
    block.main = lambda x: x


def adds_module(block):
    block.later = nn.ReLU()


@torch.no_grad()
@pytest.mark.parametrize("change", [exchanges_identity, patches_method, adds_module], ids=lambda c: c.__name__)
def test_changes_outside_the_named_modules_run(change):
    class Extra(Base):
        def __init__(self):
            super().__init__()
            self.extra = nn.Identity()

        def forward(self, x):
            return self.relu(self.extra(self.main(x)) + x)

    resnet_fused.register_block(Extra, IDENTITY)
    block, x = resnet_fused.convert(Extra(), strict=True).eval(), torch.randn(2, 16, 8, 8)
    assert resnet_fused.explain(block, x)[""].how == "inference"
    change(block)
    assert torch.equal(block(x), Extra.forward(block, x))


class HasStaticMethod(Base):
    @staticmethod
    def act(x):
        return F.relu(x)

    def forward(self, x):
        return self.act(self.main(x) + x)


class CallsItsParent(Base):
    def forward(self, x):
        return super().forward(x)


@torch.no_grad()
@pytest.mark.parametrize("where", ["static method", "static method of the instance", "forward of the parent"])
def test_every_method_is_watched(where, monkeypatch):
    kind = CallsItsParent if "parent" in where else HasStaticMethod
    resnet_fused.register_block(kind, IDENTITY)
    block, x = resnet_fused.convert(kind(), strict=True).eval(), torch.randn(2, 16, 8, 8)
    before = block(x)
    if "instance" in where:
        block.act = F.gelu
    elif kind is HasStaticMethod:
        monkeypatch.setattr(kind, "act", staticmethod(F.gelu))
    else:
        monkeypatch.setattr(Base, "forward", lambda self, x: self.main(x))
    assert not torch.allclose(block(x), before)
    assert torch.equal(block(x), kind.forward(block, x))
    assert "runs eagerly" in resnet_fused.report(block)[""].reason


def test_large_filters_are_compared_on_larger_images():
    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 4, 13), nn.BatchNorm2d(4)

        def forward(self, x):
            return F.relu(self.bn(self.conv(x)))

    resnet_fused.register_block(Large, BlockSpec(("conv",), (None, "bn"), ()))
    assert resnet_fused.report(Large())[""].status == "convertible"


@torch.no_grad()
def test_a_spec_that_fails_later_leaves_eager():
    def spec(block):
        if block.fails:
            raise ValueError("no spec")
        return IDENTITY

    class Fails(Base):
        fails = False

    resnet_fused.register_block(Fails, spec)
    block, x = resnet_fused.convert(Fails(), strict=True).eval(), torch.randn(2, 16, 8, 8)
    block.fails = True
    assert torch.equal(block(x), Fails.forward(block, x))
    assert resnet_fused.explain(block, x)[""].reason == "its spec raises builtins.ValueError: no spec"


def test_patched_method_of_the_class_runs(monkeypatch):
    resnet_fused.register_block(Base, IDENTITY)
    block, x = resnet_fused.convert(Base(), strict=True).eval(), torch.randn(2, 16, 8, 8)
    monkeypatch.setattr(Base, "main", lambda self, x: 0 * x)
    with torch.no_grad():
        assert torch.equal(block(x), x.relu())
    assert "main was replaced" in resnet_fused.report(block)[""].reason
