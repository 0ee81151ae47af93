"""The first and the last layers of a network: what its blocks leave to fuse."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import autograd, ops
from ..autograd import is_channels_last
from ._eager import Methods, replacement
from ._format import contiguous, convolves_to_channels_last, nhwc, nhwc_of_contiguous
from ._geometry import of_pool
from ._packing import OwnsPackedWeights
from ._read import all_indexable, batch_norm, conv_alone, conv_norm, indexable, is_relu, kernel_dtype, touched
from ._stages import anybody_looks_on, run_stages
from ._train import train, trains_fused


class RunsStages(OwnsPackedWeights):
    """Mixin for a network that begins with ``conv1``: runs its stages in channels_last, in training too.

    Whatever somebody else can see has eager's memory format: what follows the stages, hooks, modules that are not
    fused. ``network.eager_memory_format = True`` says that the rest is seen too, by means that cannot be noticed.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    conv1: Any
    eager_memory_format: bool = False

    def _stem(self, x: Tensor) -> Tensor:
        """What comes before the stages, in channels_last where it is fused."""
        raise NotImplementedError

    def _run(self, x: Tensor, stages: Iterable[nn.Module]) -> tuple[Tensor, bool]:
        """The stem and the stages, and whether eager's output would be channels_last; it may be so in any case."""
        y = self._stem(x)
        if anybody_looks_on(x):
            for stage in stages:
                y = stage(y)
            return y, True
        last = is_channels_last(y) and (type(self.conv1) is not nn.Conv2d or convolves_to_channels_last(x, self.conv1))
        if not self.eager_memory_format:
            return run_stages(y, last, stages)
        y = y if last else contiguous(y)
        for stage in stages:
            y = stage(y)
        return y, True


class FusedStem(RunsStages):
    """Mixin for a network with ``conv1``, ``bn1``, ``relu`` and perhaps ``maxpool``: gives it a fused ``_stem``.

    The eager one runs under the same conditions as in a :class:`~resnet_fused.modules._block.FusedBlock`.
    """

    _pools: ClassVar[bool] = True  # whether the network calls its maxpool
    bn1: Any
    relu: Any
    maxpool: Any

    def _features_of(self, x: Tensor, stages: Iterable[nn.Module]) -> Tensor:
        """The stem and the stages, in eager's memory format."""
        y, last = self._run(x, stages)
        return y if last else contiguous(y)

    def _stem(self, x: Tensor) -> Tensor:
        y = self._fused_stem(x)
        if y is not None:
            return nhwc(y)
        pool = self._pool_in_training(x)
        y = _trained_in_nhwc(self, x, "bn1", relu=True, pool=pool)
        if y is not None and pool is not None:
            return y
        if y is None:
            y = self.relu(self.bn1(self.conv1(x)))
        if not self._pools:
            return y
        return self._pooled(y, anybody_looks_on(x) or convolves_to_channels_last(x, self.conv1))

    def _pooled(self, y: Tensor, last: bool) -> Tensor:
        """y pooled; unless ``last``, y is contiguous in eager, which only a module that is not torch's own can see."""
        pool = self.maxpool
        unseen = last or (type(pool) in (nn.MaxPool2d, nn.Identity) and not touched(pool))
        return pool(y if unseen else contiguous(y))

    def _pool_in_training(self, x: Tensor) -> autograd.Pool | None:
        pool = self._modules.get("maxpool")
        geometry = of_pool(pool) if type(pool) is nn.MaxPool2d and not touched(pool) else None
        return None if geometry is None else autograd.pool_in(x.device, *geometry)

    def _fused_stem(self, x: Tensor) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        conv = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        if conv is None or not is_relu(children.get("relu")):
            return None
        pool = children.get("maxpool") if self._pools else None
        if self._pools and (pool is None or not is_plain_pool(pool)):
            return None
        pooling = None if pool is None or type(pool) is nn.Identity else of_pool(pool)
        then = None if pooling is None else (conv[0].shape[0], *pooling[0], *pooling[1:], 1)
        if not all_indexable(x, conv, then=then):
            return None
        x = nhwc(x.to(dtype))
        if pooling is None:
            return ops.conv_bn_act(x, *conv, None, True, *how)
        return ops.conv_bn_relu_pool(x, *conv, *pooling, *how)


class FusedPreActEnds(RunsStages):
    """Mixin for a pre-activation network: ``conv1`` stands alone, and ``bn1`` and ``relu`` follow the last block."""

    bn1: Any
    relu: Any

    def _features_of(self, x: Tensor, stages: Iterable[nn.Module]) -> Tensor:
        """The stem, the stages and the tail, in eager's memory format."""
        x, last = self._run(x, stages)
        if "_tail" in self.__dict__ or replacement(self, "_tail") is not None:
            return self._tail(x if last else contiguous(x))
        y = self._fused_tail(x)
        if y is None:
            return self.relu(self.bn1(x if last else contiguous(x)))
        return y if last else contiguous(y)

    def _stem(self, x: Tensor) -> Tensor:
        theirs = replacement(self, "_stem")
        if theirs is not None:
            return theirs(self, x)
        dtype, how = kernel_dtype(x)
        read = None if dtype is None else conv_alone(self._modules.get("conv1"), dtype)
        if dtype is not None and read is not None and all_indexable(x, read):
            return nhwc(ops.conv_bn_act(nhwc(x.to(dtype)), *read, None, False, *how))
        y = _trained_in_nhwc(self, x, None, relu=False)
        return self.conv1(x) if y is None else y

    def _tail(self, x: Tensor) -> Tensor:
        theirs = replacement(self, "_tail")
        if theirs is not None:
            return theirs(self, x)
        y = self._fused_tail(x)
        return self.relu(self.bn1(x)) if y is None else y

    def _fused_tail(self, x: Tensor) -> Tensor | None:
        dtype, _ = kernel_dtype(x)
        norm = batch_norm(self._modules.get("bn1"))
        if dtype is None or norm is None or not is_relu(self._modules.get("relu")) or not indexable(x):
            return train(self, x, (), ("bn1",), relu=True, shortcut=False)
        return ops.bn_add_act(x, *norm, None, True)


def _trained_in_nhwc(
    network: nn.Module, x: Tensor, norm: str | None, *, relu: bool, pool: autograd.Pool | None = None
) -> Tensor | None:
    """What the training path makes of a stem, None where eager is right."""
    if not trains_fused(network, x):
        return None
    last = convolves_to_channels_last(x, network._modules.get("conv1"))
    z = nhwc(x) if last else nhwc_of_contiguous(x)
    place = autograd.Place(hidden=not last)
    return train(network, z, ("conv1",), (None, norm), relu=relu, shortcut=False, place=place, pool=pool)


def is_plain_pool(pool: nn.Module) -> bool:
    """Whether the stem's kernel can pool as this module does (``nn.Identity``: not at all)."""
    if touched(pool):
        return False
    if type(pool) is nn.Identity:
        return True
    return type(pool) is nn.MaxPool2d and of_pool(pool) is not None
