"""Running statistics that training has changed between a forward pass in eval mode and its backward pass.

Eager's kernel updates them without counting a change, so autograd lets that pass. ReLUs and activations are then those
of the forward pass, while the gradients of the BatchNorm are taken with what the buffers hold now. Here both are made
from the raw output, so the statistics that the forward pass used are kept beside the buffers.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Change(NamedTuple):
    """From xhat with the statistics that were used to xhat with the present ones: ``scale * xhat + offset``."""

    scale: Tensor  # exactly 1 where nothing has changed
    offset: Tensor  # exactly 0 where nothing has changed

    def of_sum(self, sum_g_xhat: Tensor, sum_g: Tensor) -> Tensor:
        """The sum of ``g * xhat`` with the present statistics."""
        moved = torch.where(self.offset == 0, 0, self.offset * sum_g)
        return self.scale * sum_g_xhat + moved

    def of_affine(self, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Parameters that scale ``gamma * xhat + beta`` by a positive number: what was above zero still is."""
        return self.scale if gamma is None else self.scale * gamma, None if beta is None else self.scale * beta


def change(used: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor], eps: float) -> Change:
    """``used`` and ``now`` are mean and variance. No decision: a GPU does not have to be waited for."""
    means, variances = zip(used, now, strict=True)
    wide = torch.promote_types(means[0].dtype, torch.float32)
    mean_used, mean_now = (mean.to(wide) for mean in means)
    var_used, var_now = (var.to(wide) for var in variances)
    scale = torch.where(var_used == var_now, 1, ((var_used + eps) / (var_now + eps)).sqrt())
    offset = torch.where(mean_used == mean_now, 0, (mean_used - mean_now) * torch.rsqrt(var_now + eps))
    return Change(scale, offset)
