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


def openvino(workload: Workload, device: torch.device) -> Contender:
    """Latency mode, precision set by a hint. Input and output are fp32 in bf16 runs too."""
    _require_cpu(device)
    require_running_statistics(workload)
    ov = _import("openvino")
    x = workload.input().float()
    # weights of a bf16 workload are already rounded to bf16, so that fp32 holds them exactly
    module = workload.module().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # convert_model uses torch.jit, which is deprecated
        model = ov.convert_model(module, example_input=x, input=[x.shape])
    compiled = ov.Core().compile_model(
        model,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[workload.dtype],
        },
    )
    request = compiled.create_infer_request()
    array = x.numpy()
    request.set_input_tensor(ov.Tensor(array, shared_memory=True))

    def infer(keeps: Any = array) -> None:  # the tensor does not keep the array's memory
        request.infer()

    def output(_: Any) -> Tensor:
        return torch.from_numpy(request.get_output_tensor().data.copy())

    note = "" if workload.dtype == "fp32" else "fp32 input and output, bf16 inside"
    return Contender(infer, output, note)


def _require_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        raise Unavailable("measured on the CPU only")


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name} does not import: {error}") from error
