"""``resnet_fused.Tracer`` keeps fused blocks as leaves of a torch.fx graph."""

import copy
import pickle
import warnings

import pytest
import torch
from chain_modules import Own
from handwritten_blocks import BLOCKS, Basic
from handwritten_parity import MODES, assert_same, input_of, step
from handwritten_shortcuts import SHORTCUTS, PreActivation
from support import ops_of, randomise
from torch import nn

import resnet_fused
from resnet_fused import models, modules
from resnet_fused.modules import _block


@pytest.fixture(autouse=True)
def _warns_again():
    _block._warn_about_fx_tracing.cache_clear()


def network(depth=(1, 1, 1, 1)):
    return models.ResNet(resnet_fused.reference.BasicBlock, list(depth), 5)


NETWORKS = {
    "residual network": (network, 3, 4),
    "small network": (lambda: models.small_resnet(5), 3, 2),
    "small pre-activation network": (lambda: models.small_preact_resnet(5), 3, 2),
    "own network": (Own, 3, 8),
    "one stage": (lambda: nn.Sequential(Basic(), Basic()), 6, 2),
    "one block": (lambda: nn.Sequential(Basic()), 6, 1),
    "pre-activation": (lambda: nn.Sequential(nn.Conv2d(6, 6, 1), PreActivation(), nn.Sigmoid()), 6, 1),
}
every_network = pytest.mark.parametrize(("make", "channels", "blocks"), NETWORKS.values(), ids=NETWORKS)


def traced(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return torch.fx.GraphModule(model, resnet_fused.Tracer().trace(model))


def pair(make):
    torch.manual_seed(0)
    eager = randomise(make()).double().eval()
    return eager, resnet_fused.convert(copy.deepcopy(eager))


@every_network
def test_blocks_are_leaves(make, channels, blocks):
    _, fused = pair(make)
    graph = resnet_fused.Tracer().trace(fused)
    leaves = [node.target for node in graph.nodes if node.op == "call_module"]
    named = [name for name, module in fused.named_modules() if isinstance(module, modules.FusedBlock)]
    assert [name for name in leaves if name in named] == named
    assert len(named) == blocks
    assert not [name for name in leaves if any(name.startswith(f"{block}.") for block in named)]
    assert resnet_fused.report(traced(fused)).count("converted") == blocks


@every_network
def test_graph_module_equals_eager_in_every_mode(make, channels, blocks):
    eager, fused = pair(make)
    for mode in MODES.values():
        x = input_of(channels, (32, 32))
        fused.train(mode.training)
        graph = traced(fused)
        expected, actual = step(eager, x, mode), step(graph, x, mode)
        assert_same({name: actual[name] for name in expected}, expected)
        assert actual["output"].stride() == expected["output"].stride()


@every_network
def test_graph_module_runs_fused(make, channels, blocks):
    _, fused = pair(make)
    x = input_of(channels, (32, 32))
    assert len(ops_of(traced(fused), x)) >= blocks
    runs = resnet_fused.explain(traced(fused).requires_grad_(False), x)
    assert {run.how for run in runs.values() if "block" in run.kind} == {"inference"}


@every_network
def test_symbolic_trace_gives_eager_layers_and_warns_once(make, channels, blocks):
    eager, fused = pair(make)
    with pytest.warns(UserWarning, match="torch.fx traces through fused blocks") as warned:
        graph = torch.fx.symbolic_trace(fused)
    assert len(warned) == 1
    assert not any(isinstance(module, modules.FusedBlock) for module in graph.modules())
    x = input_of(channels, (32, 32))
    with torch.no_grad():
        assert torch.equal(graph(x), eager(x))
        assert not ops_of(graph, x)


EXACT = [name for name, case in {**BLOCKS, **SHORTCUTS}.items() if case.exact_eval and case.exact_train]


@pytest.mark.parametrize("name", EXACT)
def test_hand_written_blocks_are_leaves(name):
    case = {**BLOCKS, **SHORTCUTS}[name]
    eager, fused = pair(lambda: nn.Sequential(case.make()))
    graph = traced(fused)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0"]
    for mode in MODES.values():
        x = input_of(case.channels)
        assert_same(step(graph, x, mode), step(eager, x, mode))


def test_unconverted_model_is_traced_as_by_torch():
    model = network()
    ours, theirs = resnet_fused.Tracer().trace(model), torch.fx.Tracer().trace(model)
    assert [(node.op, str(node.target)) for node in ours.nodes] == [(n.op, str(n.target)) for n in theirs.nodes]


def test_graph_module_is_copied_and_pickled():
    eager, fused = pair(Own)
    graph = traced(fused)
    x = input_of(3)
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert sum(isinstance(module, modules.FusedBlock) for module in twin.modules()) == 8
        with torch.no_grad():
            torch.testing.assert_close(twin(x), eager(x))


def test_blocks_of_a_graph_are_reverted():
    eager, fused = pair(Own)
    graph = resnet_fused.revert(traced(fused))
    assert not any(isinstance(module, modules.FusedBlock) for module in graph.modules())
    with torch.no_grad():
        x = input_of(3)
        assert torch.equal(graph(x), eager(x))


def test_subclass_adds_its_own_leaves():
    class Stages(resnet_fused.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return isinstance(m, nn.Sequential) or super().is_leaf_module(m, module_qualified_name)

    _, fused = pair(Own)
    leaves = [node.target for node in Stages().trace(fused).nodes if node.op == "call_module"]
    assert leaves == ["stem", "layer1", "layer2", "layer3"]


def test_functions_given_to_feature_extraction():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    eager, fused = pair(network)
    leaves = {"leaf_modules": [modules.FusedBlock]}
    features = extraction.create_feature_extractor(fused, ["layer1", "layer4"], tracer_kwargs=leaves)
    plain = extraction.create_feature_extractor(eager, ["layer1", "layer4"])
    x = input_of(3, (32, 32))
    with torch.no_grad():
        for name, expected in plain(x).items():
            torch.testing.assert_close(features(x)[name], expected)
