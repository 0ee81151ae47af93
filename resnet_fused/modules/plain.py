"""Fused blocks of networks without shortcuts."""

from torch import Tensor

from .. import ops, reference
from .._policy import fuses_pre_activation
from ..autograd import Visibility
from ._block import FusedBlock
from ._eager import original_methods
from ._format import nhwc
from ._read import all_convs_indexable, batch_norm, conv_norm, conv_without_norm, is_relu, kernel_dtype
from ._train import train


class FusedPlainBlock(FusedBlock, reference.PlainBlock):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))))``: He et al. 2015 (arXiv:1512.03385), section 3.3."""

    _eager_class = reference.PlainBlock
    _eager_methods = original_methods(reference.PlainBlock, "forward")
    _convs = ("conv1", "conv2")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(self, x, self._convs, (None, "bn1", "bn2"), relu=True, shortcut=False, visibility=visibility)

    def _fused_inference(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, options = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        first = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        last = conv_norm(children.get("conv2"), children.get("bn2"), dtype)
        if first is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_convs_indexable(x, first, last):
            return None
        y = ops.conv_bn_act(nhwc(x).to(dtype), *first, None, True, *options, internal=True)
        return ops.conv_bn_act(y, *last, None, True, *options, internal=internal)


class FusedPlainPreActBlock(FusedBlock, reference.PlainPreActBlock):
    """``conv2(relu(bn2(conv1(relu(bn1(x))))))``: a pre-activation block without shortcut."""

    _eager_class = reference.PlainPreActBlock
    _eager_methods = original_methods(reference.PlainPreActBlock, "forward")
    _convs = ("conv1", "conv2")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(self, x, self._convs, ("bn1", "bn2", None), relu=False, shortcut=False, visibility=visibility)

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
        z = nhwc(x)
        if fuses_pre_activation(z):
            y = ops.bn_relu_conv_bn_act(z, *norm, *first, None, True, *options, internal=True)
        else:
            activated = ops.bn_add_act(z, *norm, None, True, internal=True)
            y = ops.conv_bn_act(activated, *first, None, True, *options, internal=True)
        return ops.conv_bn_act(y, *last, None, False, *options, internal=internal)
