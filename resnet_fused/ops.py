"""Typed wrappers of ``torch.ops.resnet_fused.*`` and their fake kernels (shapes and strides only).

The schemas and their arguments are documented in ``csrc/library.cpp``. The wrappers apply no policy, no casts and no
autograd; see :mod:`resnet_fused.functional` for those. Invalid arguments raise ``RuntimeError`` from the compiled
checks.
"""

import sys
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import _library, first_use  # noqa: F401  registers the ops and the first-use check of CUDA kernels

conv_bn_act = torch.ops.resnet_fused.conv_bn_act.default
bn_relu_conv_bn_act = torch.ops.resnet_fused.bn_relu_conv_bn_act.default
conv_bn_proj_act = torch.ops.resnet_fused.conv_bn_proj_act.default
conv_bn_relu_pool = torch.ops.resnet_fused.conv_bn_relu_pool.default
avg_pool_linear = torch.ops.resnet_fused.avg_pool_linear.default
basic_block = torch.ops.resnet_fused.basic_block.default
bn_add_act = torch.ops.resnet_fused.bn_add_act.default
run_program = torch.ops.resnet_fused.run_program.default
program_ops = torch.ops.resnet_fused.program_ops.default
bn_stats = torch.ops.resnet_fused.bn_stats.default
conv_stats = torch.ops.resnet_fused.conv_stats.default
bn_add_bn_act = torch.ops.resnet_fused.bn_add_bn_act.default
bn_act_backward_reduce = torch.ops.resnet_fused.bn_act_backward_reduce.default
bn_add_act_backward_reduce = torch.ops.resnet_fused.bn_add_act_backward_reduce.default
conv_forward = torch.ops.resnet_fused.conv_forward.default
conv_backward_reduce = torch.ops.resnet_fused.conv_backward_reduce.default
conv_backward_input = torch.ops.resnet_fused.conv_backward_input.default
conv_backward_weight = torch.ops.resnet_fused.conv_backward_weight.default
bn_act_backward = torch.ops.resnet_fused.bn_act_backward.default
bn_relu_max_pool = torch.ops.resnet_fused.bn_relu_max_pool.default
bn_relu_max_pool_backward = torch.ops.resnet_fused.bn_relu_max_pool_backward.default
forget_packed = torch.ops.resnet_fused.forget_packed.default
freeze_packed = torch.ops.resnet_fused.freeze_packed.default
packed_bytes = torch.ops.resnet_fused.packed_bytes.default
storage_ended = torch.ops.resnet_fused.storage_ended.default
release_memory = torch.ops.resnet_fused.release_memory.default
release_pool = torch.ops.resnet_fused.release_pool.default
explain_cpu = torch.ops.resnet_fused.explain_cpu.default
explain_cuda = torch.ops.resnet_fused.explain_cuda.default
explain_cuda_block = torch.ops.resnet_fused.explain_cuda_block.default
cuda_engines = torch.ops.resnet_fused.cuda_engines.default
predict_cuda = torch.ops.resnet_fused.predict_cuda.default
explain_trust = torch.ops.resnet_fused.explain_trust.default


def _out(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    return (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _memory_format(*tensors: Tensor) -> torch.memory_format:
    """channels_last if any of the tensors suggests it (c10 ``suggest_memory_format``), as in torch."""
    suggested = [torch._prims_common.suggest_memory_format(t) for t in tensors]
    return torch.channels_last if torch.channels_last in suggested else torch.contiguous_format


def _conv_output(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    torch._check(x.dim() == 4, lambda: f"x has shape {list(x.shape)}; (N, C, H, W) expected")
    torch._check(weight.device == x.device, lambda: f"weight is on {weight.device} but x is on {x.device}")
    n, _, h, w = x.shape
    k, _, r, s = weight.shape
    shape = (
        n,
        k,
        _out(h, r, stride[0], padding[0], dilation[0]),
        _out(w, s, stride[1], padding[1], dilation[1]),
    )
    return x.new_empty(shape).to(memory_format=_memory_format(x, weight))


# Positions of the schema arguments that determine output shapes; the fake kernels take all arguments positionally.
_X, _WEIGHT, _STRIDE, _PADDING, _DILATION = 0, 1, 8, 9, 10
_PRE = 5  # pre_gamma to pre_eps
_SECOND = 7  # weight1 to eps1


@torch.library.register_fake("resnet_fused::conv_bn_act")
@torch.library.register_fake("resnet_fused::conv_bn_proj_act")
def _fake_conv(*args: Any) -> Tensor:
    return _conv_output(args[_X], args[_WEIGHT], args[_STRIDE], args[_PADDING], args[_DILATION])


@torch.library.register_fake("resnet_fused::bn_relu_conv_bn_act")
def _fake_bn_relu_conv(x: Tensor, *args: Any) -> Tensor:
    return _fake_conv(x, *args[_PRE:])


@torch.library.register_fake("resnet_fused::basic_block")
def _fake_basic_block(x: Tensor, *args: Any) -> Tensor:
    weight1, weight2 = args[0], args[_SECOND]
    geometry = ([1, 1], [1, 1], [1, 1])  # stride, padding, dilation
    return _conv_output(_conv_output(x, weight1, *geometry), weight2, *geometry)


@torch.library.register_fake("resnet_fused::conv_bn_relu_pool")
def _fake_conv_pool(*args: Any) -> Tensor:
    return _pooled(_fake_conv(*args), *args[12:15])


@torch.library.register_fake("resnet_fused::avg_pool_linear")
def _fake_avg_pool_linear(x: Tensor, weight: Tensor, _bias: Tensor | None) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]))


def _pooled(x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    shape = [_out(x.shape[2 + i], kernel[i], stride[i], padding[i]) for i in range(2)]
    return x.new_empty((*x.shape[:2], *shape)).to(memory_format=_memory_format(x))


@torch.library.register_fake("resnet_fused::bn_relu_max_pool")
def _fake_bn_relu_max_pool(x: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    out = _pooled(x, *args[5:])
    return out, out.new_empty(out.shape, dtype=torch.uint8).to(memory_format=_memory_format(x))


@torch.library.register_fake("resnet_fused::bn_relu_max_pool_backward")
def _fake_bn_relu_max_pool_backward(_grad: Tensor, _argmax: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _fake_like_x(x)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty((x.shape[1],), dtype=dtype), x.new_empty((x.shape[1],), dtype=dtype)


@torch.library.register_fake("resnet_fused::bn_add_act")
@torch.library.register_fake("resnet_fused::bn_add_bn_act")
def _fake_like_x(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape).to(memory_format=_memory_format(x))


@torch.library.register_fake("resnet_fused::bn_act_backward")
def _fake_bn_act_backward(_grad: Tensor, x: Tensor, *_: Any) -> Tensor:
    return _fake_like_x(x)


@torch.library.register_fake("resnet_fused::bn_stats")
def _fake_bn_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    return _statistics(x)


@torch.library.register_fake("resnet_fused::bn_act_backward_reduce")
def _fake_bn_act_backward_reduce(_grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _statistics(x)


@torch.library.register_fake("resnet_fused::bn_add_act_backward_reduce")
def _fake_bn_add_act_backward_reduce(_grad: Tensor, x: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_like_x(x), *_statistics(x)


@torch.library.register_fake("resnet_fused::conv_forward")
def _fake_conv_forward(x: Tensor, weight: Tensor, _bias: Tensor | None, *args: Any) -> Tensor:
    return _conv_output(x, weight, *args[:3])


@torch.library.register_fake("resnet_fused::conv_backward_reduce")
def _fake_conv_backward_reduce(
    _grad: Tensor, _weight: Tensor, _padding: Any, _dilation: Any, x: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_like_x(x), *_statistics(x)


@torch.library.register_fake("resnet_fused::conv_backward_input")
def _fake_conv_backward_input(
    grad: Tensor, weight: Tensor, padding: Sequence[int], dilation: Sequence[int], *_: Any
) -> Tensor:
    out = zip(grad.shape[2:], weight.shape[2:], padding, dilation, strict=True)
    size = [out + d * (kernel - 1) - 2 * p for out, kernel, p, d in out]
    return grad.new_empty((grad.shape[0], weight.shape[1], *size)).to(memory_format=_memory_format(grad, weight))


@torch.library.register_fake("resnet_fused::conv_backward_weight")
def _fake_conv_backward_weight(_grad: Tensor, _x: Tensor, *args: Any) -> Tensor:
    weight: Tensor = args[_PRE]
    return weight.new_empty(weight.shape).to(memory_format=_memory_format(weight))


@torch.library.register_fake("resnet_fused::conv_stats")
def _fake_conv_stats(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, _bias, stride, padding, dilation = args[_PRE : _PRE + 5]
    pre_bn = _conv_output(x, weight, stride, padding, dilation)
    return pre_bn, *_statistics(pre_bn)


@torch.library.impl("resnet_fused::watch_packed", "CPU")
def _watch_packed(weight: Tensor, address: int) -> None:
    """Notifies the cache of packed weights, which holds no tensor, when ``weight``'s storage is freed."""
    # Watch the storage, not the tensor: `p.data = new` frees the storage and keeps the tensor, and
    # torch.utils.swap_tensors rejects tensors that have weak references.
    weakref.finalize(weight.untyped_storage(), _storage_ended, address).atexit = False


def _storage_ended(address: int) -> None:
    if not sys.is_finalizing():
        # The garbage collector may run this during tracing: keep the op out of the traced graph.
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            storage_ended(address)
