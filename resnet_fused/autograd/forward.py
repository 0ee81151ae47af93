"""Forward pass of a chain. An activation between two convolutions is freed as soon as the second has read it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import ops
from .layout import ConvSlots, Layout, NormSlots
from .statistics import batch_statistics

Statistics = dict[int, list[Any]]  # BatchNorm's key -> mean, var, count (see batch_statistics)
PreBNs = dict[int, Tensor]  # BatchNorm's key -> its input

NO_NORM = (None, None, None, None, 0.0)  # gamma, beta, mean, var, eps


class Result(NamedTuple):
    out: Tensor
    argmax: Tensor | None  # of the max-pooling: position in the window for each output
    pre_bns: PreBNs  # saved outputs of convolutions that are followed by a BatchNorm
    statistics: Statistics

    def tensors(self) -> list[Tensor]:
        """All tensors in a fixed order, with counts as tensors, as outputs of an op."""
        argmax = [] if self.argmax is None else [self.argmax]
        statistics: list[Tensor] = []
        for mean, var, count in self.statistics.values():
            statistics += mean, var, count if isinstance(count, Tensor) else mean.new_full((), count)
        return [self.out, *argmax, *self.pre_bns.values(), *statistics]

    @staticmethod
    def of(tensors: Sequence[Tensor], layout: Layout, read: Sequence[Tensor]) -> "Result":
        """The result from its :meth:`tensors`. ``read``: the input tensors of the chain."""
        remaining = iter(tensors)
        out, argmax = next(remaining), None if layout.pool is None else next(remaining)
        pre_bns = {key: next(remaining) for key in saved_keys(layout, read)}
        statistics: Statistics = {key: [next(remaining) for _ in range(3)] for key in batch_statistics_keys(layout)}
        return Result(out, argmax, pre_bns, statistics)


def forward(x: Tensor, tensors: Sequence[Tensor], layout: Layout, group: str) -> Result:
    """Runs the chain; also returns what the backward pass and the running averages need."""
    pre_bns: PreBNs = {0: x}
    statistics: Statistics = {}

    def norm(key: int, slots: NormSlots) -> tuple[Any, ...]:
        if slots.trains and key not in statistics:
            statistics[key] = _batch_statistics(pre_bns[key], group if slots.sync else "")
        return norm_args(slots, tensors, statistics.get(key))

    def convolve_all(i: int, readers: Sequence[tuple[int, ConvSlots]]) -> None:
        """Sets ``pre_bns`` of the convolutions that read ``act[i]``."""
        before = layout.norms[i]
        args = None if before is None else norm(i, before)
        activated: Tensor | None = None  # act[i], freed after the last reader
        for key, conv in readers:
            after = layout.norm_of(key)
            if fuses_statistics(x, after):
                pre_bns[key], *moments = conv_stats(pre_bns[i], args, tensors, conv)
                statistics[key] = _batch_statistics(
                    pre_bns[key], group if after is not None and after.sync else "", moments
                )
                continue
            is_output = key == count and conv_is_output
            epilogue = (_shortcut(x, tensors, layout, pre_bns), layout.relu) if is_output else (None, False)
            if fuses_norm_prologue(x, before):
                pre_bns[key] = conv_with_prologue(pre_bns[i], args, tensors, conv, *epilogue)
                continue
            if activated is None:
                activated = pre_bns[i] if args is None else ops.bn_add_act(pre_bns[i], *args, None, True, internal=True)
            pre_bns[key] = convolve(activated, tensors, conv, *epilogue, internal=internal or not is_output)

    count = len(layout.convs)
    internal = layout.visibility.internal_output
    last, projection_norm = layout.norms[count], layout.projection_norm
    # Whether the last convolution's epilogue adds the shortcut and applies the ReLU, so that its output is the chain's.
    conv_is_output = last is None and projection_norm is None
    for i, conv in enumerate(layout.convs):
        projection = layout.projection if i == 0 else None
        convolve_all(i, [*([] if projection is None else [(count + 1, projection)]), (i + 1, conv)])
    shortcut = _shortcut(x, tensors, layout, pre_bns)
    argmax: Tensor | None = None
    if last is not None and layout.pool is not None:
        out, argmax = ops.bn_relu_max_pool(pre_bns[count], *norm(count, last), *layout.pool, internal=internal)
    elif last is not None and projection_norm is not None:
        projection_args = norm(count + 1, projection_norm)
        out = ops.bn_add_bn_act(
            pre_bns[count], *norm(count, last), shortcut, *projection_args, layout.relu, internal=internal
        )
    elif last is not None:
        out = ops.bn_add_act(pre_bns[count], *norm(count, last), shortcut, layout.relu, internal=internal)
    elif projection_norm is not None:
        out = ops.bn_add_act(
            shortcut, *norm(count + 1, projection_norm), pre_bns[count], layout.relu, internal=internal
        )
    else:
        out = pre_bns[count]
    in_order = {key: statistics[key] for key in batch_statistics_keys(layout)}
    return Result(out, argmax, {key: pre_bns[key] for key in saved_keys(layout, tensors)}, in_order)


def batch_statistics_keys(layout: Layout) -> list[int]:
    """Keys of the BatchNorms that use batch statistics, in the order of ``Result.statistics``."""
    return [key for key, norm in layout.all_norms() if norm.trains]


def saved_keys(layout: Layout, tensors: Sequence[Tensor]) -> list[int]:
    """Keys of the pre-BN outputs that are saved for the backward pass; it recomputes the others."""
    return [key for key, _ in layout.all_norms() if key > 0 and not _is_recomputed(key, layout, tensors)]


def _is_recomputed(key: int, layout: Layout, tensors: Sequence[Tensor]) -> bool:
    """Whether the backward pass recomputes ``pre_bn[key]``: with ``recompute`` every output of a 1x1 convolution.

    Without ``recompute``, only that of a bottleneck's first convolution if its projection has stride 1: saving it would
    take 1 of the 15 units of memory of such a block, and recomputing it costs 1/18 of its forward multiplications.
    """
    conv = (*layout.convs, layout.projection)[key - 1]
    if conv is None or tuple(tensors[conv.weight].shape[2:]) != (1, 1):
        return False
    projection = layout.projection
    is_first = key == 1 and len(layout.convs) > 1 and layout.norms[0] is None
    return layout.recompute or (is_first and projection is not None and projection.stride == (1, 1))


def norm_args(norm: NormSlots, tensors: Sequence[Tensor], statistics: Sequence[Tensor] | None) -> tuple[Any, ...]:
    """``(gamma, beta, mean, var, eps)``, in the ops' order."""
    gamma, beta, mean, var = (None if slot is None else tensors[slot] for slot in norm[:4])
    if statistics is not None:
        mean, var = statistics[:2]
    return gamma, beta, mean, var, norm.eps


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
    geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
    y = torch.ops.aten.convolution.default(x, weight, bias, *geometry)
    y = y if shortcut is None else y.add_(shortcut)
    return y.relu_() if relu else y


def fuses_norm_prologue(x: Tensor, before: NormSlots | None) -> bool:
    """Whether a chain from x applies the BatchNorm ``before`` in the convolution's prologue: on CUDA."""
    return x.device.type == "cuda" and before is not None


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
    """Whether a chain from x computes the statistics of the BatchNorm ``after`` with the convolution: on CUDA.

    It saves passes over the convolution's output.
    """
    return x.device.type == "cuda" and after is not None and after.trains


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
    return x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


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

    It needs enough pixels, and either an image as input, or a shape that Winograd supports, or a 1x1 convolution with
    an output of at least ``MIN_BYTES_TO_POOL`` bytes.
    """
    if not _fits_own_kernels(x, conv):
        return False
    few = weight.shape[1] <= MAX_IMAGE_CHANNELS and x.dtype in _DIRECT
    return few or _fits_winograd(x, weight, conv) or _is_large_pointwise(x, weight, weight.shape[0], conv)


def prefers_own_pointwise(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input gradient of a stride-1 1x1 convolution has at least ``MIN_BYTES_TO_POOL`` bytes."""
    return _fits_own_kernels(grad, conv) and _is_large_pointwise(grad, weight, weight.shape[1], conv)


def prefers_winograd(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether Winograd applies to a convolution, or to one of its gradients, with enough pixels."""
    return _fits_own_kernels(x, conv) and _fits_winograd(x, weight, conv)


def _fits_own_kernels(x: Tensor, conv: ConvSlots) -> bool:
    # For a fake tensor either choice gives the same shapes, and comparing sizes would add guards.
    return (
        not isinstance(x, FakeTensor)
        and x.device.type == "cpu"
        and conv.groups == 1
        and x.shape[0] * x.shape[2] * x.shape[3] >= MIN_PIXELS_TO_PACK
        and x.is_contiguous(memory_format=torch.channels_last)
    )


_DIRECT = (torch.float32, torch.bfloat16)  # dtypes of our direct kernel


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
    fits = all(channels % 16 == 0 and channels >= 32 for channels in weight.shape[:2])
    return x.dtype is torch.bfloat16 and fits and saved_pixels(x) >= MIN_SAVED_PIXELS_BF16 and _has_winograd_bf16()


# In bfloat16 Winograd gains less and transformed weights are larger. It is used for a convolution, or for one of its
# gradients, if it saves at least the time that PyTorch needs for this many pixels.
MIN_SAVED_PIXELS_BF16 = 600


class _Tiles(NamedTuple):
    size: int
    time: float  # per pixel, padding of partial tiles included, relative to PyTorch's time per pixel


_TILES = {torch.float32: _Tiles(2, 0.55), torch.bfloat16: _Tiles(4, 0.75)}


def saved_pixels(x: Tensor) -> float:
    """The time that Winograd saves for a same-size convolution of x, in units of PyTorch's time per pixel."""
    n, _, h, w = x.shape
    size, time = _TILES[x.dtype]
    return n * (h * w - time * (h + -h % size) * (w + -w % size))


def _has_winograd_bf16() -> bool:
    """Whether the plan uses Winograd in bfloat16: some CPUs lack it, and some have a faster engine."""
    shapes = ([32, 64, 56, 56], [64, 64, 3, 3])
    return ops.explain_cpu(*shapes, (1, 1), (1, 1), (1, 1), 1, "bfloat16").startswith("winograd")


def _shortcut(x: Tensor, tensors: Sequence[Tensor], layout: Layout, pre_bns: PreBNs) -> Tensor | None:
    if layout.identity:
        return x
    if layout.residual is not None:
        return tensors[layout.residual]
    return pre_bns.get(len(layout.convs) + 1)


def _batch_statistics(x: Tensor, group: str, moments: Sequence[Tensor] | None = None) -> list[Any]:
    if not group and x.numel() == x.shape[1]:  # the error of nn.BatchNorm2d
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    return batch_statistics(x, group, moments)
