"""Backward pass of a chain: recomputes activations from pre-BN outputs and computes the gradients that are needed.

The formulas are in docs/training.md; those of BatchNorm are from Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .convolutions import (
    Sums,
    aten_convolution_backward,
    conv_backward_reduce,
    conv_stats,
    conv_with_prologue,
    convolve,
    fuses_gradient_sums,
    fuses_norm_prologue,
    fuses_statistics,
    input_gradient,
    weight_gradient,
)
from .forward import PreBNs, Statistics, norm_args
from .layout import ConvSlots, Layout, NormSlots
from .memory_format import is_channels_last
from .statistics import Change, statistics_change, sum_over_processes


class Backward:
    """One backward pass. ``needs``: whether x needs a gradient, and whether each of ``tensors`` does."""

    def __init__(
        self,
        x: Tensor,
        tensors: Sequence[Tensor],
        layout: Layout,
        group: str,
        out: Tensor | None,
        argmax: Tensor | None,
        pre_bns: PreBNs,
        statistics: Statistics,
        needs: tuple[bool, Sequence[bool]],
    ) -> None:
        self.tensors, self.layout, self.group, self.out, self.argmax = tensors, layout, group, out, argmax
        self.pre_bns, self.statistics = {0: x, **pre_bns}, statistics
        self.needs_x, self.needs = needs
        self.learning = {slot for slot, need in enumerate(self.needs) if need}
        self.norm_args: dict[int, tuple[Any, ...]] = {}
        self.grads: list[Tensor | None] = [None] * len(self.needs)
        self.activations: PreBNs = {}
        self._find_needs()

    def _find_needs(self) -> None:
        """Determines which pre-BN outputs (``needs_pre_bn``) and activations (``needs_act``) need a gradient."""
        layout = self.layout
        self.needs_pre_bn, self.needs_act = [self.needs_x], []
        for i, conv in enumerate(layout.convs):
            norm = layout.norms[i]
            self.needs_act.append(
                self.needs_pre_bn[i] or (norm is not None and self._any_needs_grad(norm.gamma, norm.beta))
            )
            self.needs_pre_bn.append(self.needs_act[i] or self._any_needs_grad(conv.weight, conv.bias))
        if layout.projection is not None:
            projection = layout.projection
            self.needs_pre_bn.append(self.needs_act[0] or self._any_needs_grad(projection.weight, projection.bias))

    def _any_needs_grad(self, slot: int | None, other: int | None = None) -> bool:
        return slot in self.learning or other in self.learning

    def _norm_args(self, key: int, norm: NormSlots) -> tuple[Any, ...]:
        args = self.norm_args.get(key)
        if args is None:
            args = self.norm_args[key] = norm_args(norm, self.tensors, self.statistics.get(key))
        return args

    def run(self, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x and of each of ``tensors``; None where no gradient is needed."""
        layout = self.layout
        count = len(layout.convs)
        relu = layout.relu
        last = layout.norms[count]
        sums: Sums | None = None  # BatchNorm's sums over a gradient, if computed together with it
        if self.out is not None:  # apply the last ReLU's mask once: the masked gradient has several readers
            if last is not None and self._needs_sums(count, last):
                args = self._norm_args(count, last)
                # The masked gradient may be returned: for the residual, or for x if no parameter in between learns.
                internal = layout.residual is None and (layout.visibility.internal_input or not layout.identity)
                pre_bn = self._pre_bn(count)
                grad, sum_g, sum_g_xhat = ops.bn_add_act_backward_reduce(
                    grad, pre_bn, *args, self.out, internal=internal
                )
                sums = sum_g, sum_g_xhat
            else:
                grad = torch.ops.aten.threshold_backward.default(grad, self.out, 0)
            relu = False
        if layout.pool is not None and self.argmax is not None:  # the argmax includes the ReLU's mask
            grad = ops.bn_relu_max_pool_backward(grad, self.argmax, self._pre_bn(count), *layout.pool, internal=True)
            relu = False
        if layout.residual is not None and self.needs[layout.residual]:
            self.grads[layout.residual] = grad

        main_grad: Tensor | None = grad
        if last is not None:
            main_grad = self._norm(grad, count, last, relu, sums)
        adds_identity = layout.identity and bool(layout.convs) and layout.norms[0] is None and self.needs_x
        for i in reversed(range(count)):
            grad_addend: Tensor | None = None  # the shortcut's gradient of this convolution's input
            if i == 0 and layout.projection is not None:
                grad_addend = self._projection(grad, layout.projection)
            elif i == 0 and adds_identity:
                grad_addend = grad
            norm = layout.norms[i]
            sums = None
            if main_grad is not None and norm is not None and self._fuses_sums(main_grad, i, norm):
                main_grad, sums = self._conv_and_sums(main_grad, i, norm, grad_addend)
            else:
                main_grad = grad_addend if main_grad is None else self._conv(main_grad, i, layout.convs[i], grad_addend)
            if main_grad is not None and grad_addend is not None:
                main_grad = _match_strides(main_grad, grad_addend)
            if norm is not None and main_grad is not None:
                main_grad = self._norm(main_grad, i, norm, True, sums)
        if not self.needs_x:
            return None, self.grads
        return _identity_sum(grad, main_grad) if layout.identity and not adds_identity else main_grad, self.grads

    def _projection(self, grad: Tensor, conv: ConvSlots) -> Tensor | None:
        key, norm = len(self.layout.convs) + 1, self.layout.projection_norm
        grad_pre_bn = grad if norm is None else self._norm(grad, key, norm, False)
        return None if grad_pre_bn is None else self._conv(grad_pre_bn, 0, conv)

    def _needs_sums(self, key: int, norm: NormSlots) -> bool:
        return self._any_needs_grad(norm.gamma, norm.beta) or (norm.trains and self.needs_pre_bn[key])

    def _fuses_sums(self, grad: Tensor, i: int, norm: NormSlots) -> bool:
        """Whether one op computes the gradient of ``act[i]`` and the sums that ``norm`` needs."""
        conv = self.layout.convs[i]
        return self._needs_sums(i, norm) and fuses_gradient_sums(grad, self.tensors[conv.weight], conv)

    def _conv_and_sums(self, grad: Tensor, i: int, norm: NormSlots, grad_addend: Tensor | None) -> tuple[Tensor, Sums]:
        """:meth:`_conv`, plus the sums for ``norm`` over the resulting gradient."""
        conv = self.layout.convs[i]
        args = self._norm_args(i, norm)
        found = conv_backward_reduce(grad, self.tensors[conv.weight], conv, self._pre_bn(i), args, grad_addend)
        self._conv_backward(grad, i, conv, [False, self._any_needs_grad(conv.weight), self._any_needs_grad(conv.bias)])
        return found

    def _norm(self, grad: Tensor, key: int, norm: NormSlots, relu: bool, sums: Sums | None = None) -> Tensor | None:
        """Backward through ``[relu](norm(pre_bn[key]))``: returns pre_bn's gradient, stores gamma's and beta's.

        ``sums``: the result of ``bn_act_backward_reduce``, if already computed together with ``grad``.
        """
        if not (self._any_needs_grad(norm.gamma, norm.beta) or self.needs_pre_bn[key]):
            return None
        pre_bn = self._pre_bn(key)
        statistics = self.statistics.get(key)
        args = self._norm_args(key, norm)
        change = self._change(norm, args)
        if not self._needs_sums(key, norm):
            return self._norm_with_constants(grad, pre_bn, args, relu, change, self._is_internal(key))
        sum_g, sum_g_xhat = sums or ops.bn_act_backward_reduce(grad, pre_bn, *args, None, relu)
        for slot, total in (
            (norm.gamma, sum_g_xhat if change is None else change.of_sum(sum_g_xhat, sum_g)),
            (norm.beta, sum_g),
        ):
            if slot is not None and self.needs[slot]:
                self.grads[slot] = total.to(self.tensors[slot].dtype)
        if not self.needs_pre_bn[key]:
            return None
        if statistics is None or not norm.trains:
            return self._norm_with_constants(grad, pre_bn, args, relu, change, self._is_internal(key))
        count = torch.sym_float(pre_bn.shape[0] * pre_bn.shape[2] * pre_bn.shape[3])
        if norm.sync:  # gamma and beta get this process's share only, which DistributedDataParallel averages
            totals = sum_over_processes(torch.stack([sum_g, sum_g_xhat]), self.group) / statistics[2]
            (sum_g, sum_g_xhat), count = totals.unbind(), 1.0
        return ops.bn_act_backward(
            grad, pre_bn, *args, None, relu, sum_g, sum_g_xhat, count, internal=self._is_internal(key)
        )

    def _norm_with_constants(
        self, grad: Tensor, pre_bn: Tensor, args: tuple[Any, ...], relu: bool, change: Change | None, internal: bool
    ) -> Tensor:
        """The gradient of ``pre_bn`` through a BatchNorm that used running statistics."""
        gamma, beta, *rest = args
        if change is not None:
            gamma, beta = change.of_affine(gamma, beta)
        return ops.bn_act_backward(grad, pre_bn, gamma, beta, *rest, None, relu, None, None, 1.0, internal=internal)

    def _is_internal(self, key: int) -> bool:
        """Whether only chains see the gradient of ``pre_bn[key]``."""
        return key > 0 or self.layout.visibility.internal_input

    def _change(self, norm: NormSlots, args: tuple[Any, ...]) -> Change | None:
        """The change of the running statistics since the forward pass; None if batch statistics were used."""
        if norm.mean is None or norm.var is None:
            return None
        return statistics_change(args[2:4], (self.tensors[norm.mean], self.tensors[norm.var]), norm.eps)

    def _conv(self, grad: Tensor, i: int, conv: ConvSlots, grad_addend: Tensor | None = None) -> Tensor | None:
        """Backward through a convolution of ``act[i]``: returns the gradient of ``act[i]``, stores weight's and bias's.

        ``grad_addend``: another gradient of ``act[i]``, added to the result.
        """
        weight = self.tensors[conv.weight]
        mask = [self.needs_act[i], self._any_needs_grad(conv.weight), self._any_needs_grad(conv.bias)]
        if not any(mask):
            return grad_addend
        internal = self.layout.norms[i] is not None or self._is_internal(i)
        grad_x = input_gradient(grad, self._pre_bn(i), weight, conv, grad_addend, internal) if mask[0] else None
        if grad_x is not None:
            self._conv_backward(grad, i, conv, [False, *mask[1:]])
            return grad_x if internal else _in_format_of(grad_x, self._pre_bn(i), weight)
        return _sum(self._conv_backward(grad, i, conv, mask), grad_addend)

    def _conv_backward(self, grad: Tensor, i: int, conv: ConvSlots, mask: list[bool]) -> Tensor | None:
        """Returns the input's gradient if ``mask[0]``; stores the weight's (``mask[1]``) and bias's (``mask[2]``)."""
        grad_x, grad_weight, grad_bias = None, None, None
        if mask[1]:
            norm = self.layout.norms[i]
            args = None if norm is None else self._norm_args(i, norm)
            grad_weight = weight_gradient(grad, self._pre_bn(i), args, self.tensors[conv.weight], conv)
        rest = [mask[0], mask[1] and grad_weight is None, mask[2]]
        if any(rest):
            grad_x, aten_grad_weight, grad_bias = self._aten_conv_backward(grad, i, conv, rest)
            grad_weight = aten_grad_weight if rest[1] else grad_weight
        if mask[1]:
            self.grads[conv.weight] = grad_weight
        if mask[2] and conv.bias is not None:
            self.grads[conv.bias] = grad_bias
        if i > 0:  # a projection may still need act[0]
            self.activations.pop(i, None)
        return grad_x

    def _aten_conv_backward(self, grad: Tensor, i: int, conv: ConvSlots, mask: list[bool]) -> list[Tensor | None]:
        """The gradients of input, weight and bias from :func:`aten_convolution_backward`."""
        # The input's gradient needs only the input's shape, so the activation is not recomputed for it.
        x = self._activation(i) if mask[1] else self._pre_bn(i)
        return aten_convolution_backward(grad, x, self.tensors[conv.weight], conv, mask)

    def _activation(self, i: int) -> Tensor:
        norm = self.layout.norms[i]
        if norm is None:
            return self._pre_bn(i)
        if i not in self.activations:
            args = self._norm_args(i, norm)
            self.activations[i] = ops.bn_add_act(self._pre_bn(i), *args, None, True, internal=True)
        return self.activations[i]

    def _pre_bn(self, key: int) -> Tensor:
        if key not in self.pre_bns:
            convs = (*self.layout.convs, self.layout.projection)
            is_projection = key == len(convs)
            conv = convs[key - 1]
            assert conv is not None
            source = 0 if is_projection else key - 1
            before = self.layout.norms[source]
            pre = None if before is None else self._norm_args(source, before)
            # Recompute with the call of the forward pass, for bit-identical results.
            if fuses_statistics(self.pre_bns[0], self.layout.norm_of(key)):
                self.pre_bns[key] = conv_stats(self._pre_bn(source), pre, self.tensors, conv)[0]
            elif fuses_norm_prologue(self.pre_bns[0], before):
                self.pre_bns[key] = conv_with_prologue(self._pre_bn(source), pre, self.tensors, conv)
            else:
                self.pre_bns[key] = convolve(self._activation(source), self.tensors, conv, internal=True)
        return self.pre_bns[key]


def _in_format_of(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """A gradient that the user sees in eager's format: channels_last if x or the weight is."""
    channels_last = is_channels_last(x) or is_channels_last(weight)
    return grad.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _match_strides(total: Tensor, grad_addend: Tensor) -> Tensor:
    """``total`` in the strides of ``grad_addend``: eager computes the shortcut's gradient first and adds to it."""
    return total if total.stride() == grad_addend.stride() else torch.empty_like(grad_addend).copy_(total)


def _identity_sum(grad: Tensor, main_grad: Tensor | None) -> Tensor:
    """The gradient of x: the sum of the shortcut's and the main path's, in the format of eager's sum."""
    if main_grad is None:
        return grad
    return main_grad.add_(grad) if main_grad.stride() == grad.stride() else grad + main_grad


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, in place in a, which has no other reader."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)
