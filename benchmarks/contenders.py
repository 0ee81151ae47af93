"""Every contender by name, in the order of the tables."""

from . import engines, peers
from .peers import Builder

OURS = ("ours", "ours_frozen", "ours_compile")

_ALL: dict[str, tuple[str, Builder]] = {
    "eager": ("eager", peers.eager),
    "eager_cl": ("eager channels_last", peers.channels_last),
    "compile": ("torch.compile", peers.compiled),
    "freezing": ("torch.compile + freezing", peers.frozen),
    "max_autotune": ("torch.compile max-autotune", peers.max_autotune),
    "onnxruntime": ("ONNX Runtime", engines.onnx_runtime),
    "openvino": ("OpenVINO (latency)", engines.openvino_latency),
    "openvino_throughput": ("OpenVINO (throughput)", engines.openvino_throughput),
    "ours": ("resnet_fused", peers.ours),
    "ours_frozen": ("resnet_fused, frozen", peers.ours_frozen),
    "ours_compile": ("resnet_fused + torch.compile", peers.ours_compiled),
}
_CPU_ONLY = ("onnxruntime", "openvino", "openvino_throughput", "ours_frozen")


def contenders(device_type: str) -> dict[str, tuple[str, Builder]]:
    """Returns name -> (label, builder) of the contenders for this kind of device."""
    return {name: entry for name, entry in _ALL.items() if device_type == "cpu" or name not in _CPU_ONLY}
