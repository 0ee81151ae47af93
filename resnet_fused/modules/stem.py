"""Fused stems and tails: the layers of a network before its first block and after its last."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import chain
from ..chain import layers, read
from ..chain.memory_format import (
    contiguous,
    conv_outputs_channels_last,
    has_channels_last_weight,
    is_channels_last,
    nhwc_with_contiguous_grad,
)
from ..chain.norms import is_norm
from ..chain.program import abandon, nhwc
from ..chain.spec import BlockSpec, Reason, Visibility
from ._eager import Methods, replacement
from ._head import run_head
from ._packing import OwnsPackedWeights
from ._replay import replayed
from ._stages import is_observed, run_stages

_STEM = BlockSpec(convs=("conv1",), norms=(None, "bn1"), part="stem")
_POOLED_STEM = _STEM._replace(pool="maxpool", part="stem and pooling")
_CONV_STEM = BlockSpec(convs=("conv1",), norms=(None, None), relus=(), relu=False, part="stem")
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_TAIL = BlockSpec(convs=(), norms=("bn1",), part="tail")


class RunsStages(OwnsPackedWeights):
    """Mixin for a network that starts with ``conv1``: runs its stages in channels_last, in training too.

    Tensors that user code can observe have eager's memory format: the output of the stages, and the inputs of hooks and
    of modules that are not fused. Set ``network.eager_memory_format = True`` if code observes other activations in ways
    that cannot be detected.
    """

    _eager_class: ClassVar[type[nn.Module]]
    _eager_methods: ClassVar[Methods]
    _spec: ClassVar[Any]  # a layers.Spec
    conv1: Any
    eager_memory_format: bool = False

    def _stem(self, x: Tensor) -> Tensor:
        """The output of the layers before the stages; channels_last if fused."""
        raise NotImplementedError

    def _run(self, x: Tensor, names: Iterable[str]) -> tuple[Tensor, bool]:
        """Runs stem and stages; returns the output and whether eager's output would be channels_last."""
        return replayed(self, x, "features", ("_stem",), lambda: self._run_parts(x, names))

    def _run_parts(self, x: Tensor, names: Iterable[str]) -> tuple[Tensor, bool]:
        y = self._stem(x)
        stages: list[nn.Module] = [getattr(self, name) for name in names]
        if is_observed(x):
            abandon()
            for stage in stages:
                y = stage(y)
            return y, True
        last = is_channels_last(y) and _outputs_channels_last(self.conv1, x) is not False
        if not self.eager_memory_format:
            return run_stages(y, last, stages)
        abandon()
        y = y if last else contiguous(y)
        for stage in stages:
            y = stage(y)
        return y, True


class FusedStem(RunsStages):
    """Mixin for a network with ``conv1``, ``bn1``, a ReLU and optionally ``maxpool``: provides a fused ``_stem``.

    The eager stem runs under the same conditions as in :class:`~resnet_fused.modules._block.FusedBlock`.
    """

    _spec: ClassVar[Any] = _STEM
    _pooled_spec: ClassVar[Any] = _POOLED_STEM  # the same with ``maxpool``
    _pools: ClassVar[bool] = True  # whether the network calls its maxpool
    _relu: ClassVar[str] = "relu"
    bn1: Any
    maxpool: Any
    avgpool: Any
    fc: Any

    def _features_of(self, x: Tensor, stages: Iterable[str] = _LAYERS) -> Tensor:
        """The output of stem and stages in eager's memory format."""
        y, last = self._run(x, stages)
        return y if last else contiguous(y)

    def _logits_of(self, x: Tensor) -> Tensor:
        """The output of stem, stages, ``avgpool`` and ``fc``."""
        return replayed(self, x, "logits", ("_stem",), lambda: (self._run_logits(x), False))[0]  # type: ignore[no-any-return]

    def _run_logits(self, x: Tensor) -> Tensor:
        y, last = self._run(x, _LAYERS)
        logits = run_head(y, self.avgpool, self.fc)
        if logits is not None:
            return logits
        abandon()
        return self.fc(torch.flatten(self.avgpool(y if last else contiguous(y)), 1))  # type: ignore[no-any-return]

    def _stem(self, x: Tensor) -> Tensor:
        y = _run_stem(self, self._pooled_spec, x) if self._pools else None
        if y is not None:
            return y
        y = _run_stem(self, self._spec, x)
        if y is None or self._pools:
            abandon()
        if y is None:
            y = getattr(self, self._relu)(self.bn1(self.conv1(x)))
        if not self._pools:
            return y
        pool = self.maxpool
        is_seen = type(pool) not in (nn.MaxPool2d, nn.Identity) or layers.has_hooks_or_patches(pool)
        last = is_observed(x) or _outputs_channels_last(self.conv1, x) is not False
        return pool(contiguous(y) if is_seen and not last else y)


class FusedPreActEnds(RunsStages):
    """Mixin for a pre-activation network: a stem of ``conv1`` alone, and ``bn1`` and ``relu`` after the last block."""

    _spec: ClassVar[Any] = _STEM  # of all layers outside the stages
    bn1: Any
    relu: Any

    def _features_of(self, x: Tensor, stages: Iterable[str] = _LAYERS) -> Tensor:
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
            abandon()
            return override(self, x)
        y = _run_stem(self, _CONV_STEM, x)
        if y is not None:
            return y
        abandon()
        return self.conv1(x)

    def _tail(self, x: Tensor) -> Tensor:
        override = replacement(self, "_tail")
        if override is not None:
            return override(self, x)
        y = self._fused_tail(x)
        return self.relu(self.bn1(x)) if y is None else y

    def _fused_tail(self, x: Tensor) -> Tensor | None:
        how = read.block(self, _TAIL, x)
        return None if isinstance(how, Reason) else chain.run(x, how)


def parts_of_stem(module: nn.Module, spec: layers.Spec) -> Iterator[nn.Module]:
    """The submodules that contain the stem's convolutions, and theirs: those of a deep stem."""
    names = layers.resolve(module, spec)
    for name in () if isinstance(names, Reason) else names.convs:
        owner = layers.find(module, name.rpartition(".")[0]) if "." in name else None
        if owner is not None:
            yield from owner.modules()


def _run_stem(network: nn.Module, spec: BlockSpec, x: Tensor) -> Tensor | None:
    """The stem's output in channels_last, or None if eager must run."""
    how = read.block(network, spec, x)
    if isinstance(how, Reason):
        return None
    if not how.trains:
        return nhwc(chain.run(nhwc(x), how, keep_packed=True))
    last = _outputs_channels_last(network._modules.get("conv1"), x)
    z = nhwc(x) if last else nhwc_with_contiguous_grad(x)
    return chain.run(z, how, visibility=Visibility(hidden=not last))


def _outputs_channels_last(conv1: Any, x: Tensor) -> bool | None:
    """Whether eager's ``conv1``, a convolution or several with their norms, returns channels_last; else None."""
    if type(conv1) is nn.Conv2d:
        return conv_outputs_channels_last(x, conv1)
    if type(conv1) is not nn.Sequential:
        return None
    if not all(type(layer) in (nn.Conv2d, nn.ReLU) or is_norm(layer) for layer in conv1):
        return None
    return is_channels_last(x) or any(has_channels_last_weight(layer) for layer in conv1 if type(layer) is nn.Conv2d)
