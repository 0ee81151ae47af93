"""Contenders outside torch: ONNX Runtime and OpenVINO, on the CPU, with torch's thread count."""

import importlib
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .peers import Contender, Unavailable, require_running_statistics
from .workloads import Workload


def onnx_runtime(workload: Workload, device: torch.device) -> Contender:
    """Exports in fp32 and runs with every graph optimisation."""
    _require_cpu(device)
    require_running_statistics(workload)
    if workload.dtype != "fp32":
        raise Unavailable("ONNX Runtime's CPU provider has no bf16 convolution")
    ort = _import("onnxruntime")
    _import("onnxscript")  # torch.onnx.export needs it
    module, x = workload.module(), workload.input()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle threads must not disturb others
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        torch.onnx.export(module, (x,), path, dynamo=True, verbose=False)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}

    def output(result: Any) -> Tensor:
        return torch.from_numpy(result[0])

    return Contender(lambda: session.run(None, feed), output)


def openvino_latency(workload: Workload, device: torch.device) -> Contender:
    """All threads compute one request of the whole batch."""
    return _openvino(workload, device, "LATENCY", workload.shape[0])


def openvino_throughput(workload: Workload, device: torch.device) -> Contender:
    """Splits the batch evenly over as many requests as OpenVINO runs side by side, each on a share of the threads.

    That is how its users run this mode (``AsyncInferQueue``). A single image would run on one share only.
    """
    _require_cpu(device)
    require_running_statistics(workload)
    batch = workload.shape[0]
    if batch == 1:
        raise Unavailable("one image cannot be split over its requests, and one request uses a share of the threads")
    requests = _compile(workload, "THROUGHPUT", 1).get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    parts = max(n for n in range(1, min(requests, batch) + 1) if batch % n == 0)
    return _openvino(workload, device, "THROUGHPUT", batch // parts)


def _openvino(workload: Workload, device: torch.device, hint: str, images: int) -> Contender:
    """Requests of so many images each. Input and output are fp32 in bf16 runs too."""
    _require_cpu(device)
    require_running_statistics(workload)
    compiled = _compile(workload, hint, images)
    ov = _import("openvino")
    parts = [part.numpy() for part in workload.input().float().split(images)]
    requests = [compiled.create_infer_request() for _ in parts]
    for request, part in zip(requests, parts, strict=True):
        request.set_input_tensor(ov.Tensor(part, shared_memory=True))

    def infer(keeps: Any = parts) -> None:  # the tensors do not keep the arrays' memory
        if len(requests) == 1:
            requests[0].infer()
            return
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()

    def output(_: Any) -> Tensor:
        return torch.cat([torch.from_numpy(request.get_output_tensor().data.copy()) for request in requests])

    notes = [] if workload.dtype == "fp32" else ["fp32 input and output, bf16 inside"]
    if len(requests) > 1:
        notes.append(f"the batch in {len(requests)} requests side by side")
    return Contender(infer, output, "; ".join(notes))


def _compile(workload: Workload, hint: str, images: int) -> Any:
    ov = _import("openvino")
    x = workload.input()[:images].float()
    # weights of a bf16 workload are already rounded to bf16, so that fp32 holds them exactly
    module = workload.module().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convert_model uses torch.jit, which is deprecated
        model = ov.convert_model(module, example_input=x, input=[x.shape])
    options = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[workload.dtype],
    }
    return ov.Core().compile_model(model, "CPU", options)


def _require_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        raise Unavailable("measured on the CPU only")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} does not import: {error}") from error
