"""Functional fused convolution + BatchNorm + residual + ReLU, for inference and training.

BatchNorm uses running statistics, as after ``module.eval()`` (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.1,
algorithm 2). Each docstring gives the equivalent eager code.

**Gradients.** If any tensor requires a gradient, a block or a layer runs as one differentiable op that saves its input,
the pre-BN outputs of its convolutions and its output (docs/training.md). The eager definition in
:mod:`resnet_fused.reference` runs instead, with ordinary autograd, on devices without that op, inside ``torch.func``
transforms, and during ``torch.jit.trace`` or ``torch.onnx.export``. Under ``torch.autocast`` convolutions run in
autocast's dtype, as in eager PyTorch.

**Tensors.** Activations are ``(N, C, H, W)`` with any strides, in float32, bfloat16, float16 or float64, on the CPU or
on CUDA. Without the CUDA kernels, CUDA tensors run eager. Weights are ``(K, C / groups, R, S)`` in x's dtype. BatchNorm
tensors are ``(K,)`` in any of these dtypes. Results have x's dtype and are channels_last if x or the weight is.

**Errors.** Wrong shapes, dtypes or devices raise ``RuntimeError``. Invalid Python arguments raise ``ValueError`` or
``TypeError``. The message contains the offending values.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from . import chain, ops
from .chain import eager, read
from .chain.spec import Chain, Conv, Norm, Pool, Reason, Shortcut

Pair = int | Sequence[int]


class BatchNorm(NamedTuple):
    """A BatchNorm in eval mode: ``weight * (y - running_mean) / sqrt(running_var + eps) + bias`` for each channel.

    All tensors have shape ``(C,)``, in any floating dtype. ``weight=None`` means 1 and ``bias=None`` means 0. Ioffe and
    Szegedy 2015 (arXiv:1502.03167, algorithm 2).

    >>> from torch import nn
    >>> BatchNorm.of(nn.BatchNorm2d(8, eps=1e-3)).eps
    0.001
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "BatchNorm":
        """The statistics, parameters and eps of ``module``: the same tensors, not copies.

        Raises:
            ValueError: ``module`` has no running statistics.
        """
        if module.running_mean is None or module.running_var is None:
            raise ValueError(
                "the BatchNorm keeps no running statistics (track_running_stats=False), so eval mode would use batch "
                "statistics; pass a BatchNorm with running_mean and running_var"
            )
        return cls(module.running_mean, module.running_var, module.weight, module.bias, module.eps)


class Projection(NamedTuple):
    """A projection shortcut: a 1x1 convolution with ``weight (K, C, 1, 1)`` and any stride, and an optional BatchNorm.

    ``bias`` is ``(K,)``, ``bn`` a BatchNorm of K channels. Option B of He et al. 2015 (arXiv:1512.03385, section 3.3).
    With ``pre``, a BatchNorm of C channels, the convolution reads ``relu(pre(x))`` instead of ``x``.
    """

    weight: Tensor
    bn: BatchNorm | None = None
    bias: Tensor | None = None
    stride: Pair = 1
    pre: BatchNorm | None = None


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(x, weight)) + residual)`` in one kernel: each activation is read once and written once.

    Equivalent::

        y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        y = F.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return F.relu(y + residual)

    This is the layer of He et al. 2015 (arXiv:1512.03385, sections 3.2 and 3.4).

    >>> import torch
    >>> x, weight = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3)
    >>> conv_bn_act(x, weight, BatchNorm(torch.zeros(32), torch.ones(32)), stride=2, padding=1).shape
    torch.Size([2, 32, 7, 7])

    Args:
        x: ``(N, C, H, W)``.
        weight: ``(K, C / groups, R, S)``.
        bn: of K channels; None omits it.
        bias: ``(K,)``, added before ``bn``.
        stride: an int, or two for height and width; so are ``padding`` (zeros, in pixels) and ``dilation``.
        residual: ``(N, K, OH, OW)``, the output's shape; None omits the addition.
        relu: whether a ReLU follows.
        keep_packed: cache the packed weight for later calls with a weight of the same bytes at the same address (CPU).
            :func:`forget_packed` frees it.

    Returns:
        ``(N, K, OH, OW)`` in x's dtype. As in torch, ``OH = (H + 2 * padding - dilation * (R - 1) - 1) // stride + 1``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit each other.
        ValueError: a geometry is not an int or two ints, or ``bn`` lacks running statistics.
        TypeError: ``bn`` is a module and not a :class:`BatchNorm`.
    """
    conv = _conv("", weight, bias, stride, padding, dilation, groups)
    shortcut = None if residual is None else Shortcut(residual=residual)
    return _run(x, Chain((conv,), (None, _norm(bn)), shortcut, relu), keep_packed)


def bn_relu_conv_bn_act(
    x: Tensor,
    pre: BatchNorm,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(relu(pre(x)), weight)) + residual)``: one kernel on CUDA, an extra pass first on the CPU.

    Equivalent: ``conv_bn_act(bn_add_act(x, pre), weight, bn, ...)``. ``pre`` is a BatchNorm of x's C channels. The
    convolution's padding is zero: it is not normalised. This is the start of a pre-activation block up to its second
    BatchNorm, He et al. 2016 (arXiv:1603.05027, figure 4e). Other arguments, result and errors as in
    :func:`conv_bn_act`.
    """
    conv = _conv("", weight, bias, stride, padding, dilation, groups)
    shortcut = None if residual is None else Shortcut(residual=residual)
    return _run(x, Chain((conv,), (_norm(pre), _norm(bn)), shortcut, relu), keep_packed)


def conv_bn_proj_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None,
    proj_x: Tensor,
    projection: Projection,
    *,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    relu: bool = True,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn(conv2d(x)) + bn'(conv1x1(proj_x)))``: the projection's output is never written to memory.

    Equivalent::

        a = proj_x if projection.pre is None else bn_add_act(proj_x, projection.pre)
        shortcut = conv_bn_act(a, projection.weight, projection.bn, stride=projection.stride, relu=False)
        return conv_bn_act(x, weight, bn, stride=stride, padding=padding, residual=shortcut)

    ``proj_x`` is ``(N, C', H', W')`` in x's dtype, and the projection's output has the shape of the other summand.
    Projection shortcuts are option B of He et al. 2015 (arXiv:1512.03385, sections 3.3 and 4.1). Other arguments,
    result and errors as in :func:`conv_bn_act`.
    """
    conv = _conv("", weight, bias, stride, padding, dilation, groups)
    shortcut = _projection(projection)._replace(source=proj_x)
    return _run(x, Chain((conv,), (None, _norm(bn)), shortcut, relu), keep_packed)


def conv_bn_relu_pool(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None = None,
    *,
    bias: Tensor | None = None,
    stride: Pair = 2,
    padding: Pair = 3,
    dilation: Pair = 1,
    groups: int = 1,
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
    keep_packed: bool = False,
) -> Tensor:
    """``max_pool2d(relu(bn(conv2d(x))))``: the stem of an ImageNet ResNet (arXiv:1512.03385, table 1).

    Equivalent::

        y = conv_bn_act(x, weight, bn, stride=stride, padding=padding)
        return F.max_pool2d(y, pool_kernel, pool_stride, pool_padding)

    The defaults are the paper's 7x7 stride-2 convolution and 3x3 stride-2 pooling. As in torch, a pooling window that
    contains NaN yields NaN. ``pool_padding`` is in pixels, at most half of ``pool_kernel``. Other arguments, result and
    errors as in :func:`conv_bn_act`.
    """
    conv = _conv("", weight, bias, stride, padding, dilation, groups)
    pool = Pool(
        _pair("pool_kernel", pool_kernel), _pair("pool_stride", pool_stride), _pair("pool_padding", pool_padding)
    )
    return _run(x, Chain((conv,), (None, _norm(bn)), pool=pool), keep_packed)


def bn_add_act(x: Tensor, bn: BatchNorm | None, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """``relu(bn(x) + residual)`` in one pass: the pre-activation of He et al. 2016 (arXiv:1603.05027, section 4.2).

    Equivalent: ``F.relu(F.batch_norm(x, ...) + residual)``. ``x`` and ``residual`` are ``(N, C, H, W)``, ``bn`` has C
    channels. As in eager PyTorch, autocast does not change the dtype. Errors as in :func:`conv_bn_act`.
    """
    shortcut = None if residual is None else Shortcut(residual=residual)
    return _run(x, Chain((), (_norm(bn),), shortcut, relu))


def basic_block(
    x: Tensor,
    conv1: Tensor,
    bn1: BatchNorm,
    conv2: Tensor,
    bn2: BatchNorm,
    *,
    stride: Pair = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut)``, both convolutions 3x3 with padding 1.

    ``conv1 (P, C, 3, 3)`` has the stride, ``conv2`` is ``(P, P, 3, 3)``. The shortcut is the projection of x, or x
    itself. ``(N, C, H, W)`` gives ``(N, P, OH, OW)`` with ``OH = ceil(H / stride)``. He et al. 2015 (arXiv:1512.03385),
    figure 5 left. Equivalent to :class:`resnet_fused.reference.BasicBlock` in eval mode. Errors as in
    :func:`conv_bn_act`; without projection C must be P and the stride 1.
    """
    convs = _same(conv1, stride), _same(conv2)
    return _run_block(x, Chain(convs, (None, _norm(bn1), _norm(bn2))), projection, keep_packed)


def bottleneck(
    x: Tensor,
    conv1: Tensor,
    bn1: BatchNorm,
    conv2: Tensor,
    bn2: BatchNorm,
    conv3: Tensor,
    bn3: BatchNorm,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    groups: int = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``relu(bn3(conv3(relu(bn2(conv2(relu(bn1(conv1(x)))))))) + shortcut)``: 1x1, 3x3, 1x1 convolutions.

    ``conv2 (W, W / groups, 3, 3)`` has the stride, dilation and groups (ResNeXt: Xie et al. 2017, arXiv:1611.05431,
    figure 3c), ``conv1`` is ``(W, C, 1, 1)`` and ``conv3 (K, W, 1, 1)``. The shortcut is the projection of x, or x
    itself. He et al. 2015 (arXiv:1512.03385), figure 5 right. Equivalent to :class:`resnet_fused.reference.Bottleneck`
    in eval mode. Result and errors as in :func:`basic_block`, with K channels.
    """
    convs = _same(conv1), _same(conv2, stride, dilation, groups), _same(conv3)
    return _run_block(x, Chain(convs, (None, _norm(bn1), _norm(bn2), _norm(bn3))), projection, keep_packed)


def preact_block(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    conv2: Tensor,
    *,
    stride: Pair = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``conv2(relu(bn2(conv1(a)))) + shortcut`` with ``a = relu(bn1(x))``, both convolutions 3x3 with padding 1.

    The shortcut is the projection of a, or x itself. ``bn1`` has x's C channels; other shapes as in
    :func:`basic_block`. He et al. 2016 (arXiv:1603.05027), figure 4e. Equivalent to
    :class:`resnet_fused.reference.PreActBlock` in eval mode.

    Raises:
        ValueError: ``projection.pre`` is given: the projection reads ``relu(bn1(x))`` already. Others as in
            :func:`conv_bn_act`.
    """
    convs = _same(conv1, stride), _same(conv2)
    return _run_block(x, Chain(convs, (_norm(bn1), _norm(bn2), None), relu=False), projection, keep_packed)


def preact_bottleneck(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    conv2: Tensor,
    bn3: BatchNorm,
    conv3: Tensor,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    groups: int = 1,
    projection: Projection | None = None,
    keep_packed: bool = False,
) -> Tensor:
    """``conv3(relu(bn3(conv2(relu(bn2(conv1(a))))))) + shortcut`` with ``a = relu(bn1(x))``.

    Arguments as in :func:`bottleneck`, shortcut as in :func:`preact_block`. He et al. 2016 (arXiv:1603.05027), section
    4.2. Equivalent to :class:`resnet_fused.reference.PreActBottleneck` in eval mode. Errors as in :func:`preact_block`.
    """
    convs = _same(conv1), _same(conv2, stride, dilation, groups), _same(conv3)
    norms = _norm(bn1), _norm(bn2), _norm(bn3), None
    return _run_block(x, Chain(convs, norms, relu=False), projection, keep_packed)


def forget_packed(weights: Tensor | Iterable[Tensor]) -> None:
    """Frees the packed copies that ``keep_packed=True`` caches for a weight, or for several.

    Results do not change. Thread-safe. Weights without a packed copy are ignored.
    """
    ops.forget_packed([weights] if isinstance(weights, Tensor) else list(weights))


def _run_block(x: Tensor, block: Chain, projection: Projection | None, keep_packed: bool) -> Tensor:
    if projection is not None:
        if projection.pre is not None and block.norms[0] is not None:
            raise ValueError("projection.pre is given, but a pre-activation block's projection reads relu(bn1(x))")
        shortcut = _projection(projection)
        source = None if shortcut.pre is None else x
        return _run(x, block._replace(shortcut=shortcut._replace(source=source)), keep_packed)
    how = read.setting(x)
    if not isinstance(how, Reason) and block.norms[0] is None:
        x = x.to(how.dtype)  # eager adds in place, so that the result has autocast's dtype
    return _run(x, block._replace(shortcut=Shortcut()), keep_packed)


def _run(x: Tensor, block: Chain, keep_packed: bool = False) -> Tensor:
    how = read.tensors(x, block)
    if not isinstance(how, Reason):
        return chain.run(x, how, keep_packed)
    shortcut = block.shortcut
    if shortcut is None or shortcut.source is None:
        return eager.run(x, block)
    # A projection of another tensor: fuse at least the two parts.
    assert shortcut.conv is not None
    projected = Chain((shortcut.conv,), (shortcut.pre, shortcut.norm), relu=False)
    residual = Shortcut(residual=_run(shortcut.source, projected))
    return _run(x, block._replace(shortcut=residual))


def _norm(bn: BatchNorm | None) -> Norm | None:
    if bn is None:
        return None
    if isinstance(bn, nn.Module):
        raise TypeError(f"bn is the module {type(bn).__name__}; pass BatchNorm.of(module)")
    given = [name for name, tensor in zip(bn._fields[:4], bn, strict=False) if tensor is not None]
    if not given:
        return None
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(f"the BatchNorm has only {', '.join(given)}; running_mean and running_var expected")
    return Norm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)


def _projection(projection: Projection) -> Shortcut:
    conv = _conv("projection.", projection.weight, projection.bias, projection.stride, 0, 1, 1)
    return Shortcut(conv, _norm(projection.bn), pre=_norm(projection.pre))


def _conv(
    name: str, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, dilation: Pair, groups: int
) -> Conv:
    pairs = (_pair(f"{name}stride", stride), _pair("padding", padding), _pair("dilation", dilation))
    return Conv(weight, bias, *pairs, groups)


def _same(weight: Tensor, stride: Pair = 1, dilation: Pair = 1, groups: int = 1) -> Conv:
    """A convolution that preserves height and width at stride 1 if the filter's size is odd."""
    height, width = _pair("dilation", dilation)
    padding = height * (weight.shape[2] // 2), width * (weight.shape[3] // 2)
    return _conv("", weight, None, stride, padding, (height, width), groups)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{name} is {value!r}; an int or two ints (height, width) expected")
    return pair  # type: ignore[return-value]
