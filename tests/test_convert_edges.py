"""Conversion of models with wrapped parts, and of objects that are not models."""

from pathlib import Path

import pytest
import torch
from torch import nn

import resnet_fused
from resnet_fused import models

resnet = pytest.importorskip("torchvision.models").resnet


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
    with pytest.raises(ValueError, match=rf"wrapped \(\S+\): it is wrapped by {WRAPPERS[wrap]}"):
        resnet_fused.convert(model, strict=True)


def test_wrapped_part_without_convolutions_is_not_reported():
    model = nn.ModuleDict({"scripted": torch.jit.script(nn.Linear(2, 2)), "bare": models.small_resnet()})
    assert "scripted" not in resnet_fused.report(resnet_fused.convert(model, strict=True))


def test_part_converted_before_wrapping_is_reported():
    part = models.small_resnet()
    resnet_fused.convert(part, filter_fn=lambda module, name: name != "layer2.0")
    report = resnet_fused.report(resnet_fused.convert(nn.Sequential(torch.compile(part))))
    assert report["0._orig_mod.layer1.0"].status == "converted"
    assert report["0._orig_mod.layer2.0"].status == "refused"
    assert "wrapped by torch.compile" in report["0._orig_mod.layer2.0"].reason


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "got NoneType; some libraries' eval() and train() return None: pass the model itself"),
        ((nn.Linear(1, 1), 1), "got tuple; pass one model at a time"),
        ([nn.Linear(1, 1)], "got list; pass one model at a time"),
        (nn.Linear(1, 1).state_dict(), "got OrderedDict; load the state_dict into a model and pass the model"),
        ("resnet18.pt", "got str; load the file first and pass the model"),
        (Path("resnet18.pt"), f"got {type(Path()).__name__}; load the file first and pass the model"),
        (nn.Linear, "got the class Linear; pass an instance of it"),
        (3, "expects a torch.nn.Module, but got int"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_type_errors_hint_at_the_fix(value, message):
    for function in (resnet_fused.convert, resnet_fused.revert, resnet_fused.report):
        with pytest.raises(TypeError) as error:
            function(value)
        assert str(error.value).startswith(f"resnet_fused.{function.__name__} expects a torch.nn.Module, but got ")
        assert str(error.value).endswith(message)
