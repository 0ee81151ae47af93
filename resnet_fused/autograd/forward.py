"""A chain forward: every activation between two convolutions lives only until the second has read it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from .. import ops
from .layout import ConvSlots, Layout, NormSlots
from .statistics import batch_statistics

Statistics = dict[int, list[Any]]  # norm's key -> mean, var, count (see batch_statistics)
Raws = dict[int, Tensor]  # norm's key -> what it normalises

NO_NORM = (None, None, None, None, 0.0)  # gamma, beta, mean, var, eps


class Result(NamedTuple):
    out: Tensor
    taken: Tensor | None  # which element of its window each value of a pooled output is
    raws: Raws  # the convolutions' outputs that BatchNorms read
    statistics: Statistics

    def tensors(self) -> list[Tensor]:
        """All of them in one order, counts as tensors: what an op may return."""
        taken = [] if self.taken is None else [self.taken]
        statistics: list[Tensor] = []
        for mean, var, count in self.statistics.values():
            statistics += mean, var, count if isinstance(count, Tensor) else mean.new_full((), count)
        return [self.out, *taken, *self.raws.values(), *statistics]

    @staticmethod
    def of(tensors: Sequence[Tensor], layout: Layout, read: Sequence[Tensor]) -> "Result":
        """From :meth:`tensors` of the chain that reads ``read``."""
        left = iter(tensors)
        out, taken = next(left), None if layout.pool is None else next(left)
        raws = {key: next(left) for key in kept(layout, read)}
        return Result(out, taken, raws, {key: [next(left) for _ in range(3)] for key in trained(layout)})


def forward(x: Tensor, tensors: Sequence[Tensor], layout: Layout, group: str) -> Result:
    """The chain, and what its backward pass or its BatchNorms' running averages need."""
    raws: Raws = {0: x}
    statistics: Statistics = {}

    def norm(key: int, slots: NormSlots) -> tuple[Any, ...]:
        if slots.trains and key not in statistics:
            statistics[key] = _of_batch(raws[key], group if slots.sync else "")
        return norm_args(slots, tensors, statistics.get(key))

    def convolve_all(i: int, readers: Sequence[tuple[int, ConvSlots]]) -> None:
        """``raws`` of the convolutions that read ``act[i]``."""
        before = layout.norms[i]
        args = None if before is None else norm(i, before)
        activated: Tensor | None = None  # lives as long as somebody reads it
        for key, conv in readers:
            after = layout.norm_of(key)
            if sums_while_convolving(x, after):
                raws[key], *moments = conv_stats(raws[i], args, tensors, conv)
                statistics[key] = _of_batch(raws[key], group if after is not None and after.sync else "", moments)
                continue
            ends = key == count and is_result
            end = (_shortcut(x, tensors, layout, raws), layout.relu) if ends else (None, False)
            if normalises_while_convolving(x, before):
                raws[key] = conv_of_normalised(raws[i], args, tensors, conv, *end)
                continue
            if activated is None:
                activated = raws[i] if args is None else ops.bn_add_act(raws[i], *args, None, True, internal=True)
            raws[key] = convolve(activated, tensors, conv, *end, internal=internal or not ends)

    count = len(layout.convs)
    internal = layout.place.internal_output
    last, side_norm = layout.norms[count], layout.projection_norm
    is_result = last is None and side_norm is None  # what the last convolution returns, the shortcut and ReLU with it
    for i, conv in enumerate(layout.convs):
        side = layout.projection if i == 0 else None
        convolve_all(i, [*([] if side is None else [(count + 1, side)]), (i + 1, conv)])
    shortcut = _shortcut(x, tensors, layout, raws)
    taken: Tensor | None = None
    if last is not None and layout.pool is not None:
        out, taken = ops.bn_relu_max_pool(raws[count], *norm(count, last), *layout.pool, internal=internal)
    elif last is not None and side_norm is not None:
        side_args = norm(count + 1, side_norm)
        out = ops.bn_add_bn_act(raws[count], *norm(count, last), shortcut, *side_args, layout.relu, internal=internal)
    elif last is not None:
        out = ops.bn_add_act(raws[count], *norm(count, last), shortcut, layout.relu, internal=internal)
    elif side_norm is not None:
        out = ops.bn_add_act(shortcut, *norm(count + 1, side_norm), raws[count], layout.relu, internal=internal)
    else:
        out = raws[count]
    in_order = {key: statistics[key] for key in trained(layout)}
    return Result(out, taken, {key: raws[key] for key in kept(layout, tensors)}, in_order)


def trained(layout: Layout) -> list[int]:
    """Keys of the BatchNorms that use the batch's statistics, in the order of ``Result.statistics``."""
    return [key for key, norm in layout.all_norms() if norm.trains]


def kept(layout: Layout, tensors: Sequence[Tensor]) -> list[int]:
    """Keys of the raw outputs that the backward pass reads and does not compute again."""
    return [key for key, _ in layout.all_norms() if key > 0 and not _runs_again(key, layout, tensors)]


def _runs_again(key: int, layout: Layout, tensors: Sequence[Tensor]) -> bool:
    """Whether the backward pass convolves for ``raw[key]`` again: ``recompute`` says so for every 1x1 convolution.

    Without it, for the first of a bottleneck whose projection keeps the resolution: one of the 15 units that such a
    block would keep, for an eighteenth of its forward multiplications.
    """
    conv = (*layout.convs, layout.projection)[key - 1]
    if conv is None or tuple(tensors[conv.weight].shape[2:]) != (1, 1):
        return False
    side = layout.projection
    begins = key == 1 and len(layout.convs) > 1 and layout.norms[0] is None
    return layout.recompute or (begins and side is not None and side.stride == (1, 1))


def norm_args(norm: NormSlots, tensors: Sequence[Tensor], statistics: Sequence[Tensor] | None) -> tuple[Any, ...]:
    """``gamma, beta, mean, var, eps``, the ops' order."""
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
    """``act(conv(x) + shortcut)``, ``internal`` where nobody but the chain sees it."""
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    if ours_is_faster(x, weight, conv):
        return ops.conv_bn_act(x, weight, bias, *NO_NORM, *conv[2:], shortcut, relu, False, False, internal=internal)
    shape = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
    y = torch.ops.aten.convolution.default(x, weight, bias, *shape)
    y = y if shortcut is None else y.add_(shortcut)
    return y.relu_() if relu else y


def normalises_while_convolving(x: Tensor, before: NormSlots | None) -> bool:
    """Whether a chain from x has :func:`conv_of_normalised` take what ``before`` normalises: on CUDA."""
    return x.device.type == "cuda" and before is not None


def conv_of_normalised(
    x: Tensor,
    pre: tuple[Any, ...] | None,
    tensors: Sequence[Tensor],
    conv: ConvSlots,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``act(conv(relu(bn(x))) + shortcut)`` with the BatchNorm's arguments: the same bits for the same arguments."""
    assert pre is not None
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    after = (weight, bias, *NO_NORM, *conv[2:], shortcut, relu, False, allow_tf32(x))
    return ops.bn_relu_conv_bn_act(x, *pre, *after)


def sums_while_convolving(x: Tensor, after: NormSlots | None) -> bool:
    """Whether a chain from x has :func:`conv_stats` make what ``after`` normalises: on CUDA, where it saves passes."""
    return x.device.type == "cuda" and after is not None and after.trains


def conv_stats(
    x: Tensor, pre: tuple[Any, ...] | None, tensors: Sequence[Tensor], conv: ConvSlots
) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution of x, or of ``relu(bn(x))`` with the BatchNorm's arguments; and its output's mean and variance.

    The same bits for the same arguments, so that a backward pass may ask again.
    """
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    return ops.conv_stats(x, *(pre or NO_NORM), weight, bias, *conv[2:], False, allow_tf32(x))


def allow_tf32(x: Tensor) -> bool:
    """Whether x is float32 and torch's own convolutions may use TF32; the switch is read while the chain runs."""
    return x.dtype is torch.float32 and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


@torch.library.impl("resnet_fused::conv_stats", "CPU")
def _conv_stats_cpu(x: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What a chain does on the CPU, op by op."""
    *arguments, _keep_packed, _allow_tf32 = args
    ops.check_conv_stats(x, *arguments)
    *pre, weight, bias, stride, padding, dilation, groups = arguments
    activated = x if pre[2] is None else ops.bn_add_act(x, *pre, None, True, internal=True)
    pairs = (tuple(stride), tuple(padding), tuple(dilation))
    conv = ConvSlots(0, None if bias is None else 1, *pairs, groups)
    raw = convolve(activated, [weight, bias], conv)
    return raw, *ops.bn_stats(raw)


# Weights change with every step, and putting them into our kernels' order has to pay within one: a convolution of
# fewer pixels than this is PyTorch's.
PIXELS_WORTH_PACKING = 1024


# oneDNN's vectors run along the input's channels, ours along the output's: an image has too few for the former.
CHANNELS_OF_AN_IMAGE = 4


# A result of torch's that is this large is new memory each time, and its page faults take as long as a 1x1 convolution.
# Ours lies in memory that is kept, or in huge pages (csrc/cpu/memory.h).
BYTES_WORTH_KEEPING = 16 << 20


def ours_is_faster(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether to convolve on the CPU with a kernel of our own, of enough pixels: what Winograd takes, images, and what
    :func:`pointwise_is_faster` says."""
    if not _worth_packing(x, conv):
        return False
    few = weight.shape[1] <= CHANNELS_OF_AN_IMAGE and x.dtype in _DIRECT
    return few or _is_winograds(x, weight, conv) or _is_large_pointwise(x, weight, weight.shape[0], conv)


def pointwise_is_faster(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the gradient of a 1x1 convolution's input, with stride 1, has ``BYTES_WORTH_KEEPING``."""
    return _worth_packing(grad, conv) and _is_large_pointwise(grad, weight, weight.shape[1], conv)


def winograd_is_faster(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """The first half of :func:`ours_is_faster`, which does not ask what a channel of x is."""
    return _worth_packing(x, conv) and _is_winograds(x, weight, conv)


def _worth_packing(x: Tensor, conv: ConvSlots) -> bool:
    # A fake tensor has only shapes to give, which are the same, and a decision would bound its sizes.
    return (
        not isinstance(x, FakeTensor)
        and x.device.type == "cpu"
        and conv.groups == 1
        and x.shape[0] * x.shape[2] * x.shape[3] >= PIXELS_WORTH_PACKING
        and x.is_contiguous(memory_format=torch.channels_last)
    )


_DIRECT = (torch.float32, torch.bfloat16)  # dtypes of our direct kernel


def _is_large_pointwise(x: Tensor, weight: Tensor, channels: int, conv: ConvSlots) -> bool:
    """Whether a 1x1 convolution of x gives at least ``BYTES_WORTH_KEEPING``, of so many channels."""
    h, w = ((size - 1) // stride + 1 for size, stride in zip(x.shape[2:], conv.stride, strict=True))
    size = x.shape[0] * h * w * channels * x.element_size()
    return tuple(weight.shape[2:]) == (1, 1) and x.dtype in _DIRECT and size >= BYTES_WORTH_KEEPING


def _is_winograds(x: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    if tuple(weight.shape[2:]) != (3, 3) or not conv.stride == conv.dilation == (1, 1):
        return False
    if x.dtype is torch.float32:
        return True
    fits = all(channels % 16 == 0 and channels >= 32 for channels in weight.shape[:2])
    return x.dtype is torch.bfloat16 and fits and saved_pixels(x) >= PIXELS_WORTH_TRANSFORMING and _has_winograd_bf16()


# In bfloat16, where Winograd gains less and transformed weights are larger: a convolution, or either of its gradients,
# has to save the time of so many of PyTorch's pixels.
PIXELS_WORTH_TRANSFORMING = 600


class _Tiles(NamedTuple):
    size: int
    time: float  # of one of our pixels, those that fill up a tile included, in pixels of PyTorch's


_TILES = {torch.float32: _Tiles(2, 0.55), torch.bfloat16: _Tiles(4, 0.75)}


def saved_pixels(x: Tensor) -> float:
    """What Winograd saves of a convolution of x to the same size, in pixels of PyTorch's convolution."""
    n, _, h, w = x.shape
    size, time = _TILES[x.dtype]
    return n * (h * w - time * (h + -h % size) * (w + -w % size))


def _has_winograd_bf16() -> bool:
    """Not every processor with Winograd in float32 has it in bfloat16, and some have what is faster."""
    shapes = ([32, 64, 56, 56], [64, 64, 3, 3])
    return ops.explain_cpu(*shapes, (1, 1), (1, 1), (1, 1), 1, "bfloat16").startswith("winograd")


def _shortcut(x: Tensor, tensors: Sequence[Tensor], layout: Layout, raws: Raws) -> Tensor | None:
    if layout.identity:
        return x
    if layout.residual is not None:
        return tensors[layout.residual]
    return raws.get(len(layout.convs) + 1)


def _of_batch(x: Tensor, group: str, moments: Sequence[Tensor] | None = None) -> list[Any]:
    if not group and x.numel() == x.shape[1]:  # nn.BatchNorm2d's own error
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
    return batch_statistics(x, group, moments)
