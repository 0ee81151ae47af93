"""A chain in plain torch ops, differentiable any number of times; used for second derivatives."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .layout import ConvSlots, Layout, NormSlots


def chain(x: Tensor, tensors: Sequence[Tensor], layout: Layout) -> Tensor:
    """Computes the same as :mod:`.forward`, without synchronised statistics."""

    def get(slot: int | None) -> Tensor | None:
        return None if slot is None else tensors[slot]

    def conv(y: Tensor, c: ConvSlots) -> Tensor:
        return F.conv2d(y, tensors[c.weight], get(c.bias), c.stride, c.padding, c.dilation, c.groups)

    def normalise(y: Tensor, n: NormSlots | None) -> Tensor:
        if n is None:
            return y
        return F.batch_norm(y, get(n.mean), get(n.var), get(n.gamma), get(n.beta), training=n.trains, eps=n.eps)

    y, act0 = x, x
    for i, each in enumerate(layout.convs):
        if layout.norms[i] is not None:
            y = F.relu(normalise(y, layout.norms[i]))
        if i == 0:
            act0 = y
        y = conv(y, each)
    y = normalise(y, layout.norms[-1])
    if layout.identity:
        y = y + x
    elif layout.residual is not None:
        y = y + tensors[layout.residual]
    elif layout.projection is not None:
        y = y + normalise(conv(act0, layout.projection), layout.projection_norm)
    y = F.relu(y) if layout.relu else y
    return y if layout.pool is None else F.max_pool2d(y, *layout.pool)
