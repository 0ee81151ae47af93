"""``resnet_fused::train_chain``: a chain as one op with one autograd formula."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import twin
from .backward import Backward
from .forward import Result, Statistics, forward, trained
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
    x, tensors, ints, eps, group = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.count = len(tensors)
    layout = unpack(ints, eps)
    result = Result.of(output, layout, tensors)
    if _first.do is not None:
        do, _first.do = _first.do, None
        do(list(result.statistics.values()))
    _save(ctx, x, tensors, layout, group, result)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    nothing = None, None, None
    if grads[0] is None:
        return None, [None] * ctx.count, *nothing
    return *_gradients(ctx, grads[0], ctx.needs_input_grad[:2]), *nothing


train_chain.register_autograd(_backward, setup_context=_setup_context)


class TrainChain(torch.autograd.Function):
    """``train_chain`` without the dispatch of ``torch.library``, whose Python outlasts a block's kernels on a GPU."""

    @staticmethod
    def forward(ctx: Any, do: Any, x: Tensor, layout: Layout, group: str, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        result = forward(x, tensors, layout, group)
        if do is not None:
            do(list(result.statistics.values()))
        _save(ctx, x, tensors, layout, group, result)
        return result.out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        _, needs_x, _, _, *needs = ctx.needs_input_grad
        to_x, to_tensors = _gradients(ctx, grad, (needs_x, needs))
        return None, to_x, None, None, *to_tensors


_unpacked = functools.lru_cache(maxsize=1024)(unpack)


class _First(threading.local):
    do: Callable[[list[Any]], None] | None = None


_first = _First()


def run_chain(
    x: Tensor,
    tensors: list[Tensor],
    layout: list[int],
    eps: list[float],
    group: str,
    do: Callable[[list[Any]], None] | None = None,
) -> Tensor:
    """``train_chain``'s ``out``. ``do`` is called with ``[mean, var, count]`` of each BatchNorm in training mode,
    before autograd saves a tensor.

    ``torch.utils.checkpoint`` stops a forward pass that runs again at the last tensor that was saved the first time,
    by an exception that comes out of this call. Eager's BatchNorms, too, have updated their averages by then.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._len_torch_dispatch_stack() == 0:
        out: Tensor = TrainChain.apply(do, x, _unpacked(tuple(layout), tuple(eps)), group, *tensors)
        return out
    # Compilers and dispatch modes see one op.
    if compiling:
        outputs = train_chain(x, tensors, layout, eps, group)
        if do is not None:
            do(list(Result.of(outputs, unpack(layout, eps), tensors).statistics.values()))
        return outputs[0]
    _first.do = do
    try:
        outputs = train_chain(x, tensors, layout, eps, group)
        saved_nothing = _first.do is not None
    finally:
        _first.do = None
    if saved_nothing and do is not None:
        do(list(Result.of(outputs, unpack(layout, eps), tensors).statistics.values()))
    return outputs[0]


def _save(ctx: Any, x: Tensor, tensors: Sequence[Tensor], layout: Layout, group: str, result: Result) -> None:
    ctx.layout, ctx.group, ctx.raws = layout, group, list(result.raws)
    # A residual is added and forgotten; it is the last of the tensors.
    read = tensors if layout.residual is None else tensors[:-1]
    ctx.read = len(read)
    # The running statistics that were used, which training may change before the backward pass (see Backward._norm).
    used = [tensors[slot].clone() for slots in running_slots(layout).values() for slot in slots]
    out = [result.out] if layout.reads_output else []
    taken = [] if result.taken is None else [result.taken]
    by_norm = [[t for t in each if isinstance(t, Tensor)] for each in result.statistics.values()]
    statistics = [t for each in by_norm for t in each]
    ctx.sizes = [len(each) for each in by_norm]
    ctx.save_for_backward(x, *read, *out, *taken, *result.raws.values(), *statistics, *used)


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, Sequence[bool]]) -> tuple[Tensor | None, list[Tensor | None]]:
    layout: Layout = ctx.layout
    saved = iter(ctx.saved_tensors)
    x = next(saved)
    tensors = [next(saved) for _ in range(ctx.read)]
    out = next(saved) if layout.reads_output else None
    taken = None if layout.pool is None else next(saved)
    raws = {key: next(saved) for key in ctx.raws}
    sizes = zip(trained(layout), ctx.sizes, strict=True)
    statistics: Statistics = {key: [next(saved) for _ in range(size)] for key, size in sizes}
    statistics |= {key: [next(saved) for _ in range(2)] for key in running_slots(layout)}
    if torch.is_grad_enabled():  # create_graph=True
        to_x, to_tensors = _differentiable(grad, x, tensors, layout, out, statistics, needs)
    else:
        to_x, to_tensors = Backward(x, tensors, layout, ctx.group, out, taken, raws, statistics, needs).run(grad)
    return to_x, _of_eagers_strides(to_tensors, x, tensors, layout)


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
