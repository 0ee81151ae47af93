"""The basic block: two fused convolutions."""

from torch import Tensor

from .. import ops, reference
from ..functional import kernel_dtype
from ._block import FusedBlock, as_eager, conv_add, nhwc
from ._read import conv_norm, is_relu, shortcut
from ._train import train


class FusedBasicBlock(FusedBlock, reference.BasicBlock):
    """``torchvision.models.resnet.BasicBlock`` (same arguments, state_dict, numerics), two kernels in eval mode.

    Equivalent to ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, He et al. 2015 (arXiv:1512.03385),
    figure 5. ``torchvision.models.ResNet(FusedBasicBlock, [2, 2, 2, 2])`` works; its ``zero_init_residual``
    looks for torchvision's own classes, so for that build with those and :func:`resnet_fused.convert`.
    """

    _eager_class = reference.BasicBlock

    def _trained(self, x: Tensor) -> Tensor | None:
        return train(self, x, ("conv1", "conv2"), (None, "bn1", "bn2"), relu=True, shortcut=True)

    def _fused(self, x: Tensor) -> Tensor | None:
        dtype, how = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        first = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        last = conv_norm(children.get("conv2"), children.get("bn2"), dtype)
        if first is None or last is None or not is_relu(children.get("relu")):
            return None
        z = nhwc(x)
        added = shortcut(self, z, dtype, last[0].shape[0])
        if added is None:
            return None
        y = ops.conv_bn_act(z.to(dtype), *first, None, True, *how)
        return as_eager(conv_add(y, last, added, True, how), x, first, last)
