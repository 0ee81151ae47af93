"""Fused pre-activation blocks: a convolution's epilogue applies the *next* BatchNorm and ReLU, the last one the add."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import ops, reference
from .._policy import ConvOptions, fuses_pre_activation
from ..autograd import Visibility
from ._block import FusedBlock, conv_add
from ._eager import original_methods
from ._format import nhwc
from ._read import (
    all_convs_indexable,
    batch_norm,
    conv_norm,
    conv_without_norm,
    is_read_only,
    is_relu,
    kernel_dtype,
    shortcut_args,
    shortcut_of,
)
from ._train import train


class FusedPreActBlock(FusedBlock, reference.PreActBlock):
    """:class:`resnet_fused.reference.PreActBlock` in two kernels on CUDA and three on the CPU.

    Equivalent to ``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, where the shortcut is
    ``downsample(a)``, or ``x`` without downsample. He et al. 2016 (arXiv:1603.05027), figure 4e. The constructor takes
    torchvision's arguments.
    """

    _eager_class = reference.PreActBlock
    _eager_methods = original_methods(reference.PreActBlock, "forward")
    _convs = ("conv1", "conv2")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(self, x, self._convs, ("bn1", "bn2", None), relu=False, shortcut=True, visibility=visibility)

    def _fused_inference(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, options = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast, eager normalises x before it rounds to autocast's dtype
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        last = conv_without_norm(children.get("conv2"), dtype)
        if norm is None or first is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_convs_indexable(x, first, last):
            return None
        started = _first_conv(self, nhwc(x), norm, (first, last), options)
        if started is None:
            return None
        y, shortcut = started
        return conv_add(y, last, shortcut, False, options, internal)


class FusedPreActBottleneck(FusedBlock, reference.PreActBottleneck):
    """:class:`resnet_fused.reference.PreActBottleneck` in three kernels on CUDA and four on the CPU.

    Equivalent to ``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut``; ``a`` and the shortcut are as in
    :class:`FusedPreActBlock`. He et al. 2016 (arXiv:1603.05027), section 4.2.
    """

    _eager_class = reference.PreActBottleneck
    _eager_methods = original_methods(reference.PreActBottleneck, "forward")
    _convs = ("conv1", "conv2", "conv3")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(
            self, x, self._convs, ("bn1", "bn2", "bn3", None), relu=False, shortcut=True, visibility=visibility
        )

    def _fused_inference(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, options = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast, eager normalises x before it rounds to autocast's dtype
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        middle = conv_norm(children.get("conv2"), children.get("bn3"), dtype)
        last = conv_without_norm(children.get("conv3"), dtype)
        if norm is None or first is None or middle is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_convs_indexable(x, first, middle, last):
            return None
        started = _first_conv(self, nhwc(x), norm, (first, middle, last), options)
        if started is None:
            return None
        y, shortcut = started
        y = ops.conv_bn_act(y, *middle, None, True, *options, internal=True)
        return conv_add(y, last, shortcut, False, options, internal)


def _first_conv(
    block: FusedBlock,
    x: Tensor,
    norm: tuple[Any, ...],
    convs: Sequence[tuple[Any, ...]],
    options: ConvOptions,
) -> tuple[Tensor, tuple[Any, ...]] | None:
    """The first convolution's output and the shortcut for :func:`conv_add`; None if the eager block must run."""
    if fuses_pre_activation(x):
        shortcut = shortcut_args(block, x, x.dtype, convs, norm)
        if shortcut is None:
            return None
        return ops.bn_relu_conv_bn_act(x, *norm, *convs[0], None, True, *options, internal=True), shortcut
    activated = ops.bn_add_act(x, *norm, None, True, internal=is_read_only(shortcut_of(block)))
    shortcut = shortcut_args(block, x if shortcut_of(block) is None else activated, x.dtype, convs)
    if shortcut is None:
        return None
    return ops.conv_bn_act(activated, *convs[0], None, True, *options, internal=True), shortcut
