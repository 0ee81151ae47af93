"""Whether fused kernels may run for a tensor: devices, dtypes, autocast, tracers, hooks and patches."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from .. import _library
from .patches import constant_while_tracing, layers_are_patched
from .spec import Reason

# Kernels would ignore the semantics of other subclasses (DTensor, quantised weights, vmap wrappers).
# FakeTensor stands for a plain tensor during torch.export.
PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, FakeTensor})

FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


class Capabilities(NamedTuple):
    """What the kernels of a device can do."""

    trains: bool  # every op of the training path has a kernel
    pools: bool  # so has max-pooling in training
    chooses_kernels: bool = False  # the ops of training's convolutions choose between our kernels and PyTorch's
    norm_prologue: bool = False  # a convolution applies the preceding BatchNorm and ReLU to what it reads
    statistics_epilogue: bool = False  # a convolution sums the batch statistics of its output
    gradient_sums: bool = False  # the input gradient's convolution sums what the preceding BatchNorm's gradients need
    gradient_addend: bool = False  # the input gradient's convolution adds another gradient
    replays: bool = False  # a network's calls run as one op (:mod:`.program`)
    tf32: bool = False  # float32 may be multiplied as TF32


_CPU = Capabilities(trains=True, pools=True, chooses_kernels=True, replays=True)
_CUDA = Capabilities(
    trains=True,
    pools=True,
    norm_prologue=True,
    statistics_epilogue=True,
    gradient_sums=True,
    gradient_addend=True,
    tf32=True,
)
_NONE = Capabilities(trains=False, pools=False)
#: By device type; other devices run eager.
CAPABILITIES = {"cpu": _CPU, "cuda": _CUDA}


def capabilities_of(x: Tensor) -> Capabilities:
    """What the kernels of the tensor's device can do."""
    return CAPABILITIES.get(x.device.type, _NONE)


class Setting(NamedTuple):
    """How convolutions of a tensor run: in ``dtype``, which is autocast's under autocast."""

    dtype: torch.dtype
    capabilities: Capabilities
    autocast: bool
    allow_tf32: bool


def setting(x: Tensor) -> Setting | Reason:
    """How convolutions of ``x`` run, or why eager runs."""
    if type(x) not in PLAIN_TENSORS:
        return Reason("the input is a {}, not a plain tensor", "", type(x))
    if x.layout is not torch.strided or x.dim() != 4:
        return Reason(
            "the input has layout {} and {} dimensions; a strided (N, C, H, W) expected", "", x.layout, x.dim()
        )
    dtype, device = x.dtype, x.device.type
    if dtype not in FLOATING:
        return Reason("the input has dtype {}", "", dtype)
    can = CAPABILITIES.get(device)
    if can is None or (device == "cuda" and not _library.CUDA_LOADED):
        return Reason("there are no kernels for device {} ({})", "", device, _library.CUDA_LOAD_ERROR)
    if torch._C._are_functorch_transforms_active():
        return Reason("a torch.func transform is active")
    if forward_ad._current_level >= 0:
        return Reason("forward-mode automatic differentiation is active")
    if is_exporting():
        return Reason("torch.jit.trace or an ONNX exporter is running")
    if _has_any_global_hook():
        return Reason("a global module hook is registered (torch.nn.modules.module.register_module_...)")
    if torch.is_autocast_enabled(device):
        if dtype is torch.float64:
            return Reason("the input is float64 under autocast")
        return Setting(torch.get_autocast_dtype(device), can, True, False)
    return Setting(dtype, can, False, can.tf32 and dtype is torch.float32 and torch_allows_tf32())


def module_setting(x: Tensor) -> Setting | Reason:
    """:func:`setting` for a fused module, which reads torch's layers without calling them."""
    return Reason("methods or functions of torch's layers are patched") if layers_are_patched() else setting(x)


def is_plain(value: Any, dtype: torch.dtype, shape: tuple[Any, ...]) -> bool:
    """Whether ``value`` is a plain tensor of this dtype and shape, so that a kernel can add it."""
    return type(value) in PLAIN_TENSORS and value.dtype is dtype and tuple(value.shape) == shape


def is_exporting() -> bool:
    """Whether torch.jit.trace or an ONNX exporter is running: the exported graph must not contain our ops."""
    if torch.jit.is_tracing():
        return True
    # torch.jit.trace checks its graph by running the module again; the map is set until that check is done.
    if getattr(torch.jit._trace, "_trace_module_map", None) is not None:
        return True
    # is_in_onnx_export imports a module on every call, so test is_exporting first.
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


# torch.compile and torch.export cannot trace the switch: they use its value at trace time.
@constant_while_tracing
def torch_allows_tf32() -> bool:
    """Whether torch's own float32 convolutions on CUDA may use TF32 (the default).

    Covers ``torch.backends.cudnn.allow_tf32`` and the newer ``fp32_precision`` switches. Reading ``allow_tf32`` itself
    would raise once the newer switches have been set.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]
