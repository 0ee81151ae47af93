"""A layer as one cuDNN operation graph: convolution, scale, shift, residual, ReLU.

Needs the Python package ``cudnn`` (nvidia-cudnn-frontend). Uses the fastest of cuDNN's execution plans. Written from
the documentation; version 1.32 accepts the graph, but nothing has run yet.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .folding import scale_and_shift
from .gpu_layers import Layer
from .peers import Unavailable

TRIED = 8  # plans, in cuDNN's order
Time = Callable[[Callable[[], object]], float]


def fused(layer: Layer, time: Time | None = None) -> Callable[[], Tensor]:
    """Returns a call planned for this layer."""
    if importlib.util.find_spec("cudnn") is None:
        raise Unavailable("the package nvidia-cudnn-frontend is not installed")
    if type(layer) is not Layer:
        raise Unavailable(f"cuDNN's graphs are compared on single convolutions, not on a {type(layer).__name__}")
    cudnn = importlib.import_module("cudnn")
    handle = cudnn.create_handle()
    graph, inputs, output = describe(cudnn, handle, layer)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    out = torch.empty(layer.output_shape(), dtype=layer.x.dtype, device=layer.x.device)
    memory = {**inputs, output: out.contiguous(memory_format=torch.channels_last)}

    def planned(index: int) -> Callable[[], Tensor]:
        graph.build_plan_at_index(index)
        size = graph.get_workspace_size_plan_at_index(index)
        workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=layer.x.device)

        def call() -> Tensor:
            cudnn.set_stream(handle=handle, stream=_stream(layer.x.device))  # capture uses another stream
            graph.execute_plan_at_index(memory, workspace, index, handle=handle)
            return memory[output]

        return call

    return fastest(planned, min(graph.get_execution_plan_count(), TRIED), time or _by_events)


def describe(cudnn: ModuleType, handle: Any, layer: Layer) -> tuple[Any, dict[Any, Tensor], Any]:
    """Returns the graph, its inputs with their memory, and its output. Intermediate values are float32."""
    io = {torch.float16: cudnn.data_type.HALF, torch.bfloat16: cudnn.data_type.BFLOAT16}[layer.x.dtype]
    exact = cudnn.data_type.FLOAT
    graph = cudnn.pygraph(handle=handle, io_data_type=io, intermediate_data_type=exact, compute_data_type=exact)
    memory = {}

    def given(tensor: Tensor) -> Any:
        node = graph.tensor_like(tensor)
        memory[node] = tensor
        return node

    scale, shift = (v.float().view(1, -1, 1, 1) for v in scale_and_shift(layer.bn))
    y = graph.conv_fprop(
        image=given(layer.x), weight=given(layer.weight),
        padding=[layer.padding] * 2, stride=[layer.stride] * 2, dilation=[1, 1],
    )  # fmt: skip
    y = graph.add(a=graph.mul(a=y, b=given(scale)), b=given(shift))
    if layer.residual is not None:
        y = graph.add(a=y, b=given(layer.residual))
    y = graph.relu(input=y)
    y.set_output(True).set_data_type(io)
    return graph, memory, y


def fastest(planned: Callable[[int], Callable[[], Tensor]], count: int, time: Time) -> Callable[[], Tensor]:
    """The fastest plan among those that build and run."""
    found: list[tuple[float, Callable[[], Tensor]]] = []
    why: Exception | None = None
    for index in range(count):
        try:
            call = planned(index)
            found.append((time(call), call))
        except Exception as error:  # a proposed plan may still fail
            why = error
    if not found:
        raise Unavailable(f"none of {count} plans of cuDNN runs: {why}")
    return min(found, key=lambda each: each[0])[1]


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream


def _by_events(call: Callable[[], object]) -> float:
    """Milliseconds, the median of five."""
    call()
    taken = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end))
    return statistics.median(taken)
