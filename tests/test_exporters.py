"""Exporters whose graph must run without our ops see the eager layers of a converted model."""

import copy
import io
import warnings

import pytest
import torch
from support import randomise

import resnet_fused
from resnet_fused import functional, models, reference

resnet = pytest.importorskip("torchvision.models").resnet

NETWORKS = {
    "torchvision": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 10),
    "small_resnet": models.small_resnet,
    "small_preact_resnet": models.small_preact_resnet,
    "block": lambda: reference.Bottleneck(3, 1, downsample=torch.nn.Conv2d(3, 4, 1)),
}


@pytest.fixture(params=NETWORKS)
def eager(request):
    return randomise(NETWORKS[request.param]()).eval()


@pytest.fixture
def fused(eager):
    return resnet_fused.convert(copy.deepcopy(eager), strict=True)


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def ops_of_export(model, x):
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=False)
    return [str(node.target) for node in program.graph.nodes if "resnet_fused" in str(node.target)]


@pytest.mark.parametrize("gradients", [False, True])
def test_trace_is_eager_and_passes_trace_check(eager, fused, x, gradients):
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(fused, x)
    assert "resnet_fused::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    with torch.no_grad():
        assert torch.equal(torch.jit.load(file)(x), eager(x))


def test_trace_check_compares_eager_with_eager(monkeypatch, x):
    """The trace check reruns the module, which must run eagerly then too, because the fused path rounds differently."""
    block = resnet_fused.convert(randomise(reference.BasicBlock(3, 3)).eval())
    fused = type(block).fused_forward

    def rounded_otherwise(self, x):
        y = fused(self, x)
        return None if y is None else y * 1.01

    monkeypatch.setattr(type(block), "fused_forward", rounded_otherwise)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(block, x)


def test_functions_trace_as_their_eager_definitions(x):
    weight, residual = torch.randn(4, 3, 1, 1), torch.randn(2, 4, 32, 32)
    function = lambda x: functional.conv_bn_act(x, weight, residual=residual)  # noqa: E731
    traced = torch.jit.trace(function, x, check_trace=False)
    assert "resnet_fused::" not in str(traced.inlined_graph)
    assert torch.equal(traced(x), reference.conv_bn_act(x, weight, residual=residual))


def test_model_is_fused_again_after_a_trace(fused, x):
    torch.jit.trace(fused, x)
    assert ops_of_export(fused, x)


def test_export_is_fused_except_for_onnx(fused, x, monkeypatch):
    assert ops_of_export(fused, x)
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert not ops_of_export(fused, x)


def test_scripting_is_refused_and_changes_nothing(eager, fused, x):
    before = [(name, id(module), type(module)) for name, module in fused.named_modules()]
    with pytest.raises(RuntimeError, match=r"torch.jit.script cannot compile fused modules: .*revert\(model\)"):
        torch.jit.script(fused)
    with pytest.raises(RuntimeError, match=r"resnet_fused.revert"):
        torch.jit.script(torch.nn.Sequential(fused))
    assert [(name, id(module), type(module)) for name, module in fused.named_modules()] == before


def test_a_reverted_model_scripts(x):
    eager = randomise(NETWORKS["torchvision"]()).eval()
    scripted = torch.jit.script(resnet_fused.revert(resnet_fused.convert(copy.deepcopy(eager))))
    with torch.no_grad():
        assert torch.equal(scripted(x), eager(x))


def test_onnx_from_a_trace(fused, x):
    pytest.importorskip("onnx", reason="torch's exporters to ONNX need onnx (requirements/bench.txt)")
    file = io.BytesIO()
    torch.onnx.export(fused, (x,), file, dynamo=False)
    assert b"Conv" in file.getvalue()
    assert b"resnet_fused" not in without_names(file.getvalue())


def test_onnx_from_an_export(eager, fused, x):
    pytest.importorskip("onnxscript", reason="torch's exporter to ONNX needs onnxscript (requirements/bench.txt)")
    runtime = pytest.importorskip("onnxruntime", reason="to run what was exported (requirements/bench.txt)")
    with torch.no_grad():
        program = torch.onnx.export(fused, (x,), dynamo=True, verbose=False)
        session = runtime.InferenceSession(program.model_proto.SerializeToString())
        (actual,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), eager(x), rtol=1e-3, atol=1e-4)


def without_names(serialised):
    """Returns the domains and operators of an ONNX model, without value names, which contain the modules' classes."""
    import onnx

    graph = onnx.load_from_string(serialised).graph
    return " ".join(f"{node.domain}.{node.op_type}" for node in graph.node).encode()
