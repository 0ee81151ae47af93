"""A :class:`Chain` in plain torch ops: where eager must run, and for second derivatives. Differentiable at will."""

import torch.nn.functional as F
from torch import Tensor

from .spec import Chain, Conv, Norm


def run(x: Tensor, chain: Chain) -> Tensor:
    """The chain's output; statistics are not synchronised. Autocast acts as on eager blocks, which add in place."""
    y, act0 = x, x
    for i, conv in enumerate(chain.convs):
        if chain.norms[i] is not None:
            y = F.relu(_normalise(y, chain.norms[i]))
        if i == 0:
            act0 = y
        y = _convolve(y, conv)
    y = _normalise(y, chain.norms[-1])
    shortcut = chain.shortcut
    if shortcut is not None and shortcut.residual is not None:
        y = y + shortcut.residual
    elif shortcut is not None:
        y = (y + _added(x, act0, chain)).to(y.dtype)
    y = F.relu(y) if chain.relu else y
    return y if chain.pool is None else F.max_pool2d(y, *chain.pool)


def _added(x: Tensor, act0: Tensor, chain: Chain) -> Tensor:
    shortcut = chain.shortcut
    assert shortcut is not None
    if shortcut.conv is None:
        return x
    source = act0 if shortcut.source is None else shortcut.source
    if shortcut.pre is not None:
        source = F.relu(_normalise(source, shortcut.pre))
    return _normalise(_convolve(source, shortcut.conv), shortcut.norm)


def _convolve(y: Tensor, conv: Conv) -> Tensor:
    return F.conv2d(y, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)


def _normalise(y: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return y
    return F.batch_norm(y, norm.mean, norm.var, norm.gamma, norm.beta, norm.mean is None, eps=norm.eps)
