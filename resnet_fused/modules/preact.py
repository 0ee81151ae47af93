"""Pre-activation blocks: each convolution applies the *next* BatchNorm and ReLU, the last one the addition."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import ops, reference
from ..autograd import Place
from ..functional import pre_activates_on_reading
from ._block import FusedBlock, conv_add
from ._eager import as_defined
from ._format import nhwc
from ._read import (
    all_indexable,
    batch_norm,
    conv_alone,
    conv_norm,
    is_relu,
    kernel_dtype,
    only_reads,
    shortcut,
    shortcut_of,
)
from ._train import train


class FusedPreActBlock(FusedBlock, reference.PreActBlock):
    """:class:`resnet_fused.reference.PreActBlock` in two kernels on CUDA, elsewhere in three.

    He et al. 2016 (arXiv:1603.05027), figure 4e.

    Equivalent to ``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, where the shortcut is
    ``downsample(a)``, or ``x`` where there is no downsample. Torchvision's constructor arguments.
    """

    _eager_class = reference.PreActBlock
    _eager_methods = as_defined(reference.PreActBlock, "forward")
    _convs = ("conv1", "conv2")

    def _trained(self, x: Tensor, place: Place) -> Tensor | None:
        return train(self, x, self._convs, ("bn1", "bn2", None), relu=False, shortcut=True, place=place)

    def _fused(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast eager would normalise x before it rounds
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        last = conv_alone(children.get("conv2"), dtype)
        if norm is None or first is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_indexable(x, first, last):
            return None
        begun = _begin(self, nhwc(x), norm, (first, last), how)
        if begun is None:
            return None
        y, added = begun
        return conv_add(y, last, added, False, how, internal)


class FusedPreActBottleneck(FusedBlock, reference.PreActBottleneck):
    """:class:`resnet_fused.reference.PreActBottleneck` in three kernels on CUDA, elsewhere in four.

    He et al. 2016 (arXiv:1603.05027), section 4.2.

    Equivalent to ``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut``; the rest as
    :class:`FusedPreActBlock`.
    """

    _eager_class = reference.PreActBottleneck
    _eager_methods = as_defined(reference.PreActBottleneck, "forward")
    _convs = ("conv1", "conv2", "conv3")

    def _trained(self, x: Tensor, place: Place) -> Tensor | None:
        return train(self, x, self._convs, ("bn1", "bn2", "bn3", None), relu=False, shortcut=True, place=place)

    def _fused(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast eager would normalise x before it rounds
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        middle = conv_norm(children.get("conv2"), children.get("bn3"), dtype)
        last = conv_alone(children.get("conv3"), dtype)
        if norm is None or first is None or middle is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_indexable(x, first, middle, last):
            return None
        begun = _begin(self, nhwc(x), norm, (first, middle, last), how)
        if begun is None:
            return None
        y, added = begun
        y = ops.conv_bn_act(y, *middle, None, True, *how, internal=True)
        return conv_add(y, last, added, False, how, internal)


def _begin(
    block: FusedBlock,
    x: Tensor,
    norm: tuple[Any, ...],
    convs: Sequence[tuple[Any, ...]],
    how: tuple[bool, bool],
) -> tuple[Tensor, tuple[Any, ...]] | None:
    """The first convolution's output and what the last one adds; None where only the eager block is right."""
    if pre_activates_on_reading(x):
        added = shortcut(block, x, x.dtype, convs, norm)
        if added is None:
            return None
        return ops.bn_relu_conv_bn_act(x, *norm, *convs[0], None, True, *how, internal=True), added
    activated = ops.bn_add_act(x, *norm, None, True, internal=only_reads(shortcut_of(block)))
    added = shortcut(block, x if shortcut_of(block) is None else activated, x.dtype, convs)
    if added is None:
        return None
    return ops.conv_bn_act(activated, *convs[0], None, True, *how, internal=True), added
