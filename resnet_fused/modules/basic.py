"""The fused basic block: two convolution kernels, or one kernel for the whole block."""

from typing import Any

from torch import Tensor

from .. import ops, reference
from ..autograd import Visibility
from ._block import FusedBlock, conv_add
from ._eager import original_methods
from ._format import nhwc
from ._read import all_convs_indexable, conv_norm, is_relu, kernel_dtype, shortcut_args
from ._train import train

_GEOMETRY = 7  # index of stride, padding, dilation, groups in the tuple of conv_norm


class FusedBasicBlock(FusedBlock, reference.BasicBlock):
    """``torchvision.models.resnet.BasicBlock`` with one or two kernels in eval mode.

    Arguments, state_dict and numerics match torchvision's. Equivalent to
    ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, He et al. 2015 (arXiv:1512.03385), figure 5 left.

    ``torchvision.models.ResNet(FusedBasicBlock, [2, 2, 2, 2])`` works, but its ``zero_init_residual`` checks for
    torchvision's own classes: for that, build with torchvision's block and call :func:`resnet_fused.convert`.
    """

    _eager_class = reference.BasicBlock
    _eager_methods = original_methods(reference.BasicBlock, "forward")
    _convs = ("conv1", "conv2")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(self, x, self._convs, (None, "bn1", "bn2"), relu=True, shortcut=True, visibility=visibility)

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
        z = nhwc(x)
        shortcut = shortcut_args(self, z, dtype, (first, last))
        if shortcut is None:
            return None
        if len(shortcut) == 1 and shortcut[0] is z and _keeps_shape(first, z) and _keeps_shape(last, z):
            return ops.basic_block(z, *first[:_GEOMETRY], *last[:_GEOMETRY], *options, internal=internal)
        y = ops.conv_bn_act(z.to(dtype), *first, None, True, *options, internal=True)
        return conv_add(y, last, shortcut, True, options, internal)


def _keeps_shape(conv: tuple[Any, ...], x: Tensor) -> bool:
    """Whether ``conv`` fits the op basic_block: 3x3, stride and padding 1, as many output as input channels."""
    channels = x.shape[1]
    return conv[0].shape == (channels, channels, 3, 3) and conv[_GEOMETRY:] == ((1, 1), (1, 1), (1, 1), 1)
