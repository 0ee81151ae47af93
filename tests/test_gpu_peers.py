"""Peers from other packages compute the right network, or say why they cannot run. Torch replaces the packages."""

import importlib.machinery
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close

from benchmarks import cudnn_graph, folding, gpu_kernels, gpu_layers, gpu_models, peers, resnet_walk, tensorrt_models
from benchmarks.workloads import Workload
from resnet_fused import models

CPU = torch.device("cpu")


def small(make=models.resnet18):
    return Workload("model", "small", (2, 3, 32, 32), "bf16", lambda: make(num_classes=4))


def pretend(monkeypatch, name, module):
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_folded_weights_equal_convolution_and_norm():
    layer = gpu_layers.conv(16, 24, 7, 3, False)(2, torch.float32, CPU)
    weight, bias = folding.folded(layer.weight, layer.bn)
    folded = F.relu(F.conv2d(layer.x.double(), weight, bias, padding=1))
    torch.testing.assert_close(folded, layer.expected([0, 1])["y"])
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50], ids=["basic", "bottleneck"])
@torch.no_grad()
def test_calibration_does_not_change_the_network(make):
    wanted = small(make)
    observed, x = tensorrt_models.Observed(), wanted.input().float()
    exact = wanted.module().double()
    assert_close(resnet_walk.forward(exact, observed)(x), wanted.module().float()(x), exact(x.double()))
    convs = sum(isinstance(m, torch.nn.Conv2d) for m in exact.modules())
    adds = sum(hasattr(m, "downsample") for m in exact.modules())
    assert len(observed.largest) == convs + adds
    assert observed.largest[0] == x.abs().max()


class Layer:
    """A layer of a TensorRT network. ``get_output`` computes the output, after the attributes are set."""

    axis = None

    def __init__(self, compute, *inputs):
        self.inputs, self._compute = list(inputs), compute

    def set_input(self, index, tensor):
        self.inputs[index:] = [tensor]

    def get_output(self, index):
        assert index == 0
        return self._compute(self, *self.inputs)


def tensor(weights):
    return torch.from_numpy(weights)


class Network:
    """TensorRT's network definition, in float64."""

    def add_constant(self, shape, weights):
        return Layer(lambda _: tensor(weights).double().reshape(shape))

    def add_convolution_nd(self, x, out, kernel, weights, bias):
        def compute(layer, x, weight):
            assert tuple(weight.shape[2:]) == kernel and len(weight) == out
            return F.conv2d(x, weight, tensor(bias).double(), layer.stride_nd, layer.padding_nd)

        return Layer(compute, x, *([] if weights is None else [tensor(weights).double()]))

    def add_activation(self, x, kind):
        return Layer(lambda _, x: {"relu": F.relu}[kind](x), x)

    def add_elementwise(self, a, b, kind):
        return Layer(lambda _, a, b: {"sum": torch.add}[kind](a, b), a, b)

    def add_pooling_nd(self, x, kind, window):
        pool = {"max": F.max_pool2d}[kind]
        return Layer(lambda layer, x: pool(x, window, layer.stride_nd, layer.padding_nd), x)

    def add_reduce(self, x, kind, axes, keep_dims):
        found = [i for i in range(4) if axes >> i & 1]
        return Layer(lambda _, x: {"avg": torch.mean}[kind](x, found, keepdim=keep_dims), x)

    def add_matrix_multiply(self, a, how_a, b, how_b):
        assert how_a == how_b == "none"
        return Layer(lambda _, a, b: a @ b, a, b)

    def add_quantize(self, x, scale, to):
        assert to is torch.int8
        return Layer(lambda layer, x: (x / along(scale, layer.axis, x)).round().clamp(-128, 127), x)

    def add_dequantize(self, x, scale, to):
        assert to is torch.float16
        return Layer(lambda layer, x: x * along(scale, layer.axis, x), x)


def along(scale, axis, x):
    return scale if axis is None else scale.view([-1 if i == axis else 1 for i in range(x.dim())])


def tensorrt():
    """Returns the part of the package that a network definition needs."""

    def weights(value):
        return None if value is torch.float16 else value

    return SimpleNamespace(
        float16=torch.float16, int8=torch.int8, Weights=weights,
        ActivationType=SimpleNamespace(RELU="relu"), ElementWiseOperation=SimpleNamespace(SUM="sum"),
        PoolingType=SimpleNamespace(MAX="max"), ReduceOperation=SimpleNamespace(AVG="avg"),
        MatrixOperation=SimpleNamespace(NONE="none"),
    )  # fmt: skip


@torch.no_grad()
def through_tensorrt(wanted, largest):
    network, x = Network(), wanted.input().double()
    return resnet_walk.forward(wanted.module(), tensorrt_models.Network(tensorrt(), network, largest))(x)


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50], ids=["basic", "bottleneck"])
@torch.no_grad()
def test_network_built_for_tensorrt_matches_the_model(make):
    wanted = small(make)
    truth = wanted.module().double()(wanted.input().double())
    error = (through_tensorrt(wanted, None) - truth).abs().max() / truth.abs().max()
    assert error < 5 * torch.finfo(torch.float16).eps, "weights are rounded to fp16, and nothing else here"


@pytest.mark.parametrize("make", [models.resnet18, models.resnet50], ids=["basic", "bottleneck"])
@torch.no_grad()
def test_int8_error_is_due_to_rounding(make):
    wanted = small(make)
    truth = wanted.module().double()(wanted.input().double())
    largest = tensorrt_models.ranges(wanted.module(), wanted.input(), CPU)
    error = (through_tensorrt(wanted, largest) - truth).abs().max() / truth.abs().max()
    assert 1e-3 < error < 0.1
    halved = (through_tensorrt(wanted, [value / 2 for value in largest]) - truth).abs().max() / truth.abs().max()
    assert halved > 2 * error, "values beyond the range are cut off"


def test_int8_error_is_reported_but_not_checked(monkeypatch):
    def rough(workload, device):
        right = peers.channels_last(workload, device)
        return peers.Contender(lambda: right.call() * 1.5, right.output, "in int8", quantises=True)

    def measured(contenders):
        both = {**contenders, gpu_models.EAGER: (peers.channels_last, False)}
        return gpu_models.measure(replace(small(), dtype="fp32"), both, 0.01, CPU)

    result = measured({"TensorRT int8": (rough, False)})
    assert result["contenders"]["TensorRT int8"]["relative_error"] == pytest.approx(0.5, rel=0.2)
    assert "- TensorRT int8, a: off by" in gpu_models.table({"a": result})

    def judged(workload, device):
        contender = rough(workload, device)
        contender.quantises = False
        return contender

    assert measured({"TensorRT fp16": (judged, False)})["failed"]["TensorRT fp16"].startswith("wrong: error ")


@pytest.mark.parametrize(
    ("name", "package"),
    [("TensorRT fp16", "tensorrt"), ("TensorRT int8", "tensorrt"), ("Torch-TensorRT fp16", "torch-tensorrt")],
)
def test_missing_package_has_a_reason(monkeypatch, name, package):
    monkeypatch.setattr(tensorrt_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(peers.Unavailable, match=f"the package {package} is not installed"):
        gpu_models.CONTENDERS[name][0](small(), CPU)


def test_peers_of_other_packages_run_on_request_only():
    assert set(gpu_models.APART) == {"TensorRT fp16", "TensorRT int8", "Torch-TensorRT fp16"}
    assert not set(gpu_models.APART) & set(gpu_models.USUAL)
    assert not set(gpu_kernels.APART) & set(gpu_kernels.USUAL)


@pytest.mark.parametrize("explicit", [True, False])
def test_torch_tensorrt_gets_the_model_in_fp16(monkeypatch, explicit):
    asked = {}

    def before(exported_program, *, use_explicit_typing=False): ...

    def since(exported_program): ...

    def compile_(module, **options):
        asked.update(options, dtypes={p.dtype for p in module.parameters()})
        return lambda x: module(x.half())

    modes = []
    package = SimpleNamespace(
        dynamo=SimpleNamespace(compile=before if explicit else since), compile=compile_,
        runtime=SimpleNamespace(set_cudagraphs_mode=modes.append),
    )  # fmt: skip
    pretend(monkeypatch, "torch_tensorrt", package)
    contender = tensorrt_models.through_torch(small(), CPU)
    assert asked["dtypes"] == {torch.float16}
    assert asked["arg_inputs"][0].dtype is torch.float16
    assert asked["require_full_compilation"]
    assert asked.get("use_explicit_typing", False) is explicit
    assert modes == [True]
    assert contender.note == "its own CUDA graphs"


class Node:
    """A tensor of a cuDNN graph. ``value`` computes it from the memory given to the graph."""

    def __init__(self, value):
        self.value = value

    def set_output(self, is_output):
        assert is_output
        return self

    def set_data_type(self, dtype):
        self.dtype = dtype
        return self


class Graph:
    """A cuDNN graph in float64. Its first plan is not supported."""

    def __init__(self, handle, **types):
        assert types == {"io_data_type": "half", "intermediate_data_type": "float", "compute_data_type": "float"}

    def tensor_like(self, like):
        node = Node(None)
        node.value = lambda memory: memory[node].double()
        return node

    def conv_fprop(self, *, image, weight, padding, stride, dilation):
        return Node(lambda m: F.conv2d(image.value(m), weight.value(m), None, stride, padding, dilation))

    def mul(self, *, a, b):
        return Node(lambda m: a.value(m) * b.value(m))

    def add(self, *, a, b):
        return Node(lambda m: a.value(m) + b.value(m))

    def relu(self, *, input):
        self.output = Node(lambda m: F.relu(input.value(m)))
        return self.output

    def validate(self): ...

    def build_operation_graph(self): ...

    def create_execution_plans(self, modes):
        assert modes == ["a", "fallback"]

    def check_support(self): ...

    def build_plan_at_index(self, index):
        if index == 0:
            raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED")
        self.built = [*getattr(self, "built", []), index]

    def get_execution_plan_count(self):
        return 3

    def get_workspace_size_plan_at_index(self, index):
        return 16 * index

    def execute_plan_at_index(self, memory, workspace, index, *, handle):
        assert workspace.numel() >= 16 * index
        assert index in self.built
        self.ran = index
        memory[self.output].copy_(self.output.value(memory))


@pytest.fixture
def cudnn(monkeypatch):
    made = []

    def pygraph(**arguments):
        made.append(Graph(**arguments))
        return made[-1]

    monkeypatch.setattr(cudnn_graph, "_stream", lambda device: 7)
    package = SimpleNamespace(
        create_handle=lambda: "handle", set_stream=lambda handle, stream: None, pygraph=pygraph, made=made,
        data_type=SimpleNamespace(HALF="half", BFLOAT16="bfloat16", FLOAT="float"),
        heur_mode=SimpleNamespace(A="a", FALLBACK="fallback"),
    )  # fmt: skip
    return pretend(monkeypatch, "cudnn", package)


@pytest.mark.parametrize("residual", [True, False])
@torch.no_grad()
def test_cudnn_graph_equals_the_layer(cudnn, residual):
    layer = gpu_layers.conv(16, 24, 7, 3, residual)(2, torch.float16, CPU)
    times = iter([3.0, 2.0])

    def time(call):
        call()
        return next(times)

    call = cudnn_graph.fused(layer, time)
    y = call()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert cudnn.made[0].ran == 2, "the plan that took 2, not 3; the first plan refuses"
    assert_close(y, layer.eager(), layer.expected([0, 1])["y"])


def test_unsupported_cudnn_layers_have_a_reason(cudnn):
    stats = gpu_layers.conv(16, 16, 7, 3, False, gpu_layers.Stats)(2, torch.float16, CPU)
    with pytest.raises(peers.Unavailable, match="single convolutions, not on a Stats"):
        cudnn_graph.fused(stats)
    cudnn.pygraph = lambda **_: refused
    refused = Graph("handle", io_data_type="half", intermediate_data_type="float", compute_data_type="float")
    refused.get_execution_plan_count = lambda: 1
    with pytest.raises(peers.Unavailable, match="none of 1 plans of cuDNN runs: CUDNN_STATUS_NOT_SUPPORTED"):
        cudnn_graph.fused(gpu_layers.conv(16, 16, 7, 3, False)(2, torch.float16, CPU), lambda call: call())


def test_missing_cudnn_frontend_has_a_reason(monkeypatch):
    monkeypatch.setattr(cudnn_graph.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(peers.Unavailable, match="nvidia-cudnn-frontend is not installed"):
        cudnn_graph.fused(gpu_layers.conv(16, 16, 7, 3, False)(2, torch.float16, CPU))
