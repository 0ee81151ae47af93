"""Runs a :class:`Chain` with gradients or batch statistics: one op, ``resnet_fused::train_chain``, with one formula."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import eager
from .backward import Backward
from .forward import Result, Statistics, batch_statistics_keys, forward
from .geometry import output_shape
from .layout import Layout, pack, running_slots, unpack
from .memory_format import contiguous, is_channels_last
from .policy import capabilities_of, is_plain
from .spec import ALL_VISIBLE, Chain, Pool, Shortcut, Visibility
from .statistics import process_groups, update_running

_MAX_POOL_ELEMENTS = 255  # window size limit: the argmax is a uint8, and 255 marks windows zeroed by the ReLU


def run(
    x: Tensor, chain: Chain, dtype: torch.dtype, recompute: bool = False, visibility: Visibility = ALL_VISIBLE
) -> Tensor:
    """The output of a chain, as differentiable op; updates the running statistics of its BatchNorms.

    ``dtype``: of the convolutions, which is autocast's under autocast. ``recompute``: backward recomputes the outputs
    of 1x1 convolutions (bit-identical, slower, less memory).
    """
    # There is no fallback to eager from here on: a shortcut's module must be called only once.
    added: Any = None
    leads, in_place = None, True  # what gives the output its memory format, if the shortcut does
    pool = chain.pool
    ends_plainly = chain.norms[-1] is not None and chain.shortcut is None and chain.relu
    if pool is not None and not (ends_plainly and is_fusable(pool, x)):
        chain = chain._replace(pool=None)
    if chain.shortcut is not None and chain.shortcut.reads_elsewhere:
        shortcut, before = chain.shortcut, chain.norms[0]
        if before is not None and not shortcut.reads_x:  # act[0] has a reader outside the chain
            x = run(x, Chain((), (before,)), dtype)
            chain = chain._replace(norms=(None, *chain.norms[1:]))
        added = _shortcut(x, shortcut, dtype, recompute)
        leads, in_place = added if shortcut.leads else None, shortcut.in_place
        if is_plain(added, dtype, output_shape(x, chain.convs)):
            chain, added = chain._replace(shortcut=Shortcut(residual=added)), None
        else:
            chain = chain._replace(shortcut=None)
    norms = [norm for norm in chain.all_norms() if norm is not None and norm.mean is None]
    args = pack(chain if added is None else chain._replace(relu=False), visibility, recompute)
    group = next(iter(process_groups(norms)), "")
    y = run_chain(x.to(dtype), *args, group, lambda batches: update_running([norm.module for norm in norms], batches))
    if added is not None:
        if in_place:
            y += added  # broadcasts or raises, as in eager
        else:
            y = y + added
        y = y.relu() if chain.relu else y
    if leads is not None and not is_channels_last(leads):
        y = contiguous(y)
    return y if pool is None or chain.pool is not None else F.max_pool2d(y, *pool)


def _shortcut(x: Tensor, shortcut: Shortcut, dtype: torch.dtype, recompute: bool) -> Any:
    """A shortcut that is not a projection of ``act[0]``, by its module or as a chain of its own."""
    if shortcut.module is not None:
        return shortcut.module(x)
    assert shortcut.conv is not None
    source = x if shortcut.transform is None else shortcut.transform(x)
    return run(source, Chain((shortcut.conv,), (None, shortcut.norm), relu=False), dtype, recompute)


def is_fusable(pool: Pool, x: Tensor) -> bool:
    """Whether the op computes the max-pooling of x too; otherwise it is a separate layer."""
    fits = pool.kernel[0] * pool.kernel[1] <= _MAX_POOL_ELEMENTS
    fits = fits and 2 * pool.padding[0] <= pool.kernel[0] and 2 * pool.padding[1] <= pool.kernel[1]
    return fits and capabilities_of(x).pools


_SCHEMA = "(Tensor x, Tensor[] tensors, int[] layout, float[] eps, str group) -> Tensor[]"


@torch.library.custom_op("resnet_fused::train_chain", mutates_args=(), schema=_SCHEMA)
def train_chain(x: Tensor, tensors: list[Tensor], layout: list[int], eps: list[float], group: str) -> list[Tensor]:
    """``[out, (argmax,) pre-BN outputs..., statistics...]`` of the chain described by ``layout`` and ``eps``.

    Args:
        x: (N, C, H, W) in float32, bfloat16, float16 or float64.
        tensors: the chain's other tensors (see :mod:`.layout`). Convolution weights have x's dtype; BatchNorm tensors
            may have another.
        layout: the packed :class:`.layout.Layout`.
        eps: the eps of every norm.
        group: name of the process group that shares statistics, "" for none.

    Returns:
        The output; for a pooled chain the argmax of :func:`resnet_fused.ops.bn_relu_max_pool`; the pre-BN outputs of
        :func:`.forward.saved_keys`; then mean (C), biased variance (C) and count () of each BatchNorm that uses batch
        statistics. Only the output is differentiable.

    Raises:
        RuntimeError: wrong shapes or dtypes.
        ValueError: a BatchNorm in training mode has only one value per channel.
    """
    return forward(x, tensors, unpack(layout, eps), group).tensors()


@train_chain.register_fake
def _fake(x: Tensor, tensors: list[Tensor], layout: list[int], eps: list[float], group: str) -> list[Tensor]:
    # Shapes do not depend on the number of processes.
    return forward(x, tensors, unpack(layout, eps), "").tensors()


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, tensors, ints, eps, group = inputs
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.count = len(tensors)
    layout = unpack(ints, eps)
    result = Result.of(output, layout, tensors)
    if _pending.on_statistics is not None:
        on_statistics, _pending.on_statistics = _pending.on_statistics, None
        on_statistics(list(result.statistics.values()))
    _save(ctx, x, tensors, layout, group, result)


def _backward(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    nothing = None, None, None
    if grads[0] is None:
        return None, [None] * ctx.count, *nothing
    return *_gradients(ctx, grads[0], ctx.needs_input_grad[:2]), *nothing


train_chain.register_autograd(_backward, setup_context=_setup_context)


class TrainChain(torch.autograd.Function):
    """``train_chain`` without ``torch.library``'s dispatch, whose Python takes longer than a block's GPU kernels."""

    @staticmethod
    def forward(ctx: Any, on_statistics: Any, x: Tensor, layout: Layout, group: str, *tensors: Tensor) -> Tensor:  # type: ignore[override]
        ctx.set_materialize_grads(False)
        result = forward(x, tensors, layout, group)
        if on_statistics is not None:
            on_statistics(list(result.statistics.values()))
        _save(ctx, x, tensors, layout, group, result)
        return result.out

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        if grad is None:
            return (None,) * len(ctx.needs_input_grad)
        _, needs_x, _, _, *needs = ctx.needs_input_grad
        grad_x, grad_tensors = _gradients(ctx, grad, (needs_x, needs))
        return None, grad_x, None, None, *grad_tensors


_cached_unpack = functools.lru_cache(maxsize=1024)(unpack)


class _Pending(threading.local):
    on_statistics: Callable[[list[Any]], None] | None = None


_pending = _Pending()


def run_chain(
    x: Tensor,
    tensors: list[Tensor],
    layout: list[int],
    eps: list[float],
    group: str,
    on_statistics: Callable[[list[Any]], None] | None = None,
) -> Tensor:
    """The output of ``train_chain``.

    ``on_statistics`` is called with ``[mean, var, count]`` of each BatchNorm in training mode, before autograd saves a
    tensor. ``torch.utils.checkpoint`` raises an exception out of this call when a recomputed forward pass saves its
    last tensor; eager BatchNorms have updated their running statistics by then, too.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._len_torch_dispatch_stack() == 0:
        out: Tensor = TrainChain.apply(on_statistics, x, _cached_unpack(tuple(layout), tuple(eps)), group, *tensors)
        return out
    # Compilers and dispatch modes see one op.
    if compiling:
        outputs = train_chain(x, tensors, layout, eps, group)
        if on_statistics is not None:
            on_statistics(list(Result.of(outputs, unpack(layout, eps), tensors).statistics.values()))
        return outputs[0]
    _pending.on_statistics = on_statistics
    try:
        outputs = train_chain(x, tensors, layout, eps, group)
        saved_nothing = _pending.on_statistics is not None
    finally:
        _pending.on_statistics = None
    if saved_nothing and on_statistics is not None:
        on_statistics(list(Result.of(outputs, unpack(layout, eps), tensors).statistics.values()))
    return outputs[0]


def _save(ctx: Any, x: Tensor, tensors: Sequence[Tensor], layout: Layout, group: str, result: Result) -> None:
    ctx.layout, ctx.group, ctx.pre_bn_keys = layout, group, list(result.pre_bns)
    # The residual is the last tensor; backward does not need its value.
    read = tensors if layout.residual is None else tensors[:-1]
    ctx.num_saved = len(read)
    # Copies of the running statistics: training may change them before the backward pass (see running.py).
    used = [tensors[slot].clone() for slots in running_slots(layout).values() for slot in slots]
    out = [result.out] if layout.reads_output else []
    argmax = [] if result.argmax is None else [result.argmax]
    statistics: list[Tensor] = []
    for key, (mean, var, count) in result.statistics.items():
        statistics += mean, var
        if _saves_count(layout, key):
            statistics.append(count if isinstance(count, Tensor) else mean.new_full((), count))
    ctx.save_for_backward(x, *read, *out, *argmax, *result.pre_bns.values(), *statistics, *used)


def _saves_count(layout: Layout, key: int) -> bool:
    """Whether backward needs the number of values, which other processes contribute to."""
    norm = layout.norm_of(key)
    return norm is not None and norm.sync


def _gradients(ctx: Any, grad: Tensor, needs: tuple[bool, Sequence[bool]]) -> tuple[Tensor | None, list[Tensor | None]]:
    layout: Layout = ctx.layout
    saved = iter(ctx.saved_tensors)
    x = next(saved)
    tensors = [next(saved) for _ in range(ctx.num_saved)]
    out = next(saved) if layout.reads_output else None
    argmax = None if layout.pool is None else next(saved)
    pre_bns = {key: next(saved) for key in ctx.pre_bn_keys}
    statistics: Statistics = {
        key: [next(saved) for _ in range(3 if _saves_count(layout, key) else 2)]
        for key in batch_statistics_keys(layout)
    }
    statistics |= {key: [next(saved) for _ in range(2)] for key in running_slots(layout)}
    if torch.is_grad_enabled():  # create_graph=True
        grad_x, grad_tensors = _differentiable(grad, x, tensors, layout, out, statistics, needs)
    else:
        grad_x, grad_tensors = Backward(x, tensors, layout, ctx.group, out, argmax, pre_bns, statistics, needs).run(
            grad
        )
    return grad_x, _match_eager_strides(grad_tensors, x, tensors, layout)


def _match_eager_strides(
    grads: list[Tensor | None], x: Tensor, tensors: list[Tensor], layout: Layout
) -> list[Tensor | None]:
    """Weight gradients in eager's formats: channels_last if the weight or the activations are."""
    channels_last = is_channels_last(x) and not layout.visibility.hidden
    projection = layout.projection
    if projection is not None:
        _set_format(grads, projection.weight, channels_last or is_channels_last(tensors[projection.weight]))
    for conv in layout.convs:
        channels_last = channels_last or is_channels_last(tensors[conv.weight])
        _set_format(grads, conv.weight, channels_last)
    return grads


def _set_format(grads: list[Tensor | None], slot: int, channels_last: bool) -> None:
    grad = grads[slot]
    if grad is not None:
        grads[slot] = grad.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _differentiable(
    grad: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    layout: Layout,
    out: Tensor | None,
    statistics: Statistics,
    needs: Sequence[Any],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients as differentiable functions (``create_graph=True``): those of the chain in plain torch ops."""
    if any(norm.sync for _, norm in layout.all_norms()):
        raise RuntimeError(
            "gradients of gradients (create_graph=True) through SyncBatchNorm are not supported by resnet_fused's "
            "training path; call resnet_fused.revert(model) to use PyTorch's own"
        )
    if layout.residual is not None:  # only the ReLU's mask depends on its value, and the mask is taken from out
        residual = torch.zeros_like(grad) if out is None else torch.zeros_like(out)
        tensors = [*tensors, residual.requires_grad_()]
    # A block may use one module twice: each use gets the gradient of its own alias.
    x, tensors = x.view_as(x), [t.view_as(t) for t in tensors]
    read = list(tensors)
    for key, slots in running_slots(layout).items():
        for slot, saved in zip(slots, statistics[key], strict=True):
            read[slot] = saved.clone()
    chain = layout.chain(read)
    y = eager.run(x, chain._replace(relu=False) if out is not None else chain)
    for slots in running_slots(layout).values():
        for slot in slots:  # eager's graph saves the buffers themselves, so backward sees their current values
            read[slot].data.copy_(tensors[slot])
    grad = grad if out is None else torch.where(out > 0, grad, 0)
    wanted = [t for t, need in zip([x, *tensors], [needs[0], *needs[1]], strict=True) if need]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True))
    grad_x = next(found) if needs[0] else None
    return grad_x, [next(found) if need else None for need in needs[1]]
