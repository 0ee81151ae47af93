"""Stems of timm's and Hugging Face's networks: fused, as in eager after every change, and reported as one module."""

import copy
import functools
import importlib
import pickle

import pytest
import torch
from support import randomise
from torch import nn

import resnet_fused
from benchmarks.coverage.models import freeze
from resnet_fused.chain.policy import CAPABILITIES

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")

LAYERS = (2, 1, 1, 1)
CHANNELS = (64, 32, 32, 32)  # the first stage has an identity shortcut


def of_timm(name, **arguments):
    return lambda: timm.create_model(name, layers=LAYERS, channels=CHANNELS, num_classes=7, **arguments)


def of_transformers(name, config, **arguments):
    given = {"depths": LAYERS, "hidden_sizes": [16, 32, 32, 32], "embedding_size": 16, **arguments}
    return lambda: getattr(transformers, name)(getattr(transformers, config)(**given))


def rt_detr(**arguments):
    config = importlib.import_module("transformers.models.rt_detr.configuration_rt_detr_resnet").RTDetrResNetConfig
    library = importlib.import_module("transformers.models.rt_detr.modeling_rt_detr_resnet")
    return library.RTDetrResNetBackbone(config(depths=LAYERS, hidden_sizes=[16, 32, 32, 32], embedding_size=16))


TIMM = {
    "timm plain": of_timm("resnet18"),
    "timm deep": of_timm("resnet18d"),
    "timm tiered": of_timm("resnet26t"),
    "timm deep frozen": lambda: freeze(of_timm("resnet18d")()),
    "timm frozen": lambda: freeze(of_timm("resnet18")()),
}
HUGGING_FACE = {
    "hf resnet": of_transformers("ResNetModel", "ResNetConfig", layer_type="basic"),
    "hf regnet": of_transformers("RegNetModel", "RegNetConfig", groups_width=8, layer_type="x"),
    "hf rt-detr": rt_detr,
}
NETWORKS = {**TIMM, **HUGGING_FACE}
STEMS = {**dict.fromkeys(TIMM, ""), **dict.fromkeys(HUGGING_FACE, "embedder")}
FORMATS = (torch.contiguous_format, torch.channels_last)
MODES = ("inference", "gradients", "training")


def build(name):
    torch.manual_seed(0)
    return randomise(NETWORKS[name]()).double().eval()


def pair(name, memory_format=torch.contiguous_format):
    eager = build(name).to(memory_format=memory_format)
    return eager, resnet_fused.convert(copy.deepcopy(eager))


def image(memory_format=torch.contiguous_format, dtype=torch.float64):
    x = torch.randn(2, 3, 40, 44, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x.contiguous(memory_format=memory_format)


def output(network, x):
    y = network(x)
    return y if isinstance(y, torch.Tensor) else y[0][-1] if isinstance(y[0], tuple) else y[0]


def step(network, x, mode):
    """The output, and all gradients and buffers."""
    network.train(mode == "training")
    x = x.clone().requires_grad_(mode != "inference")
    with torch.set_grad_enabled(mode != "inference"):
        y = output(network, x)
        network.zero_grad()
        if mode != "inference":
            (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    gradients = [x.grad, *(p.grad for p in network.parameters())]
    return [y.detach(), *(g for g in gradients if g is not None), *(b.clone() for b in network.buffers())]


def assert_same(eager, fused, x=None, mode="inference"):
    x = image() if x is None else x
    for a, b in zip(step(fused, x, mode), step(eager, x, mode), strict=True):
        assert a.stride() == b.stride() or min(a.shape) == 1
        assert (a - b).double().norm() <= 1e-9 * max(b.double().norm(), 1e-2)


def how(network, name, x=None):
    with torch.no_grad():
        return resnet_fused.explain(network, image() if x is None else x)[STEMS[name]]


@pytest.mark.thinned
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("x_format", FORMATS, ids=str)
@pytest.mark.parametrize("weight_format", FORMATS, ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_same_as_eager(name, x_format, weight_format, mode):
    eager, fused = pair(name, weight_format)
    assert_same(eager, fused, image(x_format), mode)
    uses_batch_statistics = mode == "training" and "frozen" not in name
    assert how(fused, name).how == ("training" if uses_batch_statistics else "inference")


@pytest.mark.parametrize("name", NETWORKS)
def test_the_report_names_the_stem_once(name):
    network = build(name)
    for status in ("convertible", "converted"):
        report = resnet_fused.report(network)
        stem = STEMS[name]
        assert report[stem].kind == "stem"
        assert report[stem].status == status
        inside = [path for path in report if path.startswith(("conv1", "embedder."))]
        assert not inside
        assert report.coverage.fused == report.coverage.blocks == 5
        resnet_fused.convert(network, strict=True)
    assert all("stem" not in entry.kind for path, entry in resnet_fused.report(network).items() if path != stem)


@pytest.mark.parametrize("name", NETWORKS)
def test_copies_pickles_and_revert(name):
    eager, fused = pair(name)
    for network in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same(eager, network)
        assert how(network, name).how == "inference"
        assert network.state_dict().keys() == eager.state_dict().keys()
        resnet_fused.revert(network)
        assert [type(m) for m in network.modules()] == [type(m) for m in eager.modules()]


@pytest.mark.parametrize("name", ["timm plain", "timm deep", "hf resnet"])
def test_compile_and_export(name):
    eager, fused = pair(name)
    with torch.no_grad():
        expected = output(eager, image())
        for module in (
            torch.compile(fused, backend="eager", fullgraph=True),
            torch.export.export(fused, (image(),)).module(),
        ):
            assert torch.allclose(output(module, image()), expected, rtol=1e-9)


@pytest.mark.parametrize("name", ["timm plain", "timm deep", "hf resnet"])
def test_low_precision_and_autocast(name):
    eager, fused = pair(name)
    eager, fused = eager.float(), fused.float()
    x = image(dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, actual = output(eager, x), output(fused, x)
    assert actual.dtype is expected.dtype
    assert (actual.float() - expected.float()).norm() <= 0.03 * expected.float().norm()


def layers_of(name):
    return {
        "timm plain": ("conv1", "bn1", "act1", "maxpool"),
        "timm deep": ("conv1", "conv1.0", "conv1.1", "conv1.2", "conv1.6", "bn1", "act1", "maxpool"),
        "hf resnet": tuple(
            f"embedder.{each}"
            for each in ("embedder", "embedder.convolution", "embedder.normalization", "embedder.activation", "pooler")
        ),
    }[name]


LAYER = [(name, layer) for name in ("timm plain", "timm deep", "hf resnet") for layer in layers_of(name)]


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize(("name", "layer"), LAYER)
def test_hooks_of_layers_run(name, layer, mode):
    eager, fused = pair(name)
    for network in (eager, fused):
        network.get_submodule(layer).register_forward_hook(lambda _, args, y: y * 2)
    assert_same(eager, fused, mode=mode)


@pytest.mark.parametrize(("name", "layer"), LAYER)
def test_replaced_layers_run(name, layer):
    eager, fused = pair(name)
    if how(fused, name).how != "inference":
        pytest.fail("the stem does not run fused")
    for network in (eager, fused):
        old = network.get_submodule(layer)
        owner, _, attribute = layer.rpartition(".")
        setattr(network.get_submodule(owner), attribute, nn.Sequential(old, nn.Hardtanh(-0.5, 0.5)))
    assert_same(eager, fused)
    assert_same(eager, fused, mode="training")


@pytest.mark.parametrize(("name", "layer"), LAYER)
def test_patched_forwards_run(name, layer):
    eager, fused = pair(name)
    for network in (eager, fused):
        module = network.get_submodule(layer)
        module.forward = functools.partial(lambda module, x: 2 * type(module).forward(module, x), module)
    assert_same(eager, fused)


@pytest.mark.parametrize("name", ["timm plain", "timm deep"])
@pytest.mark.parametrize("place", ["instance", "class"])
def test_replaced_forward_features_runs(name, place, monkeypatch):
    eager, fused = pair(name)
    kind = type(eager)
    original = kind.forward_features
    if place == "class":
        monkeypatch.setattr(kind, "forward_features", lambda self, x: original(self, 2 * x))
    else:
        for network in (eager, fused):
            network.forward_features = functools.partial(lambda network, x: original(network, 2 * x), network)
    assert_same(eager, fused)
    if place == "class":
        assert "forward_features" in resnet_fused.report(fused)[""].reason


def test_a_patched_layer_class_of_hugging_face_runs(monkeypatch):
    eager, fused = pair("hf resnet")
    kind = type(eager.embedder.embedder)
    original = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: original(self, 2 * x))
    assert_same(eager, fused)


def test_wrong_channels_raise_an_error():
    _, fused = pair("hf resnet")
    with pytest.raises((ValueError, RuntimeError), match="channel"):
        fused(torch.randn(1, 4, 40, 40, dtype=torch.float64))
    fused.embedder.num_channels = 4
    with torch.no_grad(), pytest.raises(ValueError, match="channel dimension of the pixel values"):
        fused(image())


def test_gradient_checkpointing_of_timm():
    eager, fused = pair("timm plain")
    for network in (eager, fused):
        network.set_grad_checkpointing()
    assert_same(eager, fused, mode="gradients")
    assert_same(eager, fused)


def test_features_of_timm():
    eager, fused = pair("timm plain")
    with torch.no_grad():
        assert torch.allclose(fused.forward_features(image()), eager.forward_features(image()), rtol=1e-9)
        for a, b in zip(
            fused.forward_intermediates(image(), intermediates_only=True),
            eager.forward_intermediates(image(), intermediates_only=True),
            strict=True,
        ):
            assert torch.allclose(a, b, rtol=1e-9)


def test_subclasses_of_timms_resnet():
    kind = type(build("timm plain"))

    class Plain(kind):
        pass

    class Other(kind):
        def forward_features(self, x):
            return super().forward_features(2 * x)

    for made in (Plain, Other):
        eager = build("timm plain")
        eager.__class__ = made
        fused = resnet_fused.convert(copy.deepcopy(eager))
        assert_same(eager, fused)
        assert isinstance(fused, made)


def test_a_longer_deep_stem_runs_eagerly():
    eager, fused = pair("timm deep")
    for network in (eager, fused):
        network.conv1.append(nn.Hardtanh(-0.5, 0.5))
    assert_same(eager, fused)
    assert how(fused, "timm deep").reason == "conv1 is torch.nn.Sequential, not torch.nn.Conv2d"


def test_stems_with_other_layers_are_refused():
    report = resnet_fused.report(of_timm("resnetblur18")())
    assert report[""].reason.startswith("maxpool is torch.nn.Sequential")
    report = resnet_fused.report(of_timm("resnet18", act_layer="silu")())
    assert report[""].reason.startswith("act1 is torch.nn.SiLU")


def test_chains_leave_the_stem_alone():
    eager = build("timm deep")
    fused = resnet_fused.convert(copy.deepcopy(eager), chains=True)
    assert type(fused.conv1) is nn.Sequential
    assert_same(eager, fused)
    assert how(fused, "timm deep").how == "inference"
