"""The first and the last layers of a network: what its blocks leave to fuse."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import autograd, ops
from .._indexing import Window
from ..functional import kernel_dtype
from ._block import nhwc
from ._eager import Methods, replacement
from ._packing import OwnsPackedWeights
from ._read import all_indexable, batch_norm, conv_alone, conv_norm, indexable, is_relu, touched
from ._train import train, trains_fused


class FusedStem(OwnsPackedWeights):
    """Mixin for a network with ``conv1``, ``bn1``, ``relu`` and perhaps ``maxpool``: gives it a fused ``_stem``.

    The fused stem returns channels_last, so that a network built and fed in the default format runs its
    blocks in NHWC, in training too. The eager one, which runs under the same conditions as in a
    :class:`~resnet_fused.modules._block.FusedBlock`, leaves the format alone.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    conv1: Any
    bn1: Any
    relu: Any
    maxpool: Any

    def _stem(self, x: Tensor) -> Tensor:
        y = self._fused_stem(x)
        if y is not None:
            return y.contiguous(memory_format=torch.channels_last)
        if trains_fused(self, x):
            pool = self._pool_in_training(x)
            y = train(self, nhwc(x), ("conv1",), (None, "bn1"), relu=True, shortcut=False, pool=pool)
            if y is not None and pool is not None:
                return y
        if y is None:
            y = self.relu(self.bn1(self.conv1(x)))
        return self.maxpool(y) if "maxpool" in self._modules else y

    def _pool_in_training(self, x: Tensor) -> autograd.Pool | None:
        pool = self._modules.get("maxpool")
        if type(pool) is not nn.MaxPool2d or not is_plain_pool(pool):
            return None
        return autograd.pool_in(x.device, _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding))

    def _fused_stem(self, x: Tensor) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        conv = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        if conv is None or not is_relu(children.get("relu")):
            return None
        pool = children.get("maxpool")
        if pool is not None and not is_plain_pool(pool):
            return None
        pooling = None if pool is None or type(pool) is nn.Identity else _pooling(conv, pool)
        if not all_indexable(x, conv, then=pooling):
            return None
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        if pooling is None:
            return ops.conv_bn_act(x, *conv, None, True, *how)
        _, rows, columns, stride, padding, _ = pooling
        return ops.conv_bn_relu_pool(x, *conv, (rows, columns), stride, padding, *how)


class FusedPreActEnds(OwnsPackedWeights):
    """Mixin for a pre-activation network: ``conv1`` stands alone, and ``bn1`` and ``relu`` follow the last block.

    ``_stem`` returns channels_last where it is fused, as :class:`FusedStem`'s does.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    conv1: Any
    bn1: Any
    relu: Any

    def _stem(self, x: Tensor) -> Tensor:
        theirs = replacement(self, "_stem")
        if theirs is not None:
            return theirs(self, x)
        dtype, how = kernel_dtype(x)
        conv = None if dtype is None else conv_alone(self._modules.get("conv1"), dtype)
        if dtype is None or conv is None or not all_indexable(x, conv):
            return self.conv1(nhwc(x) if trains_fused(self, x) else x)
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        y = ops.conv_bn_act(x, *conv, None, False, *how)
        return y.contiguous(memory_format=torch.channels_last)

    def _tail(self, x: Tensor) -> Tensor:
        theirs = replacement(self, "_tail")
        if theirs is not None:
            return theirs(self, x)
        dtype, _ = kernel_dtype(x)
        norm = batch_norm(self._modules.get("bn1"))
        if dtype is None or norm is None or not is_relu(self._modules.get("relu")) or not indexable(x):
            y = train(self, x, (), ("bn1",), relu=True, shortcut=False)
            return self.relu(self.bn1(x)) if y is None else y
        return ops.bn_add_act(x, *norm, None, True)


def is_plain_pool(pool: nn.Module) -> bool:
    """Whether the stem's kernel can pool as this module does (``nn.Identity``: not at all)."""
    if touched(pool):
        return False
    if type(pool) is nn.Identity:
        return True
    return (
        type(pool) is nn.MaxPool2d and _pair(pool.dilation) == (1, 1) and not pool.ceil_mode and not pool.return_indices
    )


def _pooling(conv: tuple[Any, ...], pool: Any) -> Window:
    rows, columns = _pair(pool.kernel_size)
    return conv[0].shape[0], rows, columns, _pair(pool.stride), _pair(pool.padding), 1


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
