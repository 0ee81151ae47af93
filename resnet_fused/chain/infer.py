"""Runs a :class:`Chain` with constant statistics and without gradients: one op for each convolution, or one in all."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ops
from .geometry import output_shape
from .memory_format import contiguous, is_channels_last
from .policy import Setting, is_plain
from .program import abandon, call
from .spec import Chain, Conv, Norm, Shortcut, norm_args


def run(x: Tensor, chain: Chain, how: Setting, keep_packed: bool, internal: bool = False) -> Tensor:
    """The chain's output.

    Two 3x3 convolutions that preserve x's shape, with x as the shortcut, are one op. Otherwise each convolution is one;
    the last one adds the shortcut. Where kernels cannot normalise what they read, ``relu(norms[0](x))`` is computed
    once for all its readers.

    ``keep_packed``: later calls use the packed weights again. ``internal``: only the next fused block reads the output.
    """
    options = (keep_packed and not how.autocast, how.allow_tf32)
    pre, *norms = chain.norms
    convs, shortcut = chain.convs, chain.shortcut
    if not convs and chain.pool is None:
        residual = None if shortcut is None else shortcut.residual
        return call(ops.bn_add_act, x, *norm_args(pre), residual, chain.relu, internal)
    pool = chain.pool
    if pool is not None and not (len(convs) == 1 and pre is None and shortcut is None and chain.relu):
        abandon()
        return F.max_pool2d(run(x, chain._replace(pool=None), how, keep_packed), *pool)
    if _is_one_op(x, chain):
        first, second = map(_weight_args, convs, norms)
        return call(ops.basic_block, x, *first, *second, *options, internal)
    act = x
    needs_act = how.autocast or not how.capabilities.norm_prologue  # under autocast, eager normalises before it rounds
    if pre is not None and (needs_act or (len(convs) == 1 and shortcut is not None and shortcut.conv is not None)):
        act, pre = _activate(x, pre), None
    y = _to(act, how.dtype)
    if pool is not None:
        args = (*_weight_args(convs[0], norms[0]), *_geometry(convs[0]))
        return call(ops.conv_bn_relu_pool, y, *args, *pool, *options, internal)
    residual, source, before = None, act, pre
    if shortcut is not None and shortcut.source is not None:
        source, before = shortcut.source, shortcut.pre
        if before is not None and how.autocast:
            source, before = _activate(source, before), None
    elif shortcut is not None and shortcut.reads_x:
        source, before = x, None
    fits = True  # whether the projection has the shape of what it is added to
    if shortcut is not None and (shortcut.transform is not None or shortcut.module is not None):
        abandon()  # they may be the user's code
    if shortcut is not None and shortcut.transform is not None:
        source, before = shortcut.transform(source if before is None else _activate(source, before)), None
        fits = output_shape(source, (shortcut.conv,)) == output_shape(x, convs)
    if shortcut is not None:
        residual = _residual(x, source, before, shortcut, how, options, fits)
    for conv, norm in zip(convs[:-1], norms[:-1], strict=True):
        y, pre = _conv(y, pre, conv, norm, None, norm is not None, options, internal=True), None
    last, norm = convs[-1], norms[-1]
    if shortcut is None or residual is not None:
        is_added = shortcut is None or (shortcut.module is None and fits)
        if is_added or is_plain(residual, y.dtype, output_shape(y, (last,))):
            y = _conv(y, pre, last, norm, residual, chain.relu, options, internal)
            leads = shortcut is not None and shortcut.leads and not is_channels_last(residual)  # type: ignore[arg-type]
            return contiguous(y) if leads else y
        y = _conv(y, pre, last, norm, None, False, options, internal)
        abandon()
        if shortcut is None or shortcut.in_place:
            y += residual  # type: ignore[arg-type]  # broadcasts or raises, as in eager
        else:
            y = y + residual  # type: ignore[operator]
        return y.relu_() if chain.relu else y
    assert shortcut.conv is not None
    projection = (*_weight_args(shortcut.conv, shortcut.norm), shortcut.conv.stride, *norm_args(before))
    args = (*_weight_args(last, norm), *_geometry(last), _to(source, how.dtype), *projection)
    return call(ops.conv_bn_proj_act, y, *args, chain.relu, *options, internal)


def _activate(x: Tensor, norm: Norm) -> Tensor:
    return call(ops.bn_add_act, x, *norm_args(norm), None, True, True)


def _residual(
    x: Tensor,
    source: Tensor,
    pre: Norm | None,
    shortcut: Shortcut,
    how: Setting,
    options: tuple[bool, bool],
    fits: bool,
) -> Any:
    """The tensor that the last convolution adds; None if it computes the projection itself.

    The shortcut reads ``source``, or ``relu(pre(source))``; an identity is x.
    """
    if shortcut.is_identity:
        return _to(x, how.dtype)
    if shortcut.module is not None:
        return shortcut.module(source if pre is None else _activate(source, pre))
    conv = shortcut.conv
    if conv is None or (is_projection(conv) and fits):
        return shortcut.residual
    return _conv(_to(source, how.dtype), pre, conv, shortcut.norm, None, False, options, internal=True)


def _conv(
    x: Tensor,
    pre: Norm | None,
    conv: Conv,
    norm: Norm | None,
    residual: Tensor | None,
    relu: bool,
    options: tuple[bool, bool],
    internal: bool,
) -> Tensor:
    args = (*_weight_args(conv, norm), *_geometry(conv), residual, relu, *options)
    if pre is None:
        return call(ops.conv_bn_act, x, *args, internal)
    return call(ops.bn_relu_conv_bn_act, x, *norm_args(pre), *args, internal)


def is_projection(conv: Conv) -> bool:
    """Whether the last convolution's kernel can compute this convolution of the shortcut too."""
    return (tuple(conv.weight.shape[2:]), conv.padding, conv.groups) == ((1, 1), (0, 0), 1)


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)  # the comparison takes a tenth of the time of the call


def _weight_args(conv: Conv, norm: Norm | None) -> tuple[Any, ...]:
    return (conv.weight, conv.bias, *norm_args(norm))


def _geometry(conv: Conv) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _is_one_op(x: Tensor, chain: Chain) -> bool:
    """Whether the op basic_block computes the chain: an identity BasicBlock of two 3x3 convolutions."""
    convs, shortcut = chain.convs, chain.shortcut
    if len(convs) != 2 or shortcut is None or not shortcut.is_identity or not chain.relu:
        return False
    if chain.norms[0] is not None or chain.norms[1] is None or chain.norms[2] is None:
        return False
    first, second = convs
    shape, same = (x.shape[1], x.shape[1], 3, 3), ((1, 1), (1, 1), (1, 1), 1)
    if first.weight.shape != shape or second.weight.shape != shape:
        return False
    return _geometry(first) == same and _geometry(second) == same
