"""Fused residual blocks. Each says what its chain is; ``resnet_fused/chain`` runs it."""

from .. import reference
from ..chain.spec import BlockSpec
from ._block import FusedBlock
from ._eager import original_methods


class FusedBasicBlock(FusedBlock, reference.BasicBlock):
    """``torchvision.models.resnet.BasicBlock`` with one or two kernels in eval mode.

    Arguments, state_dict and numerics match torchvision's. Equivalent to
    ``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``, He et al. 2015 (arXiv:1512.03385), figure 5 left.
    ``(N, inplanes, H, W)`` gives ``(N, planes, ceil(H / stride), ceil(W / stride))`` in the same dtype: float32,
    bfloat16, float16 or float64. Raises the errors of :class:`resnet_fused.reference.BasicBlock`.

    >>> import torch
    >>> FusedBasicBlock(64, 64).eval()(torch.randn(1, 64, 8, 8)).shape
    torch.Size([1, 64, 8, 8])

    ``torchvision.models.ResNet(FusedBasicBlock, [2, 2, 2, 2])`` works, but its ``zero_init_residual`` checks for
    torchvision's own classes: for that, build with torchvision's block and call :func:`resnet_fused.convert`.
    """

    _eager_class = reference.BasicBlock
    _eager_methods = original_methods(reference.BasicBlock, "forward")
    _spec = BlockSpec(convs=("conv1", "conv2"), norms=(None, "bn1", "bn2"), shortcut="downsample")


class FusedBottleneck(FusedBlock, reference.Bottleneck):
    """``torchvision.models.resnet.Bottleneck`` with three kernels in eval mode.

    Arguments, state_dict and numerics match torchvision's. He et al. 2015 (arXiv:1512.03385), figure 5 right.
    ``groups`` gives ResNeXt (arXiv:1611.05431), ``base_width`` gives wide networks (arXiv:1605.07146). Shapes and
    dtypes are those of :class:`FusedBasicBlock` with ``4 * planes`` channels out.
    ``torchvision.models.ResNet(FusedBottleneck, [3, 4, 6, 3])`` works; for its ``zero_init_residual`` see
    :class:`FusedBasicBlock`.
    """

    _eager_class = reference.Bottleneck
    _eager_methods = original_methods(reference.Bottleneck, "forward")
    _spec = BlockSpec(convs=("conv1", "conv2", "conv3"), norms=(None, "bn1", "bn2", "bn3"), shortcut="downsample")


class FusedPreActBlock(FusedBlock, reference.PreActBlock):
    """:class:`resnet_fused.reference.PreActBlock` in two kernels on CUDA and three on the CPU.

    Equivalent to ``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, where the shortcut is
    ``downsample(a)``, or ``x`` without downsample. He et al. 2016 (arXiv:1603.05027), figure 4e. The constructor takes
    torchvision's arguments and raises the errors of :class:`resnet_fused.reference.BasicBlock`; shapes and dtypes are
    those of :class:`FusedBasicBlock`.
    """

    _eager_class = reference.PreActBlock
    _eager_methods = original_methods(reference.PreActBlock, "forward")
    _spec = BlockSpec(convs=("conv1", "conv2"), norms=("bn1", "bn2", None), shortcut="downsample", relu=False)


class FusedPreActBottleneck(FusedBlock, reference.PreActBottleneck):
    """:class:`resnet_fused.reference.PreActBottleneck` in three kernels on CUDA and four on the CPU.

    Equivalent to ``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut``; ``a`` and the shortcut are as in
    :class:`FusedPreActBlock`. He et al. 2016 (arXiv:1603.05027), section 4.2. Shapes and dtypes are those of
    :class:`FusedBottleneck`.
    """

    _eager_class = reference.PreActBottleneck
    _eager_methods = original_methods(reference.PreActBottleneck, "forward")
    _spec = BlockSpec(
        convs=("conv1", "conv2", "conv3"),
        norms=("bn1", "bn2", "bn3", None),
        shortcut="downsample",
        relu=False,
    )


class FusedPlainBlock(FusedBlock, reference.PlainBlock):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))))``: He et al. 2015 (arXiv:1512.03385), section 3.3."""

    _eager_class = reference.PlainBlock
    _eager_methods = original_methods(reference.PlainBlock, "forward")
    _spec = BlockSpec(convs=("conv1", "conv2"), norms=(None, "bn1", "bn2"))


class FusedPlainPreActBlock(FusedBlock, reference.PlainPreActBlock):
    """``conv2(relu(bn2(conv1(relu(bn1(x))))))``: a pre-activation block without shortcut."""

    _eager_class = reference.PlainPreActBlock
    _eager_methods = original_methods(reference.PlainPreActBlock, "forward")
    _spec = BlockSpec(convs=("conv1", "conv2"), norms=("bn1", "bn2", None), relu=False)
