"""Handles running statistics that change between a forward pass in eval mode and its backward pass.

Eager's kernel updates running statistics without bumping their version, so autograd does not detect it. In eager, ReLU
masks and activations are then those of the forward pass, while BatchNorm's gradients use the buffers' current values.
This path recomputes both from the pre-BN output, so the statistics used in the forward pass are saved as copies.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Change(NamedTuple):
    """Maps xhat with the saved statistics to xhat with the current ones: ``scale * xhat + offset``."""

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
