"""Eager definitions of every op: the specification of the kernels.

The functions accept any floating dtype. Tests evaluate them in float64 as the reference. Arguments have the names and
the order of the ops' schemas (``csrc/library.cpp``).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = int | Sequence[int]

CLOSED = 255  # argmax value of bn_relu_max_pool for windows whose maximum is zeroed by the ReLU


def bn_add_act(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """``act(bn(x) + residual)`` with running statistics (Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2).

    Without ``mean`` and ``var``, bn is the identity. ``act`` is ReLU, or with ``relu=False`` nothing.
    """
    if mean is not None:
        x = F.batch_norm(x, mean, var, gamma, beta, training=False, eps=eps)
    if residual is not None:
        x = x + residual
    return F.relu(x) if relu else x


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """``act(bn(conv2d(x)) + residual)``, the layer of He et al. 2015 (arXiv:1512.03385, section 3.4)."""
    y = F.conv2d(x, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)
    return bn_add_act(y, gamma, beta, mean, var, eps, residual, relu)


def bn_relu_conv_bn_act(
    x: Tensor,
    pre_gamma: Tensor | None,
    pre_beta: Tensor | None,
    pre_mean: Tensor,
    pre_var: Tensor,
    pre_eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """``act(bn(conv2d(relu(pre(x)))) + residual)``, where pre is a BatchNorm with running statistics.

    The start of a pre-activation block, He et al. 2016 (arXiv:1603.05027, figure 4e).
    """
    x = bn_add_act(x, pre_gamma, pre_beta, pre_mean, pre_var, pre_eps)
    return conv_bn_act(x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, residual, relu)


def conv_bn_proj_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    groups: int,
    proj_x: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor | None = None,
    proj_gamma: Tensor | None = None,
    proj_beta: Tensor | None = None,
    proj_mean: Tensor | None = None,
    proj_var: Tensor | None = None,
    proj_eps: float = 1e-5,
    proj_stride: Pair = 1,
    pre_gamma: Tensor | None = None,
    pre_beta: Tensor | None = None,
    pre_mean: Tensor | None = None,
    pre_var: Tensor | None = None,
    pre_eps: float = 1e-5,
    relu: bool = True,
) -> Tensor:
    """``act(bn(conv2d(x)) + proj_bn(conv2d(proj_x)))``; the projection is 1x1 without padding.

    With ``pre_mean`` and ``pre_var`` the projection reads ``relu(pre(proj_x))``.
    """
    if pre_mean is not None:
        proj_x = bn_add_act(proj_x, pre_gamma, pre_beta, pre_mean, pre_var, pre_eps)
    projection = conv_bn_act(
        proj_x, proj_weight, proj_bias, proj_gamma, proj_beta, proj_mean, proj_var, proj_eps, proj_stride, relu=False
    )
    return conv_bn_act(
        x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups, projection, relu
    )


def conv_bn_relu_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
    eps: float = 1e-5,
    stride: Pair = 2,
    padding: Pair = 3,
    dilation: Pair = 1,
    groups: int = 1,
    pool_kernel: Pair = 3,
    pool_stride: Pair = 2,
    pool_padding: Pair = 1,
) -> Tensor:
    """``max_pool2d(relu(bn(conv2d(x))))``: the stem of an ImageNet ResNet (arXiv:1512.03385, table 1)."""
    y = conv_bn_act(x, weight, bias, gamma, beta, mean, var, eps, stride, padding, dilation, groups)
    return F.max_pool2d(y, _pair(pool_kernel), _pair(pool_stride), _pair(pool_padding))


def avg_pool_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``linear(mean(x, (2, 3)))``: what follows a ResNet's stages. ``weight`` is ``(K, C)``, as in ``nn.Linear``."""
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), weight, bias)


def basic_block(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    gamma1: Tensor | None,
    beta1: Tensor | None,
    mean1: Tensor | None,
    var1: Tensor | None,
    eps1: float,
    weight2: Tensor,
    bias2: Tensor | None = None,
    gamma2: Tensor | None = None,
    beta2: Tensor | None = None,
    mean2: Tensor | None = None,
    var2: Tensor | None = None,
    eps2: float = 1e-5,
) -> Tensor:
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + x)``: a BasicBlock with identity shortcut.

    Both convolutions are 3x3 with stride 1 and padding 1.
    """
    y = conv_bn_act(x, weight1, bias1, gamma1, beta1, mean1, var1, eps1, 1, 1)
    return conv_bn_act(y, weight2, bias2, gamma2, beta2, mean2, var2, eps2, 1, 1, residual=x)


def bn_stats(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel over N, H and W (Ioffe & Szegedy 2015, arXiv:1502.03167, section 3).

    Shape (C,), in float32, or in float64 if x is float64. NaN if N * H * W is 0.
    """
    wide = _wide(x)
    mean = wide.mean((0, 2, 3))
    return mean, (wide - _per_channel(mean)).square().mean((0, 2, 3))


def conv_stats(
    x: Tensor,
    pre_gamma: Tensor | None,
    pre_beta: Tensor | None,
    pre_mean: Tensor | None,
    pre_var: Tensor | None,
    pre_eps: float,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """``y = conv2d(relu(pre(x)))`` and ``bn_stats(y)``; without ``pre_mean`` the convolution reads x itself."""
    if pre_mean is not None:
        x = bn_add_act(x, pre_gamma, pre_beta, pre_mean, pre_var, pre_eps)
    pre_bn = F.conv2d(x, weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)
    return pre_bn, *bn_stats(pre_bn)


def bn_add_bn_act(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    eps: float,
    shortcut: Tensor,
    shortcut_gamma: Tensor | None = None,
    shortcut_beta: Tensor | None = None,
    shortcut_mean: Tensor | None = None,
    shortcut_var: Tensor | None = None,
    shortcut_eps: float = 1e-5,
    relu: bool = True,
) -> Tensor:
    """``act(bn(x) + shortcut_bn(shortcut))``. A BatchNorm without mean and var is the identity."""
    shortcut = bn_add_act(
        shortcut, shortcut_gamma, shortcut_beta, shortcut_mean, shortcut_var, shortcut_eps, relu=False
    )
    return bn_add_act(x, gamma, beta, mean, var, eps, shortcut, relu)


def bn_act_backward_reduce(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float = 1e-5,
    out: Tensor | None = None,
    relu: bool = True,
) -> tuple[Tensor, Tensor]:
    """Per-channel sums of g and of g * xhat: the gradients of beta and gamma (arXiv:1502.03167, section 3).

    g is ``grad`` masked by the ReLU. The mask is ``out > 0`` if ``out`` is given, else ``bn(x) > 0`` if ``relu``; NaN
    passes. xhat is (x - mean) / sqrt(var + eps).
    """
    g = _wide(_masked(grad, x, gamma, beta, mean, var, eps, out, relu))
    products = g * (_wide(x) - _per_channel(_wide(mean)))
    return g.sum((0, 2, 3)), products.sum((0, 2, 3)) * torch.rsqrt(_wide(var) + eps)


def bn_add_act_backward_reduce(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    out: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """g and the sums of :func:`bn_act_backward_reduce`. g is also the gradient of the tensor added before the ReLU."""
    g = _masked(grad, x, gamma, beta, mean, var, eps, out, True)
    return g, *bn_act_backward_reduce(g, x, gamma, beta, mean, var, eps, relu=False)


def conv_backward_reduce(
    grad: Tensor,
    weight: Tensor,
    padding: Pair,
    dilation: Pair,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float = 1e-5,
    grad_addend: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Backward through ``conv2d(relu(bn(x)))`` with stride 1: the gradient of ``relu(bn(x))``, and its sums.

    ``grad_addend``, another gradient of ``relu(bn(x))`` of the same shape, is added to it. The sums are those of
    :func:`bn_act_backward_reduce`.
    """
    grad_x = _input_gradient(grad, x, weight, padding, dilation, grad_addend)
    return grad_x, *bn_act_backward_reduce(grad_x, x, gamma, beta, mean, var, eps)


def conv_backward_input(
    grad: Tensor, weight: Tensor, padding: Pair, dilation: Pair, grad_addend: Tensor | None = None
) -> Tensor:
    """The input gradient of ``conv2d`` with stride 1, plus ``grad_addend``, another gradient of the same shape."""
    reach = zip(grad.shape[2:], weight.shape[2:], _pair(padding), _pair(dilation), strict=True)
    size = [out + d * (filter - 1) - 2 * p for out, filter, p, d in reach]
    x = grad.new_empty(grad.shape[0], weight.shape[1], *size)  # only its shape matters
    return _input_gradient(grad, x, weight, padding, dilation, grad_addend)


def _input_gradient(
    grad: Tensor, x: Tensor, weight: Tensor, padding: Pair, dilation: Pair, grad_addend: Tensor | None
) -> Tensor:
    geometry = ([1, 1], _pair(padding), _pair(dilation), False, [0, 0], 1)
    mask = [True, False, False]
    grad_x: Tensor = torch.ops.aten.convolution_backward.default(grad, x, weight, None, *geometry, mask)[0]
    return grad_x if grad_addend is None else grad_x + grad_addend


def bn_act_backward(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float = 1e-5,
    out: Tensor | None = None,
    relu: bool = True,
    sum_g: Tensor | None = None,
    sum_g_xhat: Tensor | None = None,
    count: float = 1.0,
) -> Tensor:
    """The gradient of x: gamma / sqrt(var + eps) * (g - sum_g / count - xhat * sum_g_xhat / count).

    This is the chain rule of arXiv:1502.03167, section 3, with the sums over the batch collected. Without ``sum_g`` and
    ``sum_g_xhat`` the statistics are constants (running statistics), and only the first term remains.
    """
    g = _wide(_masked(grad, x, gamma, beta, mean, var, eps, out, relu))
    if sum_g is not None and sum_g_xhat is not None:
        xhat = (_wide(x) - _per_channel(_wide(mean))) * _per_channel(torch.rsqrt(_wide(var) + eps))
        g = g - _per_channel(_wide(sum_g)) / count - xhat * (_per_channel(_wide(sum_g_xhat)) / count)
    scale = torch.rsqrt(_wide(var) + eps)
    return (g * _per_channel(scale if gamma is None else scale * _wide(gamma))).to(x.dtype)


def bn_relu_max_pool(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
) -> tuple[Tensor, Tensor]:
    """``max_pool2d(relu(bn(x)))`` and its argmax in uint8.

    The argmax is the position within the pooling window, row * window width + column, or :data:`CLOSED` where the
    output is 0.
    """
    (_, width), (stride_h, stride_w), (pad_h, pad_w) = _pair(kernel), _pair(stride), _pair(padding)
    y = bn_add_act(x, gamma, beta, mean, var, eps)
    out, index = F.max_pool2d(y, _pair(kernel), (stride_h, stride_w), (pad_h, pad_w), return_indices=True)
    rows, columns = (torch.arange(size, device=x.device) for size in out.shape[2:])
    row = index // x.shape[3] - (rows * stride_h - pad_h)[:, None]
    column = index % x.shape[3] - (columns * stride_w - pad_w)
    return out, torch.where(out <= 0, CLOSED, row * width + column).to(torch.uint8)


def bn_relu_max_pool_backward(
    grad: Tensor, argmax: Tensor, x: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of bn(x) from that of the pooled output: each element sums over the windows whose argmax it is.

    ``argmax`` is that of :func:`bn_relu_max_pool`.
    """
    (height, width), (stride_h, stride_w), (pad_h, pad_w) = _pair(kernel), _pair(stride), _pair(padding)
    (p, q), (h, w) = grad.shape[2:], x.shape[2:]
    padded = max(pad_h + h, (p - 1) * stride_h + height), max(pad_w + w, (q - 1) * stride_w + width)
    sums = _wide(grad).new_zeros((*x.shape[:2], *padded))
    for i in range(height * width):
        row, column = divmod(i, width)
        rows = slice(row, row + (p - 1) * stride_h + 1, stride_h)
        columns = slice(column, column + (q - 1) * stride_w + 1, stride_w)
        sums[:, :, rows, columns] += torch.where(argmax == i, _wide(grad), 0)
    return sums[:, :, pad_h : pad_h + h, pad_w : pad_w + w].to(x.dtype)


def _masked(
    grad: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    out: Tensor | None,
    relu: bool,
) -> Tensor:
    if out is None and relu:
        out = bn_add_act(x, gamma, beta, mean, var, eps, relu=False)
    return grad if out is None else torch.where(out <= 0, 0.0, grad)  # NaN <= 0 is false, as in torch's own backward


def _wide(x: Tensor) -> Tensor:
    """Converts to the dtype that sums are computed in: float64 stays, others become float32."""
    return x if x.dtype == torch.float64 else x.float()


def _per_channel(v: Tensor) -> Tensor:
    return v[:, None, None]


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
