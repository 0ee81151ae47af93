"""ResNets in TensorRT (fp16 and int8) and in Torch-TensorRT (fp16).

Written from NVIDIA's documentation for versions 10 and 11; none of it has run yet. The network is defined through the
TensorRT API, strongly typed, with BatchNorm folded into the weights. No exporter is involved, so the types are exactly
those written here. int8 uses explicit quantisation (quantise/dequantise pairs, placed as documented) for inputs and
weights of all convolutions and for the shortcuts of additions. It is symmetric: per output channel for weights; for
activations, by the largest value of the timed input. Pooling and the classifier stay fp16.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import resnet_walk
from .folding import folded
from .peers import Contender, Unavailable, as_tensor, require_running_statistics
from .workloads import Workload

LARGEST = 127  # largest int8 magnitude, symmetric
WORKSPACE = 4 << 30
INT8_NOTE = "convolutions in int8, its error stated and not judged"


def fp16(workload: Workload, device: torch.device) -> Contender:
    """Weights and activations in fp16."""
    require_running_statistics(workload)
    return _built(workload, device, None)


def int8(workload: Workload, device: torch.device) -> Contender:
    """Convolutions in int8."""
    require_running_statistics(workload)
    _installed("tensorrt", "tensorrt")
    contender = _built(workload, device, ranges(workload.module(), workload.input(), device))
    return replace(contender, note=INT8_NOTE, quantises=True)


def through_torch(workload: Workload, device: torch.device) -> Contender:
    """``torch_tensorrt.compile`` of the model in fp16, whole, with its own CUDA graphs."""
    require_running_statistics(workload)
    library = _installed("torch_tensorrt", "torch-tensorrt")
    module, x = workload.module().half().to(device), workload.input().half().to(device)
    options = {"require_full_compilation": True}
    if "use_explicit_typing" in inspect.signature(library.dynamo.compile).parameters:  # the only mode of newer versions
        options["use_explicit_typing"] = True
    compiled = library.compile(module, ir="dynamo", arg_inputs=[x], **options)
    library.runtime.set_cudagraphs_mode(True)
    return Contender(lambda: compiled(x), as_tensor, "its own CUDA graphs")


class Observed:
    """The folded network in float32 torch; records the largest magnitude of every tensor that int8 rounds."""

    def __init__(self) -> None:
        self.largest: list[float] = []

    def conv_bn(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> resnet_walk.Function:
        weight, bias = (t.float() for t in folded(conv.weight, bn))
        return lambda x: F.conv2d(self._observe(x), weight, bias, conv.stride, conv.padding)

    def relu(self, x: Tensor) -> Tensor:
        return F.relu(x)

    def add(self, y: Tensor, shortcut: Tensor) -> Tensor:
        return y + self._observe(shortcut)

    def max_pool(self, x: Tensor, window: int, stride: int, padding: int) -> Tensor:
        return F.max_pool2d(x, window, stride, padding)

    def head(self, fc: nn.Linear) -> resnet_walk.Function:
        return lambda x: F.linear(x.mean((2, 3)), fc.weight.float(), fc.bias.float())

    def _observe(self, x: Tensor) -> Tensor:
        self.largest.append(x.abs().max().item())
        return x


@torch.no_grad()
def ranges(model: nn.Module, x: Tensor, device: torch.device) -> list[float]:
    """In the order in which the network meets them."""
    observed = Observed()
    resnet_walk.forward(model.to(device), observed)(x.to(device).float())
    return observed.largest


class Network:
    """The same operations as TensorRT layers; ``largest`` has the quantisation ranges, or None for fp16."""

    def __init__(self, trt: ModuleType, network: Any, largest: list[float] | None) -> None:
        self._trt, self._network = trt, network
        self._largest: Iterator[float] | None = None if largest is None else iter(largest)
        self._kept: list[Any] = []  # TensorRT reads the weights during the build

    def conv_bn(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> resnet_walk.Function:
        weight, bias = folded(conv.weight, bn)

        def run(x: Any) -> Any:
            read, kernel = self._quantised(x), self._weights(weight)
            if self._largest is not None:
                kernel = self._trt.Weights(self._trt.float16)  # given as the layer's second input
            layer = self._network.add_convolution_nd(
                read, len(weight), tuple(weight.shape[2:]), kernel, self._weights(bias)
            )
            layer.stride_nd, layer.padding_nd = tuple(conv.stride), tuple(conv.padding)  # type: ignore[arg-type]
            if self._largest is not None:
                scales = (weight.abs().amax((1, 2, 3)) / LARGEST).clamp_min(1e-7)
                layer.set_input(1, self._rounded(self._constant(weight), self._constant(scales), axis=0))
            return layer.get_output(0)

        return run

    def relu(self, x: Any) -> Any:
        return self._network.add_activation(x, self._trt.ActivationType.RELU).get_output(0)

    def add(self, y: Any, shortcut: Any) -> Any:
        add = self._trt.ElementWiseOperation.SUM
        return self._network.add_elementwise(y, self._quantised(shortcut), add).get_output(0)

    def max_pool(self, x: Any, window: int, stride: int, padding: int) -> Any:
        layer = self._network.add_pooling_nd(x, self._trt.PoolingType.MAX, (window, window))
        layer.stride_nd, layer.padding_nd = (stride, stride), (padding, padding)
        return layer.get_output(0)

    def head(self, fc: nn.Linear) -> resnet_walk.Function:
        trt, network = self._trt, self._network

        def run(x: Any) -> Any:
            mean = network.add_reduce(x, trt.ReduceOperation.AVG, 1 << 2 | 1 << 3, False).get_output(0)
            weight = self._constant(fc.weight.t())
            none = trt.MatrixOperation.NONE
            y = network.add_matrix_multiply(mean, none, weight, none).get_output(0)
            bias = self._constant(fc.bias[None])
            return network.add_elementwise(y, bias, trt.ElementWiseOperation.SUM).get_output(0)

        return run

    def _quantised(self, x: Any) -> Any:
        if self._largest is None:
            return x
        return self._rounded(x, self._constant(torch.tensor(next(self._largest) / LARGEST)), axis=None)

    def _rounded(self, x: Any, scale: Any, axis: int | None) -> Any:
        """Quantises to int8 and dequantises."""
        trt = self._trt
        there = self._network.add_quantize(x, scale, trt.int8)
        if axis is not None:
            there.axis = axis
        back = self._network.add_dequantize(there.get_output(0), scale, trt.float16)
        if axis is not None:
            back.axis = axis
        return back.get_output(0)

    def _constant(self, value: Tensor) -> Any:
        return self._network.add_constant(tuple(value.shape), self._weights(value)).get_output(0)

    def _weights(self, value: Tensor) -> Any:
        self._kept.append(value.detach().half().cpu().contiguous().numpy())
        return self._trt.Weights(self._kept[-1])


class Engine:
    """A network built for one shape, with the memory that it reads and writes."""

    def __init__(self, trt: ModuleType, model: nn.Module, x: Tensor, largest: list[float] | None) -> None:
        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        # Version 11 has only strongly typed networks and ignores the flag.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        operations = Network(trt, network, largest)
        y = resnet_walk.forward(model, operations)(network.add_input("x", trt.float16, tuple(x.shape)))
        y.name = "y"
        network.mark_output(y)
        config = builder.create_builder_config()
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise Unavailable("TensorRT built no engine; its own log says why")
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._x, self._out = x, x.new_empty(tuple(self._engine.get_tensor_shape("y")))
        self._context.set_tensor_address("x", x.data_ptr())
        self._context.set_tensor_address("y", self._out.data_ptr())

    def __call__(self) -> Tensor:
        if not self._context.execute_async_v3(torch.cuda.current_stream(self._x.device).cuda_stream):
            raise RuntimeError("TensorRT did not execute; its own log says why")
        return self._out


def _built(workload: Workload, device: torch.device, largest: list[float] | None) -> Contender:
    trt = _installed("tensorrt", "tensorrt")
    engine = Engine(trt, workload.module(), workload.input().half().to(device), largest)
    return Contender(engine, as_tensor)


def _installed(name: str, package: str) -> ModuleType:
    if importlib.util.find_spec(name) is None:
        raise Unavailable(f"the package {package} is not installed")
    return importlib.import_module(name)
