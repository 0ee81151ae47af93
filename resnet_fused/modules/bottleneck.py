"""The fused bottleneck block: three convolution kernels."""

from torch import Tensor

from .. import ops, reference
from ..autograd import Visibility
from ._block import FusedBlock, conv_add
from ._eager import original_methods
from ._format import nhwc
from ._read import all_convs_indexable, conv_norm, is_relu, kernel_dtype, shortcut_args
from ._train import train


class FusedBottleneck(FusedBlock, reference.Bottleneck):
    """``torchvision.models.resnet.Bottleneck`` with three kernels in eval mode.

    Arguments, state_dict and numerics match torchvision's. He et al. 2015 (arXiv:1512.03385), figure 5 right.
    ``groups`` gives ResNeXt (arXiv:1611.05431), ``base_width`` gives wide networks (arXiv:1605.07146).
    ``torchvision.models.ResNet(FusedBottleneck, [3, 4, 6, 3])`` works; for its ``zero_init_residual`` see
    :class:`FusedBasicBlock`.
    """

    _eager_class = reference.Bottleneck
    _eager_methods = original_methods(reference.Bottleneck, "forward")
    _convs = ("conv1", "conv2", "conv3")

    def _fused_train(self, x: Tensor, visibility: Visibility) -> Tensor | None:
        return train(self, x, self._convs, (None, "bn1", "bn2", "bn3"), relu=True, shortcut=True, visibility=visibility)

    def _fused_inference(self, x: Tensor, internal: bool) -> Tensor | None:
        dtype, options = kernel_dtype(x)
        if dtype is None:
            return None
        children = self._modules
        first = conv_norm(children.get("conv1"), children.get("bn1"), dtype)
        middle = conv_norm(children.get("conv2"), children.get("bn2"), dtype)
        last = conv_norm(children.get("conv3"), children.get("bn3"), dtype)
        if first is None or middle is None or last is None or not is_relu(children.get("relu")):
            return None
        if not all_convs_indexable(x, first, middle, last):
            return None
        z = nhwc(x)
        shortcut = shortcut_args(self, z, dtype, (first, middle, last))
        if shortcut is None:
            return None
        y = ops.conv_bn_act(z.to(dtype), *first, None, True, *options, internal=True)
        y = ops.conv_bn_act(y, *middle, None, True, *options, internal=True)
        return conv_add(y, last, shortcut, True, options, internal)
