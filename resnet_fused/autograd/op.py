"""``resnet_fused::train_chain``: a chain as one op with one autograd formula."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import twin
from .backward import Backward
from .forward import Statistics, forward, kept
from .layout import Layout, running_slots, unpack
from .memory_format import is_channels_last

_SCHEMA = "(Tensor x, Tensor[] tensors, int[] layout, float[] eps, str group) -> Tensor[]"


@torch.library.custom_op("resnet_fused::train_chain", mutates_args=(), schema=_SCHEMA)
def train_chain(x: Tensor, tensors: list[Tensor], layout: list[int], eps: list[float], group: str) -> list[Tensor]:
    """``[out, (taken,) raw outputs..., statistics...]`` of the chain that ``layout`` and ``eps`` describe.

    x is (N, C, H, W) in float32, bfloat16, float16 or float64; convolutions' weights have its dtype, BatchNorms'
    tensors any. Raw outputs are those that :func:`.forward.kept` names, statistics the mean and biased variance of
    each BatchNorm that uses the batch's, of shape (C), and where it synchronises also the count, of shape ().
    A pooled chain's ``taken`` is :func:`resnet_fused.ops.bn_relu_max_pool`'s.
    ``group`` names the processes that share statistics. Only ``out`` is differentiable.

    Raises ``RuntimeError`` for wrong shapes and dtypes, ``ValueError`` where a BatchNorm sees one value a channel.
    """
    return forward(x, tensors, unpack(layout, eps), group).tensors()


@train_chain.register_fake
def _fake(x: Tensor, tensors: list[Tensor], layout: list[int], eps: list[float], group: str) -> list[Tensor]:
    # Shapes do not depend on how many processes share the statistics.
    return forward(x, tensors, unpack(layout, eps), "").tensors()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, tensors, ints, eps, ctx.group = inputs
    ctx.layout = layout = unpack(ints, eps)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.raws = kept(layout, tensors)
    # A residual is added and forgotten; it is the last of the tensors.
    ctx.count = len(tensors)
    read = tensors if layout.residual is None else tensors[:-1]
    # The running statistics that were used, which training may change before the backward pass (see Backward._norm).
    used = [tensors[slot].clone() for slots in running_slots(layout).values() for slot in slots]
    if _first.do is not None:
        do, _first.do = _first.do, None
        do(output)
    ctx.save_for_backward(x, *read, *(output if layout.reads_output else output[1:]), *used)


class _First(threading.local):
    do: Callable[[list[Tensor]], None] | None = None


_first = _First()


def train_chain_and(
    do: Callable[[list[Tensor]], None],
    x: Tensor,
    tensors: list[Tensor],
    layout: list[int],
    eps: list[float],
    group: str,
) -> Tensor:
    """``train_chain``'s ``out``; ``do`` is called with all that the op returned, before autograd keeps anything of it.

    ``torch.utils.checkpoint`` stops a forward pass that runs again at the last tensor that was kept the first time,
    by an exception that comes out of this call. Eager's BatchNorms, too, have updated their averages by then.
    """
    if torch.compiler.is_compiling():
        outputs = train_chain(x, tensors, layout, eps, group)
        do(outputs)
        return outputs[0]
    _first.do = do
    try:
        outputs = train_chain(x, tensors, layout, eps, group)
        nothing_kept = _first.do is not None
    finally:
        _first.do = None
    if nothing_kept:
        do(outputs)
    return outputs[0]


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    nothing = None, None, None
    if grads[0] is None:
        return None, [None] * ctx.count, *nothing
    layout: Layout = ctx.layout
    saved = iter(ctx.saved_tensors)
    x = next(saved)
    tensors = [next(saved) for _ in range(ctx.count - (layout.residual is not None))]
    out = next(saved) if layout.reads_output else None
    needs = ctx.needs_input_grad[:2]
    taken = None if layout.pool is None else next(saved)
    raws = {key: next(saved) for key in ctx.raws}
    statistics: Statistics = {key: [next(saved) for _ in range(3)] for key, norm in layout.all_norms() if norm.trains}
    statistics |= {key: [next(saved) for _ in range(2)] for key in running_slots(layout)}
    if torch.is_grad_enabled():  # create_graph=True
        to_x, to_tensors = _differentiable(grads[0], x, tensors, layout, out, statistics, needs)
        return to_x, _of_eagers_strides(to_tensors, x, tensors, layout), *nothing
    to_x, to_tensors = Backward(x, tensors, layout, ctx.group, out, taken, raws, statistics, needs).run(grads[0])
    return to_x, _of_eagers_strides(to_tensors, x, tensors, layout), *nothing


def _of_eagers_strides(
    grads: list[Tensor | None], x: Tensor, tensors: list[Tensor], layout: Layout
) -> list[Tensor | None]:
    """Gradients of weights as eager returns them: channels_last where a weight or the activations it meets are."""
    from_x = is_channels_last(x) and not layout.place.hidden
    side = layout.projection
    if side is not None:
        _format(grads, side.weight, from_x or is_channels_last(tensors[side.weight]))
    last = from_x
    for conv in layout.convs:
        last = last or is_channels_last(tensors[conv.weight])
        _format(grads, conv.weight, last)
    return grads


def _format(grads: list[Tensor | None], slot: int, last: bool) -> None:
    grad = grads[slot]
    if grad is not None:
        grads[slot] = grad.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _differentiable(
    grad: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    layout: Layout,
    out: Tensor | None,
    statistics: Statistics,
    needs: Sequence[Any],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients as functions that autograd can differentiate again: those of the chain in plain torch."""
    if any(norm.sync for _, norm in layout.all_norms()):
        raise RuntimeError(
            "gradients of gradients (create_graph=True) through SyncBatchNorm are not supported by resnet_fused's "
            "training path; resnet_fused.revert(model) has PyTorch's own"
        )
    if layout.residual is not None:  # its value shows in the ReLU's mask only, which out gives
        shape = torch.zeros_like(grad) if out is None else torch.zeros_like(out)
        tensors = [*tensors, shape.requires_grad_()]
    read = list(tensors)
    for key, slots in running_slots(layout).items():
        for slot, used in zip(slots, statistics[key], strict=True):
            read[slot] = used.clone()
    y = twin.chain(x, read, layout._replace(relu=False) if out is not None else layout)
    for slots in running_slots(layout).values():
        for slot in slots:  # eager's graph keeps the buffers themselves, with what is in them now
            read[slot].data.copy_(tensors[slot])
    grad = grad if out is None else torch.where(out > 0, grad, 0)
    wanted = [t for t, need in zip([x, *tensors], [needs[0], *needs[1]], strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    to_x = next(found) if needs[0] else None
    return to_x, [next(found) if need else None for need in needs[1]]


train_chain.register_autograd(_backward, setup_context=_setup_context)
