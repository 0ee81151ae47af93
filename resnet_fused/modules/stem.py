"""Fused stems and tails: the layers of a network before its first block and after its last."""

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from .. import autograd, ops
from ..autograd import is_channels_last
from ._eager import Methods, replacement
from ._format import contiguous, conv_outputs_channels_last, nhwc, nhwc_with_contiguous_grad
from ._geometry import of_pool
from ._packing import OwnsPackedWeights
from ._read import (
    all_convs_indexable,
    batch_norm,
    conv_norm,
    conv_without_norm,
    has_hooks_or_patches,
    indexable,
    is_relu,
    kernel_dtype,
)
from ._stages import is_observed, run_stages
from ._train import train, trains_fused


class RunsStages(OwnsPackedWeights):
    """Mixin for a network that starts with ``conv1``: runs its stages in channels_last, in training too.

    Tensors that user code can observe have eager's memory format: the output of the stages, and the inputs of hooks and
    of modules that are not fused. Set ``network.eager_memory_format = True`` if code observes other activations in ways
    that cannot be detected.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    conv1: Any
    eager_memory_format: bool = False

    def _stem(self, x: Tensor) -> Tensor:
        """The output of the layers before the stages; channels_last if fused."""
        raise NotImplementedError

    def _run(self, x: Tensor, stages: Iterable[nn.Module]) -> tuple[Tensor, bool]:
        """Runs stem and stages; returns the output and whether eager's output would be channels_last."""
        y = self._stem(x)
        if is_observed(x):
            for stage in stages:
                y = stage(y)
            return y, True
        last = is_channels_last(y) and (type(self.conv1) is not nn.Conv2d or conv_outputs_channels_last(x, self.conv1))
        if not self.eager_memory_format:
            return run_stages(y, last, stages)
        y = y if last else contiguous(y)
        for stage in stages:
            y = stage(y)
        return y, True


class FusedStem(RunsStages):
    """Mixin for a network with ``conv1``, ``bn1``, ``relu`` and optionally ``maxpool``: provides a fused ``_stem``.

    The eager stem runs under the same conditions as in :class:`~resnet_fused.modules._block.FusedBlock`.
    """

    _pools: ClassVar[bool] = True  # whether the network calls its maxpool
    bn1: Any
    relu: Any
    maxpool: Any

    def _features_of(self, x: Tensor, stages: Iterable[nn.Module]) -> Tensor:
        """The output of stem and stages in eager's memory format."""
        y, last = self._run(x, stages)
        return y if last else contiguous(y)

    def _stem(self, x: Tensor) -> Tensor:
        y = self._fused_stem(x)
        if y is not None:
            return nhwc(y)
        pool = self._training_pool(x)
        y = _train_in_nhwc(self, x, "bn1", relu=True, pool=pool)
        if y is not None and pool is not None:
            return y
        if y is None:
            y = self.relu(self.bn1(self.conv1(x)))
        if not self._pools:
            return y
        return self._apply_pool(y, is_observed(x) or conv_outputs_channels_last(x, self.conv1))

    def _apply_pool(self, y: Tensor, last: bool) -> Tensor:
        """Pools y, made contiguous first if eager's y is contiguous (not ``last``) and user code can observe it."""
        pool = self.maxpool
        unobserved = last or (type(pool) in (nn.MaxPool2d, nn.Identity) and not has_hooks_or_patches(pool))
        return pool(y if unobserved else contiguous(y))

    def _training_pool(self, x: Tensor) -> autograd.Pool | None:
        pool = self._modules.get("maxpool")
        geometry = of_pool(pool) if type(pool) is nn.MaxPool2d and not has_hooks_or_patches(pool) else None
        return None if geometry is None else autograd.fusable_pool(x.device, *geometry)

    def _fused_stem(self, x: Tensor) -> Tensor | None:
        dtype, options = kernel_dtype(x)
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
        if not all_convs_indexable(x, conv, then=then):
            return None
        x = nhwc(x.to(dtype))
        if pooling is None:
            return ops.conv_bn_act(x, *conv, None, True, *options)
        return ops.conv_bn_relu_pool(x, *conv, *pooling, *options)


class FusedPreActEnds(RunsStages):
    """Mixin for a pre-activation network: a stem of ``conv1`` alone, and ``bn1`` and ``relu`` after the last block."""

    bn1: Any
    relu: Any

    def _features_of(self, x: Tensor, stages: Iterable[nn.Module]) -> Tensor:
        """The output of stem, stages and tail in eager's memory format."""
        x, last = self._run(x, stages)
        if "_tail" in self.__dict__ or replacement(self, "_tail") is not None:
            return self._tail(x if last else contiguous(x))
        y = self._fused_tail(x)
        if y is None:
            return self.relu(self.bn1(x if last else contiguous(x)))
        return y if last else contiguous(y)

    def _stem(self, x: Tensor) -> Tensor:
        override = replacement(self, "_stem")
        if override is not None:
            return override(self, x)
        dtype, options = kernel_dtype(x)
        conv = None if dtype is None else conv_without_norm(self._modules.get("conv1"), dtype)
        if dtype is not None and conv is not None and all_convs_indexable(x, conv):
            return nhwc(ops.conv_bn_act(nhwc(x.to(dtype)), *conv, None, False, *options))
        y = _train_in_nhwc(self, x, None, relu=False)
        return self.conv1(x) if y is None else y

    def _tail(self, x: Tensor) -> Tensor:
        override = replacement(self, "_tail")
        if override is not None:
            return override(self, x)
        y = self._fused_tail(x)
        return self.relu(self.bn1(x)) if y is None else y

    def _fused_tail(self, x: Tensor) -> Tensor | None:
        dtype, _ = kernel_dtype(x)
        norm = batch_norm(self._modules.get("bn1"))
        if dtype is None or norm is None or not is_relu(self._modules.get("relu")) or not indexable(x):
            return train(self, x, (), ("bn1",), relu=True, shortcut=False)
        return ops.bn_add_act(x, *norm, None, True)


def _train_in_nhwc(
    network: nn.Module, x: Tensor, norm: str | None, *, relu: bool, pool: autograd.Pool | None = None
) -> Tensor | None:
    """The training path's output of a stem, or None if eager must run."""
    if not trains_fused(network, x):
        return None
    last = conv_outputs_channels_last(x, network._modules.get("conv1"))
    z = nhwc(x) if last else nhwc_with_contiguous_grad(x)
    visibility = autograd.Visibility(hidden=not last)
    return train(network, z, ("conv1",), (None, norm), relu=relu, shortcut=False, visibility=visibility, pool=pool)


def is_plain_pool(pool: nn.Module) -> bool:
    """Whether the stem's kernel can apply this pooling module; ``nn.Identity`` means no pooling."""
    if has_hooks_or_patches(pool):
        return False
    if type(pool) is nn.Identity:
        return True
    return type(pool) is nn.MaxPool2d and of_pool(pool) is not None
