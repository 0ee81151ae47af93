"""torch.fx of a converted model: an eager graph with a warning, or fused blocks as leaves."""

import copy
import warnings

import pytest
import torch
from criterion import assert_close
from support import randomise, truth

import resnet_fused
from resnet_fused import models, modules
from resnet_fused.modules import _block

feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
resnet = pytest.importorskip("torchvision.models").resnet

NODES = {"layer1": "low", "layer3.0": "middle", "layer4": "high", "flatten": "pooled"}
LEAVES = {"leaf_modules": [modules.FusedBlock]}


@pytest.fixture(autouse=True)
def _warns_again():
    _block._warn_about_fx_tracing.cache_clear()


@pytest.fixture
def eager():
    return randomise(resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], 500)).eval()


def extractor(model, **options):
    return feature_extraction.create_feature_extractor(model, return_nodes=NODES, **options)


class KeepsBlocks(torch.fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return isinstance(m, modules.FusedBlock) or super().is_leaf_module(m, module_qualified_name)


def test_features_without_leaves_are_eager_and_warn(eager):
    x = torch.randn(1, 3, 64, 64)
    model = resnet_fused.convert(copy.deepcopy(eager))
    with pytest.warns(UserWarning, match=r"leaf_modules': \[resnet_fused.modules.FusedBlock\]") as warned:
        features = extractor(model)
    assert len([w for w in warned if "fused blocks" in str(w.message)]) == 1
    assert not any(isinstance(m, modules.FusedBlock) for m in features.modules())
    with torch.no_grad():
        for name, expected in extractor(eager)(x).items():
            assert torch.equal(features(x)[name], expected), name


def test_features_with_leaves_are_fused(eager):
    x = torch.randn(1, 3, 64, 64)
    model = resnet_fused.convert(copy.deepcopy(eager), strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features = extractor(model, tracer_kwargs=dict(LEAVES))
    assert sum(isinstance(m, modules.FusedBlock) for m in features.modules()) == 5
    plain = extractor(eager)
    with torch.no_grad():
        actual, expected = features(x), plain(x)
        exact = plain.double()(x.double())
    assert list(actual) == list(NODES.values())
    for name, tensor in actual.items():
        assert_close(tensor, expected[name], exact[name])
    assert resnet_fused.report(features).count("converted") == 5


def test_fused_features_train(eager):
    features = extractor(resnet_fused.convert(eager), tracer_kwargs=dict(LEAVES)).train()
    sum(feature.square().mean() for feature in features(torch.randn(2, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for name, p in features.named_parameters() if not name.startswith("fc"))


@pytest.mark.parametrize("build", [models.small_resnet, models.small_preact_resnet])
def test_symbolic_trace(build):
    eager = randomise(build(500)).eval()
    x = torch.randn(1, 3, 12, 12)
    exact = truth(eager, x)
    model = resnet_fused.convert(copy.deepcopy(eager))
    with pytest.warns(UserWarning, match="torch.fx traces through fused blocks"):
        graph = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(graph(x), eager(x))
        _block._warn_about_fx_tracing.cache_clear()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            graph = torch.fx.GraphModule(model, KeepsBlocks().trace(model))
        assert sum(isinstance(m, modules.FusedBlock) for m in graph.modules()) == 2
        assert_close(graph(x), eager(x), exact)


def test_the_warning_is_emitted_once(eager):
    model = resnet_fused.convert(eager)
    with pytest.warns(UserWarning, match="torch.fx traces through"):
        torch.fx.symbolic_trace(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.fx.symbolic_trace(model)
