"""Batch statistics of one process or of a process group, and the update of running statistics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import ops
from .spec import Norm


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


def synchronises(norm: Any) -> bool:
    """Whether batch statistics span several processes, by the condition of ``nn.SyncBatchNorm``."""
    distributed = torch.distributed
    if not isinstance(norm, nn.SyncBatchNorm) or not norm.training:
        return False
    if not (distributed.is_available() and distributed.is_initialized()):
        return False
    return distributed.get_world_size(norm.process_group) > 1


def process_groups(norms: Sequence[Norm]) -> set[str]:
    """The names of the process groups over which these BatchNorms synchronise."""
    modules: list[Any] = [norm.module for norm in norms if norm.sync]
    groups: list[Any] = [module.process_group or torch.distributed.group.WORLD for module in modules]
    return {str(group.group_name) for group in groups}


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


def update_running(norms: Sequence[Any], statistics: Sequence[Sequence[Any]]) -> None:
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
        if buffers["num_batches_tracked"] is not None:
            counters.append(buffers["num_batches_tracked"])
        written += map(id, (buffers["running_mean"], buffers["running_var"], *counters[-1:]))
        mean, var, count = batch
        momentum: Any = norm.momentum
        is_number = isinstance(momentum, int | float) and not isinstance(count, Tensor)
        if not is_number or buffers["running_mean"].dtype is not mean.dtype:
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
        counter = buffers["num_batches_tracked"]
        momentum = 0.0 if counter is None else counter.double().reciprocal()  # as in nn.BatchNorm2d
    unbiased = var * (count / (count - 1))
    for running, batch in ((buffers["running_mean"], mean), (buffers["running_var"], unbiased)):
        average = batch * momentum + running * (1 - momentum)
        running.data.copy_(torch.where(count > 0, average, running))


class Change(NamedTuple):
    """How running statistics changed between a forward pass in eval mode and its backward pass.

    Eager's kernel updates running statistics without bumping their version, so autograd does not detect it. In eager,
    ReLU masks and activations are then those of the forward pass, while BatchNorm's gradients use the buffers' current
    values. Backward recomputes both from the pre-BN output, so the forward pass saves copies of the statistics.

    Maps xhat with the saved statistics to xhat with the current ones: ``scale * xhat + offset``.
    """

    scale: Tensor  # exactly 1 where the statistics are unchanged
    offset: Tensor  # exactly 0 where the statistics are unchanged

    def of_sum(self, sum_g_xhat: Tensor, sum_g: Tensor) -> Tensor:
        """The sum of ``g * xhat`` with the current statistics."""
        moved = torch.where(self.offset == 0, 0, self.offset * sum_g)
        return self.scale * sum_g_xhat + moved

    def of_affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """gamma and beta times ``scale``, which is positive: the ReLU's mask does not change."""
        return self.scale if gamma is None else self.scale * gamma, None if beta is None else self.scale * beta


def statistics_change(saved: tuple[Tensor, Tensor], current: tuple[Tensor, Tensor], eps: float) -> Change:
    """``saved`` and ``current`` are (mean, variance). Branch-free, so that a GPU need not be synchronised."""
    means, variances = zip(saved, current, strict=True)
    wide = torch.promote_types(means[0].dtype, torch.float32)
    saved_mean, current_mean = (mean.to(wide) for mean in means)
    saved_var, current_var = (var.to(wide) for var in variances)
    scale = torch.where(saved_var == current_var, 1, ((saved_var + eps) / (current_var + eps)).sqrt())
    offset = torch.where(saved_mean == current_mean, 0, (saved_mean - current_mean) * torch.rsqrt(current_var + eps))
    return Change(scale, offset)
