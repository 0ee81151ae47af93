"""Pre-activation blocks: each convolution applies the *next* BatchNorm and ReLU, the last one the addition."""

from torch import Tensor

from .. import ops, reference
from ..functional import kernel_dtype
from ._block import FusedBlock, as_eager, conv_add, nhwc
from ._read import batch_norm, conv_alone, conv_norm, is_relu, shortcut


class FusedPreActBlock(FusedBlock, reference.PreActBlock):
    """:class:`resnet_fused.reference.PreActBlock` in three kernels (He et al. 2016, arXiv:1603.05027, figure 4e).

    Equivalent to ``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, where the shortcut is
    ``downsample(a)``, or ``x`` where there is no downsample. Torchvision's constructor arguments.
    """

    _eager_class = reference.PreActBlock

    def _fused(self, x: Tensor) -> Tensor | None:
        dtype, keep = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast eager would normalise x before it rounds
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        last = conv_alone(children.get("conv2"), dtype)
        if norm is None or first is None or last is None or not is_relu(children.get("relu")):
            return None
        z = nhwc(x)
        activated = ops.bn_add_act(z, *norm, None, True)
        added = shortcut(self, z if _is_identity(self) else activated, dtype, last[0].shape[0])
        if added is None:
            return None
        y = ops.conv_bn_act(activated, *first, None, True, keep)
        return as_eager(conv_add(y, last, added, False, keep), x, first, last)


class FusedPreActBottleneck(FusedBlock, reference.PreActBottleneck):
    """:class:`resnet_fused.reference.PreActBottleneck` in four kernels (He et al. 2016, arXiv:1603.05027).

    Equivalent to ``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut``; the rest as
    :class:`FusedPreActBlock`.
    """

    _eager_class = reference.PreActBottleneck

    def _fused(self, x: Tensor) -> Tensor | None:
        dtype, keep = kernel_dtype(x)
        if dtype is not x.dtype:  # under autocast eager would normalise x before it rounds
            return None
        children = self._modules
        norm = batch_norm(children.get("bn1"))
        first = conv_norm(children.get("conv1"), children.get("bn2"), dtype)
        middle = conv_norm(children.get("conv2"), children.get("bn3"), dtype)
        last = conv_alone(children.get("conv3"), dtype)
        if norm is None or first is None or middle is None or last is None or not is_relu(children.get("relu")):
            return None
        z = nhwc(x)
        activated = ops.bn_add_act(z, *norm, None, True)
        added = shortcut(self, z if _is_identity(self) else activated, dtype, last[0].shape[0])
        if added is None:
            return None
        y = ops.conv_bn_act(activated, *first, None, True, keep)
        y = ops.conv_bn_act(y, *middle, None, True, keep)
        return as_eager(conv_add(y, last, added, False, keep), x, first, middle, last)


def _is_identity(block: FusedBlock) -> bool:
    return block._modules.get("downsample") is None and block.__dict__.get("downsample") is None
