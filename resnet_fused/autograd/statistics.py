"""Batch statistics of one process or of a process group, and the update of running statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops


def batch_statistics(x: Tensor, group: str, moments: Sequence[Tensor] | None = None) -> list[Any]:
    """``[mean, var, count]`` over N, H, W for each channel, across all processes of ``group`` if it is not "".

    mean and (biased) var have shape (C). ``count`` is an int, or with a group a tensor of shape (). ``moments``: mean
    and variance of x, if already computed.

    The processes' means and squared deviations are combined by Chan, Golub and LeVeque 1979 (Updating formulae and a
    pairwise algorithm for computing sample variances, equation 2.1): no cancellation, and batches may differ in size or
    be empty. One all-gather; all processes compute the same bits.
    """
    channels = x.shape[1]
    if not group:
        mean, var = moments or ops.bn_stats(x)
        return [mean, var, x.numel() // channels]
    if x.numel():
        mean, var = moments or ops.bn_stats(x)
    else:
        mean = var = torch.zeros(channels, dtype=statistics_dtype(x.dtype), device=x.device)
    count = mean.new_full((1,), x.numel() // channels)
    gathered = _gather(torch.cat([mean, var, count]), group)
    means, variances, counts = gathered.split([channels, channels, 1], 1)
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return [mean, var, total]


def _gather(row: Tensor, group: str) -> Tensor:
    from torch.distributed import all_gather, get_world_size

    process_group = _resolve(group)
    rows = [torch.empty_like(row) for _ in range(get_world_size(process_group))]
    all_gather(rows, row, process_group)
    return torch.stack(rows)


def _resolve(group: str) -> Any:
    from torch.distributed.distributed_c10d import _resolve_process_group

    return _resolve_process_group(group)  # type: ignore[arg-type]


@torch.library.custom_op("resnet_fused::sum_over_processes", mutates_args=())
def sum_over_processes(x: Tensor, group: str) -> Tensor:
    """The sum of x over the processes of ``group``."""
    from torch.distributed import all_reduce

    total = x.clone()
    all_reduce(total, group=_resolve(group))
    return total


@sum_over_processes.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return torch.empty_like(x)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of ``bn_stats``'s results for activations of this dtype."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def update_running(norms: Sequence[nn.Module], statistics: Sequence[Sequence[Any]]) -> None:
    """Updates the running statistics of BatchNorms as ``nn.BatchNorm2d`` does, with four kernels in total on a GPU.

    ``statistics`` has ``[mean, biased variance, count]`` for each, as returned by :func:`batch_statistics`. The rule is
    ``running = momentum * batch + (1 - momentum) * running`` with the unbiased variance (Ioffe and Szegedy 2015,
    arXiv:1502.03167, section 3.1). ``momentum=None`` means a cumulative average. Without ``track_running_stats``
    nothing changes. A batch without values increments ``num_batches_tracked`` but leaves the averages unchanged.
    """
    counters: list[Tensor] = []
    written: list[int] = []
    running: list[Tensor] = []
    batches: list[Tensor] = []
    old: list[float] = []
    new: list[float] = []
    rest: list[tuple[Any, Sequence[Any]]] = []  # norms whose factors are tensors or whose dtypes differ
    for norm, batch in zip(norms, statistics, strict=True):
        buffers: Any = norm._buffers
        if not (norm.training and norm.track_running_stats) or buffers["running_mean"] is None:
            continue
        counters.append(buffers["num_batches_tracked"])
        written += map(id, (buffers["num_batches_tracked"], buffers["running_mean"], buffers["running_var"]))
        mean, var, count = batch
        momentum: Any = norm.momentum
        if momentum is None or isinstance(count, Tensor) or buffers["running_mean"].dtype is not mean.dtype:
            rest.append((norm, batch))
        elif count > 0:
            # Through .data, because eager's kernel does not bump the version either: a graph of an earlier forward pass
            # in eval mode, which saved these buffers, stays valid.
            running += buffers["running_mean"].data, buffers["running_var"].data
            batches += mean, var
            old += 1 - momentum, 1 - momentum
            new += momentum, momentum * (count / (count - 1))
    if len(set(written)) < len(written) and len(norms) > 1:  # a foreach kernel would race with itself
        for norm, batch in zip(norms, statistics, strict=True):
            update_running([norm], [batch])
        return
    with torch.no_grad():
        if counters:
            torch._foreach_add_(counters, 1)
        if running:
            torch._foreach_mul_(running, old)
            torch._foreach_add_(running, torch._foreach_mul(batches, new))
        for norm, batch in rest:
            _update(norm, *batch)


def _update(norm: Any, mean: Tensor, var: Tensor, count: Any) -> None:
    buffers = norm._buffers
    count = count if isinstance(count, Tensor) else mean.new_full((), count)
    momentum: Any = norm.momentum
    if momentum is None:
        momentum = buffers["num_batches_tracked"].double().reciprocal()
    unbiased = var * (count / (count - 1))
    for running, batch in ((buffers["running_mean"], mean), (buffers["running_var"], unbiased)):
        average = batch * momentum + running * (1 - momentum)
        running.data.copy_(torch.where(count > 0, average, running))
