"""Which dtype the fused kernels run in for a tensor, and when eager runs instead."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from . import _library, autograd
from ._indexing import Window, indexable, window

# Kernels would ignore the semantics of other subclasses (DTensor, quantised weights, vmap wrappers).
# FakeTensor stands for a plain tensor during torch.export.
PLAIN_TENSORS = frozenset({Tensor, nn.Parameter, FakeTensor})

FLOATING = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


class ConvOptions(NamedTuple):
    """The last two arguments of the convolution ops."""

    keep_packed: bool
    allow_tf32: bool


EAGER_OPTIONS = ConvOptions(keep_packed=False, allow_tf32=False)  # placeholder: eager runs
_TEMPORARY_WEIGHTS = ConvOptions(keep_packed=False, allow_tf32=False)
_PACKED = ConvOptions(keep_packed=True, allow_tf32=False)
_PACKED_TF32 = ConvOptions(keep_packed=True, allow_tf32=True)


def kernel_dtype(x: Tensor) -> tuple[torch.dtype | None, ConvOptions]:
    """``(dtype, options)`` of the inference kernels for a convolution of x; dtype is None if eager must run.

    Under autocast the dtype is autocast's, and the cast weights are temporaries that are not kept packed. float32 on
    CUDA uses TF32 if torch's own convolutions may.
    """
    if type(x) not in PLAIN_TENSORS or x.layout is not torch.strided or x.dim() != 4:
        return None, EAGER_OPTIONS
    dtype, device = x.dtype, x.device.type
    if dtype not in FLOATING or not (device == "cpu" or (device == "cuda" and _library.CUDA_LOADED)):
        return None, EAGER_OPTIONS
    if x.requires_grad and torch.is_grad_enabled():
        return None, EAGER_OPTIONS
    if _is_transformed() or is_exporting() or _has_any_global_hook():
        return None, EAGER_OPTIONS
    if torch.is_autocast_enabled(device):
        return (None if dtype is torch.float64 else torch.get_autocast_dtype(device)), _TEMPORARY_WEIGHTS
    if dtype is torch.float32 and device == "cuda" and torch_allows_tf32():
        return dtype, _PACKED_TF32
    return dtype, _PACKED


def training_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype of the training path's convolutions of x, or None if eager must run. See :func:`kernel_dtype`."""
    if type(x) not in PLAIN_TENSORS or x.layout is not torch.strided or x.dim() != 4:
        return None
    if x.dtype not in FLOATING or x.device.type not in autograd.DEVICES:
        return None
    if _is_transformed() or is_exporting() or _has_any_global_hook():
        return None
    if torch.is_autocast_enabled(x.device.type):
        return None if x.dtype is torch.float64 else torch.get_autocast_dtype(x.device.type)
    return x.dtype


def _is_transformed() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp, ...) or forward-mode AD is active; the ops implement neither."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


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
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def torch_allows_tf32() -> bool:
    """Whether torch's own float32 convolutions on CUDA may use TF32 (the default).

    Covers ``torch.backends.cudnn.allow_tf32`` and the newer ``fp32_precision`` switches. Reading ``allow_tf32`` itself
    would raise once the newer switches have been set.
    """
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]


def fuses_pre_activation(x: Tensor) -> bool:
    """Whether convolutions of x apply the preceding BatchNorm and ReLU in their prologue, as the CUDA kernels do.

    CPU kernels read an activation several times, so on the CPU ``relu(bn(x))`` is computed once for all its readers.
    Under autocast it is always computed first: eager normalises before it rounds.
    """
    return x.device.type == "cuda" and not torch.is_autocast_enabled("cuda")


class Cast(NamedTuple):
    """The dtype casts that autocast applies to a convolution's input and weight; none without autocast."""

    dtype: torch.dtype
    autocast: bool
    allow_tf32: bool

    def __call__(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if self.autocast else x

    def options(self, keep_packed: bool) -> ConvOptions:
        return ConvOptions(keep_packed and not self.autocast, self.allow_tf32)


def caster(x: Tensor, windows: Sequence[Window], weight: Tensor, *others: Tensor | None) -> Cast | None:
    """The cast for a call of an op that creates outputs of ``windows``, or None if eager must run."""
    dtype, options = kernel_dtype(x)
    if dtype is None or not indexable(x, windows) or needs_eager(weight, *others):
        return None
    autocast = not options.keep_packed
    if autocast and weight.dtype is torch.float64:  # autocast does not cast float64: eager reports the dtype mismatch
        return None
    return Cast(dtype, autocast, options.allow_tf32)


def conv_windows(*convs: tuple[Any, ...], pool: autograd.Pool | None = None) -> list[Window]:
    """The windows of ``convs``, each ``(weight, stride, padding, dilation)``, and of ``pool`` for :func:`indexable`."""
    if any(conv[0].dim() != 4 for conv in convs):  # the op raises the error
        return []
    found = [window(*conv) for conv in convs]
    if pool is not None and found:
        found.append((found[-1][0], *pool[0], pool[1], pool[2], 1))
    return found


def needs_eager(*tensors: Tensor | None) -> bool:
    """Whether any tensor requires a gradient or has a type that kernels do not support."""
    grad = torch.is_grad_enabled()
    return any(t is not None and (type(t) not in PLAIN_TENSORS or (grad and t.requires_grad)) for t in tensors)
