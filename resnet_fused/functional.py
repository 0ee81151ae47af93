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
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import autograd, ops, reference
from ._chain import NO_NORM, chain
from ._indexing import indexable
from ._policy import (
    PLAIN_TENSORS,
    caster,
    conv_windows,
    fuses_pre_activation,
    kernel_dtype,
    needs_eager,
    training_dtype,
)

Pair = int | Sequence[int]


class BatchNorm(NamedTuple):
    """A BatchNorm in eval mode: ``weight * (y - running_mean) / sqrt(running_var + eps) + bias`` for each channel.

    All tensors have shape (C,). ``weight=None`` means 1 and ``bias=None`` means 0. ``BatchNorm.of(module)`` reads an
    ``nn.BatchNorm2d``.
    """

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-5

    @classmethod
    def of(cls, module: nn.BatchNorm2d) -> "BatchNorm":
        """The statistics and parameters of ``module``, shared, not copied.

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

    ``bn=None``, ``residual=None`` and ``relu=False`` omit the respective step. ``residual`` has the output's shape
    ``(N, K, OH, OW)``. This is the layer of He et al. 2015 (arXiv:1512.03385, sections 3.2 and 3.4).

    ``keep_packed=True`` caches the packed weight for later calls with a weight of the same bytes at the same address;
    :func:`forget_packed` frees it.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    cast = caster(x, conv_windows((weight, *args[5:8])), weight, bias, *args[:4], residual)
    # Under autocast eager adds in the wider of the two dtypes, which is also the result's dtype.
    if cast is None or (cast.autocast and residual is not None and residual.dtype is not cast.dtype):
        result = _differentiable(x, [(weight, bias, *args[5:])], [NO_NORM, args[:5]], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, weight, bias, *args, residual, relu)
        return reference.conv_bn_act(*eager) if result is None else result
    return ops.conv_bn_act(cast(x), cast(weight), bias, *args, residual, relu, *cast.options(keep_packed))


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
    BatchNorm, He et al. 2016 (arXiv:1603.05027, figure 4e). Other arguments as in :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    pre_args = _bn(pre)
    cast = caster(x, conv_windows((weight, *args[5:8])), weight, bias, *pre_args[:4], *args[:4], residual)
    if cast is None or (cast.autocast and residual is not None and residual.dtype is not cast.dtype):
        result = _differentiable(x, [(weight, bias, *args[5:])], [pre_args, args[:5]], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, *pre_args, weight, bias, *args, residual, relu)
        return reference.bn_relu_conv_bn_act(*eager) if result is None else result
    options = cast.options(keep_packed)
    if cast.autocast:  # eager normalises before it rounds to autocast's dtype
        activated = ops.bn_add_act(x, *pre_args, None, True)
        return ops.conv_bn_act(cast(activated), cast(weight), bias, *args, residual, relu, *options)
    return ops.bn_relu_conv_bn_act(x, *pre_args, weight, bias, *args, residual, relu, *options)


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

    ``proj_x`` is ``(N, C', H', W')``. Projection shortcuts are option B of He et al. 2015 (arXiv:1512.03385, sections
    3.3 and 4.1). Other arguments as in :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    proj_args: tuple[Any, ...] = (*_bn(projection.bn), _pair("projection.stride", projection.stride))
    pre_args = _bn(projection.pre)
    proj_weight, proj_bias = projection.weight, projection.bias
    others = (proj_x, proj_weight, proj_bias, *proj_args[:4], *pre_args[:4])
    cast = caster(x, conv_windows((weight, *args[5:8])), weight, bias, *args[:4], *others)
    if proj_x.dim() == 4 and not indexable(proj_x):
        cast = None
    if cast is None:  # compute the shortcut separately
        shortcut_options: dict[str, Any] = {"bias": proj_bias, "stride": projection.stride, "relu": False}
        if projection.pre is None:
            shortcut = conv_bn_act(proj_x, proj_weight, projection.bn, **shortcut_options)
        else:
            shortcut = bn_relu_conv_bn_act(proj_x, projection.pre, proj_weight, projection.bn, **shortcut_options)
        geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return conv_bn_act(x, weight, bn, bias=bias, residual=shortcut, relu=relu, **geometry)
    if cast.autocast and projection.pre is not None:  # eager normalises before it rounds to autocast's dtype
        proj_x, pre_args = ops.bn_add_act(proj_x, *pre_args, None, True), _bn(None)
    main_args = (cast(x), cast(weight), bias, *args)
    shortcut_args = (cast(proj_x), cast(proj_weight), proj_bias, *proj_args, *pre_args)
    return ops.conv_bn_proj_act(*main_args, *shortcut_args, relu, *cast.options(keep_packed))


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
    contains NaN yields NaN. Other arguments as in :func:`conv_bn_act`.
    """
    args = _conv_args(bn, stride, padding, dilation, groups)
    pool = (_pair("pool_kernel", pool_kernel), _pair("pool_stride", pool_stride), _pair("pool_padding", pool_padding))
    cast = caster(x, conv_windows((weight, *args[5:8]), pool=pool), weight, bias, *args[:4])
    if cast is None:
        fused_pool = None if bn is None else autograd.fusable_pool(x.device, *pool)
        result = _differentiable(x, [(weight, bias, *args[5:])], [NO_NORM, args[:5]], pool=fused_pool)
        if result is None:
            eager: tuple[Any, ...] = (x, weight, bias, *args, *pool)
            return reference.conv_bn_relu_pool(*eager)
        return F.max_pool2d(result, *pool) if fused_pool is None else result
    return ops.conv_bn_relu_pool(cast(x), cast(weight), bias, *args, *pool, *cast.options(keep_packed))


def bn_add_act(x: Tensor, bn: BatchNorm | None, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """``relu(bn(x) + residual)`` in one pass: the pre-activation of He et al. 2016 (arXiv:1603.05027, section 4.2).

    Equivalent: ``F.relu(F.batch_norm(x, ...) + residual)``. ``residual`` has x's shape. As in eager PyTorch, autocast
    does not change the dtype.
    """
    args = _bn(bn)
    dtype, _ = kernel_dtype(x)
    if dtype is None or not indexable(x) or needs_eager(*args[:4], residual):
        result = None if bn is None else _differentiable(x, [], [args], residual=residual, relu=relu)
        eager: tuple[Any, ...] = (x, *args, residual, relu)
        return reference.bn_add_act(*eager) if result is None else result
    return ops.bn_add_act(x, *args, residual, relu)


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
    itself. He et al. 2015 (arXiv:1512.03385), figure 5 left. Equivalent to :class:`resnet_fused.reference.BasicBlock`
    in eval mode.
    """
    convs = [(conv1, stride, _same_padding(conv1), 1, 1), (conv2, 1, _same_padding(conv2), 1, 1)]
    result = _differentiable_block(x, convs, [None, bn1, bn2], projection)
    if result is not None:
        return result
    if projection is None and _pair("stride", stride) == (1, 1) and _keeps_shape(x, conv1) and _keeps_shape(x, conv2):
        first, second = _bn(bn1), _bn(bn2)
        cast = caster(x, (), conv1, conv2, *first[:4], *second[:4])
        if cast is not None and not cast.autocast:
            return ops.basic_block(x, conv1, None, *first, conv2, None, *second, *cast.options(keep_packed))
    y = conv_bn_act(x, conv1, bn1, stride=stride, padding=_same_padding(conv1), keep_packed=keep_packed)
    return _conv_add(y, conv2, bn2, x, projection, _same_padding(conv2), True, keep_packed)


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
    figure 3c). The shortcut is the projection of x, or x itself. He et al. 2015 (arXiv:1512.03385), figure 5 right.
    Equivalent to :class:`resnet_fused.reference.Bottleneck` in eval mode.
    """
    padding = _same_padding(conv2, dilation)
    convs = [(conv1, 1, (0, 0), 1, 1), (conv2, stride, padding, dilation, groups), (conv3, 1, (0, 0), 1, 1)]
    result = _differentiable_block(x, convs, [None, bn1, bn2, bn3], projection)
    if result is not None:
        return result
    y = conv_bn_act(x, conv1, bn1, keep_packed=keep_packed)
    y = conv_bn_act(
        y, conv2, bn2, stride=stride, padding=padding, dilation=dilation, groups=groups, keep_packed=keep_packed
    )
    return _conv_add(y, conv3, bn3, x, projection, 0, True, keep_packed)


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

    The shortcut is the projection of a, or x itself. He et al. 2016 (arXiv:1603.05027), figure 4e. Equivalent to
    :class:`resnet_fused.reference.PreActBlock` in eval mode.
    """
    convs = [(conv1, stride, _same_padding(conv1), 1, 1), (conv2, 1, _same_padding(conv2), 1, 1)]
    result = _differentiable_block(x, convs, [bn1, bn2, None], projection)
    if result is not None:
        return result
    first: dict[str, Any] = {"stride": stride, "padding": _same_padding(conv1), "keep_packed": keep_packed}
    y, shortcut, projection = _pre_activate(x, bn1, conv1, bn2, projection, first)
    return _conv_add(y, conv2, None, shortcut, projection, _same_padding(conv2), False, keep_packed)


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
    4.2. Equivalent to :class:`resnet_fused.reference.PreActBottleneck` in eval mode.
    """
    padding = _same_padding(conv2, dilation)
    convs = [(conv1, 1, (0, 0), 1, 1), (conv2, stride, padding, dilation, groups), (conv3, 1, (0, 0), 1, 1)]
    result = _differentiable_block(x, convs, [bn1, bn2, bn3, None], projection)
    if result is not None:
        return result
    y, shortcut, projection = _pre_activate(x, bn1, conv1, bn2, projection, {"keep_packed": keep_packed})
    y = conv_bn_act(
        y, conv2, bn3, stride=stride, padding=padding, dilation=dilation, groups=groups, keep_packed=keep_packed
    )
    return _conv_add(y, conv3, None, shortcut, projection, 0, False, keep_packed)


def forget_packed(weights: Tensor | Iterable[Tensor]) -> None:
    """Frees the packed copies that ``keep_packed=True`` caches for these weights.

    Results do not change. Thread-safe.
    """
    ops.forget_packed([weights] if isinstance(weights, Tensor) else list(weights))


def _pre_activate(
    x: Tensor,
    bn1: BatchNorm,
    conv1: Tensor,
    bn2: BatchNorm,
    projection: Projection | None,
    first: dict[str, Any],
) -> tuple[Tensor, Tensor, Projection | None]:
    """``relu(bn2(conv1(relu(bn1(x)))))``, then the shortcut's input and projection for :func:`_conv_add`."""
    if fuses_pre_activation(x):
        projection = None if projection is None else projection._replace(pre=bn1)
        return bn_relu_conv_bn_act(x, bn1, conv1, bn2, **first), x, projection
    a = bn_add_act(x, bn1)
    return conv_bn_act(a, conv1, bn2, **first), x if projection is None else a, projection


def _conv_add(
    x: Tensor,
    weight: Tensor,
    bn: BatchNorm | None,
    shortcut: Tensor,
    projection: Projection | None,
    padding: Pair,
    relu: bool,
    keep_packed: bool,
) -> Tensor:
    """The last convolution of a block. Eager blocks add in place, so the result has x's dtype under autocast too."""
    last: dict[str, Any] = {"padding": padding, "relu": relu, "keep_packed": keep_packed}
    if projection is None:
        return conv_bn_act(x, weight, bn, residual=shortcut.to(x.dtype), **last)
    return conv_bn_proj_act(x, weight, bn, shortcut, projection, **last)


def _differentiable(
    x: Tensor,
    convs: Sequence[tuple[Any, ...]],
    norms: Sequence[tuple[Any, ...]],
    *,
    projection: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None,
    residual: Tensor | None = None,
    identity: bool = False,
    relu: bool = True,
    pool: autograd.Pool | None = None,
) -> Tensor | None:
    """The differentiable op's output, arguments as in :func:`._chain.chain`. None without gradients or for eager."""
    if not torch.is_grad_enabled():
        return None
    tensors = [x, *(t for conv in convs for t in conv[:2]), *(t for norm in norms for t in norm[:4]), residual]
    if projection is not None:
        tensors += [*projection[0][:2], *projection[1][:4]]
    given = [t for t in tensors if t is not None]
    if not any(t.requires_grad for t in given) or any(type(t) not in PLAIN_TENSORS for t in given):
        return None
    dtype = training_dtype(x)
    if dtype is None or not indexable(x, conv_windows(*(conv[:1] + conv[2:5] for conv in convs), pool=pool)):
        return None
    return chain(x, dtype, convs, norms, projection, residual, identity, relu, pool)


def _differentiable_block(
    x: Tensor, convs: Sequence[tuple[Any, ...]], norms: Sequence[BatchNorm | None], projection: Projection | None
) -> Tensor | None:
    """A block as one differentiable op, or None. ``convs`` are ``(weight, stride, padding, dilation, groups)``."""
    if not torch.is_grad_enabled() or (projection is not None and projection.pre is not None):
        return None
    projection_args = None
    if projection is not None:
        stride = _pair("projection.stride", projection.stride)
        projection_args = (projection.weight, projection.bias, stride, (0, 0), (1, 1), 1), _bn(projection.bn)
    conv_args = [
        (weight, None, _pair("stride", stride), padding, _pair("dilation", dilation), groups)
        for weight, stride, padding, dilation, groups in convs
    ]
    return _differentiable(
        x,
        conv_args,
        [_bn(norm) for norm in norms],
        projection=projection_args,
        identity=projection_args is None,
        relu=norms[-1] is not None,
    )


def _bn(bn: BatchNorm | None) -> tuple[Any, ...]:
    """``(gamma, beta, mean, var, eps)``, in the ops' order."""
    if bn is None:
        return None, None, None, None, 0.0
    if isinstance(bn, nn.Module):
        raise TypeError(f"bn is the module {type(bn).__name__}; pass BatchNorm.of(module)")
    return bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps


def _conv_args(bn: BatchNorm | None, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> tuple[Any, ...]:
    """The ops' arguments between bias and residual."""
    pairs = (_pair("stride", stride), _pair("padding", padding), _pair("dilation", dilation))
    return (*_bn(bn), *pairs, groups)


def _pair(name: str, value: Pair) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) for v in pair):
        raise ValueError(f"{name} is {value!r}; an int or two ints (height, width) expected")
    return pair  # type: ignore[return-value]


def _keeps_shape(x: Tensor, weight: Tensor) -> bool:
    """Whether ``weight`` is 3x3 with as many output channels as x has channels."""
    return x.dim() == 4 and weight.shape == (x.shape[1], x.shape[1], 3, 3)


def _same_padding(weight: Tensor, dilation: Pair = 1) -> tuple[int, int]:
    """The padding that preserves height and width at stride 1 for odd kernel sizes."""
    height, width = _pair("dilation", dilation)
    return height * (weight.shape[2] // 2), width * (weight.shape[3] // 2)
