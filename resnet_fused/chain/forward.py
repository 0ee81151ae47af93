"""Forward pass of a chain. An activation between two convolutions is freed as soon as the second has read it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .. import ops
from .convolutions import conv_stats, conv_with_prologue, convolve, fuses_norm_prologue, fuses_statistics
from .layout import ConvSlots, Layout, NormSlots
from .statistics import batch_statistics

Statistics = dict[int, list[Any]]  # BatchNorm's key -> mean, var, count (see batch_statistics)
PreBNs = dict[int, Tensor]  # BatchNorm's key -> its input


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
