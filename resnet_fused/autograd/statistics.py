"""Batch statistics: of one process, of all processes of a group, and what running averages make of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops


def batch_statistics(x: Tensor, group: str, moments: Sequence[Tensor] | None = None) -> list[Any]:
    """``[mean, var, count]`` of each channel over N, H, W; with a group's name, over all of its processes.

    ``count`` is a number, with a group a tensor of shape (). ``moments``: mean and variance of x, if they are known.

    Means and squared deviations of the processes are combined as Chan, Golub and LeVeque 1979 (Updating formulae and
    a pairwise algorithm for computing sample variances, equation 2.1) combine two samples: nothing cancels, batches
    may differ in size, one may be empty. One all-gather; every process computes the same bits.
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
    everywhere = _gather(torch.cat([mean, var, count]), group)
    means, variances, counts = everywhere.split([channels, channels, 1], 1)
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
    """The sum of x over the processes of a group."""
    from torch.distributed import all_reduce

    total = x.clone()
    all_reduce(total, group=_resolve(group))
    return total


@sum_over_processes.register_fake
def _(x: Tensor, group: str) -> Tensor:
    return torch.empty_like(x)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """What ``bn_stats`` returns for activations of this dtype."""
    return torch.float64 if dtype is torch.float64 else torch.float32


def update_running(norms: Sequence[nn.Module], statistics: Sequence[Sequence[Any]]) -> None:
    """Updates the running statistics of BatchNorms as ``nn.BatchNorm2d`` does, all in four kernels on a GPU.

    ``statistics``: ``[mean, biased variance, count]`` of each, see :func:`batch_statistics`.
    ``running = momentum * batch + (1 - momentum) * running``, the variance unbiased (Ioffe and Szegedy 2015,
    arXiv:1502.03167, section 3.1); ``momentum=None`` is the cumulative average. Without tracking nothing changes.
    A batch without values counts as a batch and leaves the averages alone.
    """
    counters: list[Tensor] = []
    running: list[Tensor] = []
    batches: list[Tensor] = []
    old: list[float] = []
    new: list[float] = []
    rest: list[tuple[Any, Sequence[Any]]] = []  # factors are tensors, or another dtype than the averages'
    for norm, batch in zip(norms, statistics, strict=True):
        buffers: Any = norm._buffers
        if not (norm.training and norm.track_running_stats) or buffers["running_mean"] is None:
            continue
        counters.append(buffers["num_batches_tracked"])
        mean, var, count = batch
        momentum: Any = norm.momentum
        if momentum is None or isinstance(count, Tensor) or buffers["running_mean"].dtype is not mean.dtype:
            rest.append((norm, batch))
        elif count > 0:
            # Through .data: eager's kernel does not count a new version either, so a graph of an earlier forward pass
            # in eval mode, which saved these buffers, stays valid.
            running += buffers["running_mean"].data, buffers["running_var"].data
            batches += mean, var
            old += 1 - momentum, 1 - momentum
            new += momentum, momentum * (count / (count - 1))
    if len(set(map(id, counters))) < len(counters):  # a foreach kernel would race with itself
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
