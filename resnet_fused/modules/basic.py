"""The basic block: two fused convolutions."""

from typing import Any

from torch import Tensor

from .. import ops, reference
from ..autograd import Place
from ._block import FusedBlock, conv_add
from ._eager import as_defined
from ._format import nhwc
from ._read import all_indexable, conv_norm, is_relu, kernel_dtype, shortcut
from ._train import train

_GEOMETRY = 7  # where stride, padding, dilation and groups begin in what conv_norm reads


class FusedBasicBlock(FusedBlock, reference.BasicBlock):
    """``torchvision.models.resnet.BasicBlock`` (same arguments, state_dict, numerics), two kernels or one in eval mode.

    Equivalent to ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, He et al. 2015 (arXiv:1512.03385),
    figure 5. ``torchvision.models.ResNet(FusedBasicBlock, [2, 2, 2, 2])`` works; its ``zero_init_residual``
    looks for torchvision's own classes, so for that build with those and :func:`resnet_fused.convert`.
    """

    _eager_class = reference.BasicBlock
    _eager_methods = as_defined(reference.BasicBlock, "forward")
    _convs = ("conv1", "conv2")

    def _trained(self, x: Tensor, place: Place) -> Tensor | None:
        return train(self, x, self._convs, (None, "bn1", "bn2"), relu=True, shortcut=True, place=place)

    def _fused(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        first = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        last = conv_norm(children.get("conv2"), children.get("bn2"), dtype)
        if first is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_indexable(x, first, last):
            return None
        z = nhwc(x)
        added = shortcut(self, z, dtype, (first, last))
        if added is None:
            return None
        if len(added) == 1 and added[0] is z and _keeps_shape(first, z) and _keeps_shape(last, z):
            return ops.basic_block(z, *first[:_GEOMETRY], *last[:_GEOMETRY], *how, internal=internal)
        y = ops.conv_bn_act(z.to(dtype), *first, None, True, *how, internal=True)
        return conv_add(y, last, added, True, how, internal)


def _keeps_shape(conv: tuple[Any, ...], x: Tensor) -> bool:
    """Whether a convolution is the op basic_block's: 3x3, stride and padding 1, as many channels out as in."""
    channels = x.shape[1]
    return conv[0].shape == (channels, channels, 3, 3) and conv[_GEOMETRY:] == ((1, 1), (1, 1), (1, 1), 1)
