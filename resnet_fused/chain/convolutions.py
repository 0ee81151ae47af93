"""The convolutions of training and their gradients: our kernels where they are faster, else PyTorch's."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import ops
from .layout import ConvSlots, NormSlots
from .memory_format import is_channels_last
from .policy import capabilities_of, torch_allows_tf32
from .spec import norm_args

NO_NORM = norm_args(None)
_16_BITS = (torch.bfloat16, torch.float16)


def convolve(
    x: Tensor,
    tensors: Sequence[Tensor],
    conv: ConvSlots,
    shortcut: Tensor | None = None,
    relu: bool = False,
    internal: bool = False,
) -> Tensor:
    """``act(conv(x) + shortcut)``. ``internal``: only the chain reads the result."""
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    if prefers_own_kernel(x, weight, conv):
        return ops.conv_bn_act(x, weight, bias, *NO_NORM, *conv[2:], shortcut, relu, False, False, internal=internal)
    y = _aten_convolution(x, weight, bias, conv)
    y = y if shortcut is None else y.add_(shortcut)
    return y.relu_() if relu else y


def _aten_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, conv: ConvSlots) -> Tensor:
    dtype = x.dtype
    last = x.shape[3] + 2 * conv.padding[1] - conv.dilation[1] * (weight.shape[3] - 1) - 1  # first tap's last column
    if _is_slow_in_torch(x) or _is_wrong_in_torch(x, last // conv.stride[1] + 1):
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    return torch.ops.aten.convolution.default(x, weight, bias, *_aten_geometry(conv)).to(dtype)


def aten_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: ConvSlots, mask: list[bool]
) -> list[Tensor | None]:
    """The gradients of input, weight and bias from ``aten::convolution_backward``, None where ``mask`` is False."""
    dtype = grad.dtype
    # oneDNN with AMX also leaves taps of the weight gradient unwritten if the stride is wider than the image.
    width = 1 if conv.stride[1] > x.shape[3] else grad.shape[3]
    if _is_slow_in_torch(grad) or _is_wrong_in_torch(grad, width):
        grad, x, weight = grad.float(), x.float(), weight.float()
    sizes = None if conv.bias is None else [weight.shape[0]]
    grads = torch.ops.aten.convolution_backward.default(grad, x, weight, sizes, *_aten_geometry(conv), mask)
    return [each.to(dtype) if needed else None for each, needed in zip(grads, mask, strict=True)]


def _aten_geometry(conv: ConvSlots) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups


def _is_wrong_in_torch(x: Tensor, width: int) -> bool:
    """Whether PyTorch's convolution of x with outputs of this width, or its weight gradient, may be wrong.

    oneDNN 3.12 with AMX reads uninitialised memory if the output is one pixel wide.
    """
    if x.dtype is not torch.bfloat16 or not capabilities_of(x).packs_weights or isinstance(x, FakeTensor):
        return False
    return width == 1


def _is_slow_in_torch(x: Tensor) -> bool:
    """Whether x has 16 bits that our kernels convert to float32: no instruction multiplies them and sums in float32.

    PyTorch's convolutions are then several times slower than in float32, with AVX512-FP16 too, where its weight
    gradients take hundreds of times as long (Sapphire Rapids, torch 2.13.0).
    """
    return x.dtype in _16_BITS and _direct_isa(x) in ("AVX2", "AVX-512")


def _multiplies_tiles(x: Tensor) -> bool:
    """Whether our kernels multiply x in tile registers (AMX).

    They are then at least as fast as PyTorch's convolutions of any shape, packing included.
    """
    return x.dtype is torch.bfloat16 and _direct_isa(x) == "AMX"


def _is_fast_in_float32(x: Tensor) -> bool:
    """Whether our direct kernel of x's type, float32, beats PyTorch's convolutions, packing included.

    1.0 to 2.4 times their speed on a Sapphire Rapids in all of ResNet's shapes, input gradients too. With AVX2 not.
    """
    return x.dtype is torch.float32 and _direct_isa(x) == "AVX-512"


def _direct_isa(x: Tensor) -> str:
    """The instruction set of our direct kernel for x; empty if there is none."""
    # For a fake tensor either choice gives the same shapes.
    if not capabilities_of(x).packs_weights or isinstance(x, FakeTensor):
        return ""
    engine, _, rest = _plan([1, 16, 8, 8], [16, 16, 1, 1], 0, x.dtype).partition(": direct convolution, ")
    return rest.partition(",")[0] if engine == "direct" else ""


def fuses_norm_prologue(x: Tensor, before: NormSlots | None) -> bool:
    """Whether a chain from x applies the BatchNorm ``before`` in the convolution's prologue."""
    return before is not None and capabilities_of(x).norm_prologue


def conv_with_prologue(
    x: Tensor,
    pre: tuple[Any, ...] | None,
    tensors: Sequence[Tensor],
    conv: ConvSlots,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``act(conv(relu(bn(x))) + shortcut)``, with ``pre`` the BatchNorm's arguments. Deterministic."""
    assert pre is not None
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    after = (weight, bias, *NO_NORM, *conv[2:], shortcut, relu, False, allow_tf32(x))
    return ops.bn_relu_conv_bn_act(x, *pre, *after)


def fuses_statistics(x: Tensor, after: NormSlots | None) -> bool:
    """Whether a chain from x computes the statistics of the BatchNorm ``after`` with the convolution.

    It saves passes over the convolution's output.
    """
    return after is not None and after.trains and capabilities_of(x).statistics_epilogue


def conv_stats(
    x: Tensor, pre: tuple[Any, ...] | None, tensors: Sequence[Tensor], conv: ConvSlots
) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution of x, or with ``pre`` of ``relu(bn(x))``, and its output's mean and variance.

    ``pre``: the BatchNorm's arguments. Deterministic, so that the backward pass can recompute the same bits.
    """
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    return ops.conv_stats(x, *(pre or NO_NORM), weight, bias, *conv[2:], False, allow_tf32(x))


def allow_tf32(x: Tensor) -> bool:
    """Whether x is float32 and torch's own convolutions may use TF32. The switch is read when the chain runs."""
    return x.dtype is torch.float32 and torch_allows_tf32()


@torch.library.impl("resnet_fused::conv_stats", "CPU")
def _conv_stats_cpu(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU implementation: separate ops."""
    *arguments, _keep_packed, _allow_tf32 = args
    ops.check_conv_stats(x, *arguments)
    *pre, weight, bias, stride, padding, dilation, groups = arguments
    activated = x if pre[2] is None else ops.bn_add_act(x, *pre, None, True, internal=True)
    pairs = (tuple(stride), tuple(padding), tuple(dilation))
    conv = ConvSlots(0, None if bias is None else 1, *pairs, groups)
    pre_bn = convolve(activated, [weight, bias], conv)
    return pre_bn, *ops.bn_stats(pre_bn)


# Weights change at every step, so packing them for our kernels must pay off within one step. Convolutions with fewer
# input pixels (N * H * W) use PyTorch's.
MIN_PIXELS_TO_PACK = 1024


# oneDNN vectorises over input channels, our kernels over output channels: images have too few input channels for it.
MAX_IMAGE_CHANNELS = 4


# torch allocates results of this size anew each time, and the page faults take as long as a 1x1 convolution. Our
# kernels use pooled memory or huge pages (csrc/cpu/memory.h).
MIN_BYTES_TO_POOL = 16 << 20


def prefers_own_kernel(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether a convolution on the CPU uses our kernel.

    It needs AMX in bfloat16, or enough pixels and either AVX-512 in float32, or a type that is slow in PyTorch, or an
    image as input, or a shape that Winograd supports, or a 1x1 convolution with an output of at least
    ``MIN_BYTES_TO_POOL`` bytes.
    """
    if _fits_tiles(x, conv):
        return True
    if not _fits_own_kernels(x, conv):
        return False
    if _is_slow_in_torch(x) or _is_fast_in_float32(x):
        return True
    few = weight.shape[1] <= MAX_IMAGE_CHANNELS and x.dtype in _DIRECT
    return few or _fits_winograd(x, weight, conv) or _is_large_pointwise(x, weight, weight.shape[0], conv)


def prefers_own_pointwise(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input gradient of a stride-1 1x1 convolution has at least ``MIN_BYTES_TO_POOL`` bytes."""
    return _fits_own_kernels(grad, conv) and _is_large_pointwise(grad, weight, weight.shape[1], conv)


def prefers_winograd(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether Winograd applies to a convolution, or to one of its gradients, with enough pixels."""
    return _fits_own_kernels(x, conv) and _fits_winograd(x, weight, conv)


def _fits_tiles(x: Tensor, conv: ConvSlots) -> bool:
    return conv.groups == 1 and _multiplies_tiles(x) and x.is_contiguous(memory_format=torch.channels_last)


def _fits_own_kernels(x: Tensor, conv: ConvSlots) -> bool:
    # For a fake tensor either choice gives the same shapes, and comparing sizes would add guards.
    return (
        not isinstance(x, FakeTensor)
        and capabilities_of(x).packs_weights
        and conv.groups == 1
        and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS_TO_PACK
        and x.is_contiguous(memory_format=torch.channels_last)
    )


_DIRECT = (torch.float32, torch.bfloat16)  # dtypes in which our direct kernel may be faster than a fast one of PyTorch


def _is_large_pointwise(x: Tensor, weight: Tensor, channels: int, conv: ConvSlots) -> bool:
    """Whether a 1x1 convolution of x to ``channels`` channels has an output of at least ``MIN_BYTES_TO_POOL`` bytes."""
    h, w = ((size - 1) // stride + 1 for size, stride in zip(x.shape[2:], conv.stride, strict=True))
    size = x.shape[0] * h * w * channels * x.element_size()
    return tuple(weight.shape[2:]) == (1, 1) and x.dtype in _DIRECT and size >= MIN_BYTES_TO_POOL


def _fits_winograd(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    if tuple(weight.shape[2:]) != (3, 3) or not conv.stride == conv.dilation == (1, 1):
        return False
    if x.dtype is torch.float32:
        return True
    if x.dtype not in _16_BITS:
        return False
    fits = all(channels % 16 == 0 and channels >= 32 for channels in weight.shape[:2])
    return fits and saved_pixels(x) >= MIN_SAVED_PIXELS_16 and _has_winograd(x.dtype)


# In 16 bits Winograd gains less and transformed weights are larger. It is used for a convolution, or for one of its
# gradients, if it saves at least the time that PyTorch needs for this many pixels.
MIN_SAVED_PIXELS_16 = 600


class _Tiles(NamedTuple):
    size: int
    time: float  # per pixel, padding of partial tiles included, relative to PyTorch's time per pixel


_TILES = {torch.float32: _Tiles(2, 0.55), torch.bfloat16: _Tiles(4, 0.75), torch.float16: _Tiles(4, 0.75)}


def saved_pixels(x: Tensor) -> float:
    """The time that Winograd saves for a same-size convolution of x, in units of PyTorch's time per pixel."""
    n, _, h, w = x.shape
    size, time = _TILES[x.dtype]
    return n * (h * w - time * (h + -h % size) * (w + -w % size))


def _has_winograd(dtype: torch.dtype) -> bool:
    """Whether the plan uses Winograd in 16 bits: some CPUs lack it, and some have a faster engine."""
    return _plan([32, 64, 56, 56], [64, 64, 3, 3], 1, dtype).startswith("winograd")


def _plan(x: list[int], weight: list[int], padding: int, dtype: torch.dtype) -> str:
    """The CPU plan of a convolution of stride 1 with these shapes."""
    ones = (1, 1)
    return ops.explain_cpu(x, weight, ones, (padding, padding), ones, 1, str(dtype).removeprefix("torch."))


# Packing the flipped filter at every step takes less time than PyTorch's gradient of this many pixels. In float32, on
# two cores of a Sapphire Rapids, with AVX-512 and capped to AVX2 (2026-11-29, 1024 pixels and more), PyTorch's took
# 1.29 to 4.7 times our time where 218 or more were saved, 0.91 to 1.87 times at 23 to 51, 0.26 times below 0. In 16
# bits MIN_SAVED_PIXELS_16 decides.
MIN_SAVED_PIXELS_TO_FLIP = 100


def input_gradient(
    grad: Tensor, weight: Tensor, conv: ConvSlots, grad_addend: Tensor | None = None, internal: bool = False
) -> Tensor | None:
    """The gradient of a convolution's input, or None if ``aten::convolution_backward`` should compute it.

    With stride 1 it is a convolution of the output's gradient with the flipped filter (spatially flipped, input and
    output channels exchanged), with padding = filter extent - padding (Dumoulin and Visin 2016, arXiv:1603.07285,
    section 4.3). ``grad_addend``, another gradient of the same tensor, is added as the residual, before rounding.
    ``internal``: only chains read the result.
    """
    if not is_convolution(weight, conv) or not (
        _fuses_addend(grad, grad_addend) or _prefers_own_kernel(grad, weight, conv)
    ):
        return None
    shape = (conv.padding, conv.dilation)
    return ops.conv_backward_input(grad, weight, *shape, grad_addend, allow_tf32(grad), internal=internal)


def flip_and_convolve(
    grad: Tensor,
    weight: Tensor,
    padding: list[int],
    dilation: list[int],
    grad_addend: Tensor | None,
    allow_tf32: bool,
    internal: bool = False,
) -> Tensor:
    """The CUDA implementation of conv_backward_input: copies the filter flipped, then convolves."""
    ops.check_conv_backward_input(grad, weight, padding, dilation, grad_addend)
    flipped = weight if tuple(weight.shape[2:]) == (1, 1) else weight.flip(2, 3)
    flipped = flipped.transpose(0, 1).contiguous(memory_format=torch.channels_last)
    reach = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    shape = ((1, 1), [r - p for r, p in zip(reach, padding, strict=True)], dilation, 1)
    how = (False, False, allow_tf32)
    grad_x = ops.conv_bn_act(grad, flipped, None, *NO_NORM, *shape, grad_addend, *how, internal=internal)
    channels_last = is_channels_last(grad) or is_channels_last(weight)
    return grad_x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


torch.library.impl("resnet_fused::conv_backward_input", "CUDA", flip_and_convolve)


def is_convolution(weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input gradient is a convolution: stride 1, one group, padding at most the filter's extent."""
    fits = all(p <= r for p, r in zip(conv.padding, _extent(weight, conv), strict=True))
    return conv.stride == (1, 1) and conv.groups == 1 and fits


def _extent(weight: Tensor, conv: ConvSlots) -> list[int]:
    """dilation * (filter size - 1), vertically and horizontally."""
    return [d * (size - 1) for d, size in zip(conv.dilation, weight.shape[2:], strict=True)]


def _fuses_addend(grad: Tensor, grad_addend: Tensor | None) -> bool:
    return grad_addend is not None and capabilities_of(grad).gradient_addend


# With AMX, oneDNN's input gradient in bfloat16 copies the padded gradient in every thread: at this extent up to 70 MB,
# at 60000 230 GB. From 6000 to 12000 it fails ("could not create a primitive"). Common networks stay far below.
MAX_TORCH_EXTENT = 1024


def _prefers_own_kernel(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    # Tensors of other types are being traced: comparing their sizes would add guards.
    if type(grad) is not Tensor:
        return False
    if grad.dtype in _16_BITS and capabilities_of(grad).packs_weights and max(_extent(weight, conv)) > MAX_TORCH_EXTENT:
        return True
    if _fits_tiles(grad, conv) or prefers_own_pointwise(grad, weight, conv):
        return True
    if not _fits_own_kernels(grad, conv):
        return False
    if not _is_slow_in_torch(grad) and _fits_winograd(grad, weight, conv):
        return saved_pixels(grad) >= MIN_SAVED_PIXELS_TO_FLIP
    return _is_slow_in_torch(grad) or _is_fast_in_float32(grad)


def weight_gradient(
    grad: Tensor, pre_bn: Tensor, norm: tuple[Any, ...] | None, weight: Tensor, conv: ConvSlots
) -> Tensor | None:
    """The weight's gradient from that of ``conv(relu(bn(pre_bn)))``, or without ``norm`` from that of ``conv(pre_bn)``.

    ``norm``: the BatchNorm's arguments; BatchNorm and ReLU are applied while pre_bn is read. None if
    ``aten::convolution_backward`` should compute the gradient.
    """
    if not (prefers_winograd(grad, weight, conv) or _fits_tiles(pre_bn, conv)):
        return None
    return ops.conv_backward_weight(grad, pre_bn, *(norm or NO_NORM), weight, *conv[2:])


Sums = tuple[Tensor, Tensor]  # per-channel sums of g and of g * xhat


def fuses_gradient_sums(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether a chain uses :func:`conv_backward_reduce` for ``conv``; it saves a pass."""
    return capabilities_of(grad).gradient_sums and is_convolution(weight, conv)


def conv_backward_reduce(
    grad: Tensor, weight: Tensor, conv: ConvSlots, pre_bn: Tensor, norm: tuple[Any, ...], grad_addend: Tensor | None
) -> tuple[Tensor, Sums]:
    """Backward through ``conv(relu(bn(pre_bn)))``: ``relu(bn(pre_bn))``'s gradient plus ``grad_addend``, and its sums.

    ``norm``: the BatchNorm's arguments.
    """
    grad_x, *sums = ops.conv_backward_reduce(
        grad, weight, conv.padding, conv.dilation, pre_bn, *norm, grad_addend, allow_tf32(grad)
    )
    return grad_x, (sums[0], sums[1])


@torch.library.impl("resnet_fused::conv_backward_reduce", "CPU")
def _conv_backward_reduce_cpu(
    grad: Tensor, weight: Tensor, padding: list[int], dilation: list[int], x: Tensor, *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The CPU implementation: separate ops."""
    *norm, grad_addend, _allow_tf32 = args
    ops.check_conv_backward_reduce(grad, weight, padding, dilation, x, *norm, grad_addend)
    pads, dilations = (padding[0], padding[1]), (dilation[0], dilation[1])
    grad_x = input_gradient(grad, weight, ConvSlots(0, None, (1, 1), pads, dilations, 1), grad_addend)
    if grad_x is None:
        rest = (None, (1, 1), pads, dilations, False, (0, 0), 1, [True, False, False])
        grad_x = torch.ops.aten.convolution_backward.default(grad, x, weight, *rest)[0]
        grad_x = grad_x if grad_addend is None else grad_x.add_(grad_addend)
    grad_x = grad_x.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    return grad_x, *ops.bn_act_backward_reduce(grad_x, x, *norm, None, True)
