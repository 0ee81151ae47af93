"""A method replaced on an eager class runs, before and after conversion."""

from functools import wraps

import pytest
import torch
from criterion import assert_close
from support import ROOT, randomise, run_python, truth

import resnet_fused
from resnet_fused import models, reference

tv, of_timm = pytest.importorskip("torchvision.models"), pytest.importorskip("timm.models.resnet")
resnet = tv.resnet


def small(network, block):
    return lambda **arguments: network(block, (1, 1, 1, 1), **arguments)


# class, name of the method, builder of a network that uses it
METHODS = {
    "torchvision-BasicBlock-forward": (resnet.BasicBlock, "forward", small(resnet.ResNet, resnet.BasicBlock)),
    "torchvision-Bottleneck-forward": (resnet.Bottleneck, "forward", small(resnet.ResNet, resnet.Bottleneck)),
    "torchvision-ResNet-forward": (resnet.ResNet, "forward", small(resnet.ResNet, resnet.BasicBlock)),
    "torchvision-ResNet-_forward_impl": (resnet.ResNet, "_forward_impl", small(resnet.ResNet, resnet.BasicBlock)),
    "timm-ResNet-forward_features": (of_timm.ResNet, "forward_features", small(of_timm.ResNet, of_timm.BasicBlock)),
    "BasicBlock-forward": (reference.BasicBlock, "forward", models.small_resnet),
    "PreActBlock-forward": (reference.PreActBlock, "forward", models.small_preact_resnet),
    "ResNet-forward": (models.ResNet, "forward", small(models.ResNet, reference.BasicBlock)),
    "ResNet-_stem": (models.ResNet, "_stem", small(models.ResNet, reference.BasicBlock)),
    "ResNet-_features": (models.ResNet, "_features", small(models.ResNet, reference.BasicBlock)),
    "ResNet-_head": (models.ResNet, "_head", small(models.ResNet, reference.BasicBlock)),
    "CifarResNet-_head": (models.CifarResNet, "_head", models.small_resnet),
    "CifarPreActResNet-_head": (models.CifarPreActResNet, "_head", models.small_preact_resnet),
    "CifarResNet-_features": (models.CifarResNet, "_features", models.small_resnet),
    "CifarPreActResNet-_features": (models.CifarPreActResNet, "_features", models.small_preact_resnet),
    "CifarResNet-forward": (models.CifarResNet, "forward", models.small_resnet),
    "CifarResNet-_stem": (models.CifarResNet, "_stem", models.small_resnet),
    "CifarPreActResNet-_stem": (models.CifarPreActResNet, "_stem", models.small_preact_resnet),
    "CifarPreActResNet-_tail": (models.CifarPreActResNet, "_tail", models.small_preact_resnet),
}


def doubled(function):
    @wraps(function)  # so that name and qualified name do not reveal the replacement
    def theirs(self, x):
        return 2 * function(self, x)

    return theirs


@pytest.fixture(params=METHODS)
def case(request):
    return METHODS[request.param]


@pytest.mark.parametrize("gradients", [False, True])
def test_a_method_replaced_after_conversion_runs(case, monkeypatch, gradients):
    cls, name, build = case
    model = randomise(build(num_classes=50)).eval()
    x = torch.randn(1, 3, 32, 32)
    before = truth(model, x)
    resnet_fused.convert(model, strict=True)
    with monkeypatch.context() as patch, torch.set_grad_enabled(gradients):
        patch.setattr(cls, name, doubled(getattr(cls, name)))
        actual = model(x).detach()
        affected = [entry for entry in resnet_fused.report(model).values() if entry.runs_eagerly]
        eager = resnet_fused.revert(model)
        exact = truth(eager, x)
        assert not torch.allclose(exact, before, rtol=1e-2), "the replacement shows"
        assert_close(actual, eager(x).detach(), exact)
    assert affected
    assert all(f"{name} was replaced by another function" in entry.reason for entry in affected)


def test_a_method_replaced_before_conversion_is_refused(case, monkeypatch):
    cls, name, build = case
    model = randomise(build(num_classes=50)).eval()
    x = torch.randn(1, 3, 32, 32)
    monkeypatch.setattr(cls, name, doubled(getattr(cls, name)))
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
        resnet_fused.convert(model)
        assert_close(model(x), expected, exact)
    entries = resnet_fused.report(model)
    refused = [entry.reason for entry in entries.values() if entry.status == "refused"]
    assert refused
    assert set(refused) == {f"{cls.__module__}.{cls.__qualname__}.{name} was replaced by another function"}
    with pytest.raises(ValueError, match=f"{name} was replaced by another function"):
        resnet_fused.convert(model, strict=True)


@pytest.mark.parametrize("before", [True, False])
def test_a_method_replaced_on_an_instance_runs(case, before):
    cls, name, build = case
    model = randomise(build(num_classes=50)).eval()
    x = torch.randn(1, 3, 32, 32)
    owner = next(module for module in model.modules() if type(module) is cls)
    with torch.no_grad():
        without = model(x)
    bound = doubled(getattr(cls, name)).__get__(owner)
    if before:
        setattr(owner, name, bound)
    resnet_fused.convert(model)
    setattr(owner, name, bound)
    path = next(path for path, module in model.named_modules() if module is owner)
    reason = resnet_fused.report(model)[path].reason
    assert reason.endswith(f"its {name} was replaced on this instance")
    with torch.no_grad():
        actual = model(x)
        theirs = resnet_fused.revert(model)(x)
        assert not torch.allclose(without, theirs, rtol=1e-2), "the replacement shows"
        torch.testing.assert_close(actual, theirs, rtol=1e-3, atol=1e-3)


def test_block_is_fused_after_a_replacement_is_undone(monkeypatch):
    block = resnet_fused.convert(randomise(resnet.BasicBlock(8, 8)).eval())
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        expected = block(x)
        with monkeypatch.context() as patch:
            patch.setattr(resnet.BasicBlock, "forward", doubled(resnet.BasicBlock.forward))
            assert not torch.equal(block(x), expected)
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("wrapped", [True, False])
def test_method_replaced_before_import_is_noticed(wrapped, before_import):
    converted, status = before_import[wrapped]
    assert converted == "1 torchvision.models.resnet.BasicBlock.forward was replaced by another function"
    assert status == "refused", "what was replaced when we saw it first stays unknown"


@pytest.fixture(scope="module")
def before_import():
    """Maps whether ``functools.wraps`` was used to what the report says.

    The process forks after importing torch, which takes most of the time.
    """
    code = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import torch, torchvision_shim
torchvision_shim.install()
from torchvision.models import resnet
from functools import wraps
original = resnet.BasicBlock.forward
def theirs(self, x):
    return 2 * original(self, x)
wrapped = os.fork() == 0
resnet.BasicBlock.forward = wraps(original)(theirs) if wrapped else theirs
assert "resnet_fused" not in sys.modules
import resnet_fused
from criterion import assert_close
from support import truth
torch.manual_seed(0)
model = resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1]).eval()
x = torch.randn(1, 3, 32, 32)
exact = truth(model, x)
with torch.no_grad():
    expected = model(x)
    report = resnet_fused.report(resnet_fused.convert(model))
    assert_close(model(x), expected, exact)
    said = [str(report.count("converted")) + " " + report["layer1.0"].reason]
    resnet.BasicBlock.forward = original
    said.append(resnet_fused.report(model)["layer1.0"].status)
if not wrapped:
    assert os.wait()[1] == 0
print(wrapped, *said, sep="\\n")
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return {lines[i] == "True": lines[i + 1 : i + 3] for i in (0, 3)}


def test_compiled_blocks_run_replaced_methods(monkeypatch):
    block = resnet_fused.convert(randomise(resnet.BasicBlock(8, 8)).eval())
    x = torch.randn(1, 8, 5, 5)
    with torch.no_grad():
        fused = torch.compile(block, fullgraph=True, backend="aot_eager")(x)
        monkeypatch.setattr(resnet.BasicBlock, "forward", doubled(resnet.BasicBlock.forward))
        torch.compiler.reset()
        torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), 2 * fused)
