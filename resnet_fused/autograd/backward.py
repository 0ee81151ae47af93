"""A chain backward: activations are made again from what the convolutions returned, gradients where one is wanted.

The formulas are in docs/training.md; those of BatchNorm are Ioffe and Szegedy 2015 (arXiv:1502.03167), section 3.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .forward import (
    Raws,
    Statistics,
    conv_of_normalised,
    conv_stats,
    convolve,
    norm_args,
    normalises_while_convolving,
    sums_while_convolving,
)
from .gradient_sums import Sums, conv_backward_reduce, sums_with_the_gradient
from .input_gradient import input_gradient
from .layout import ConvSlots, Layout, NormSlots
from .running import Change, change
from .statistics import sum_over_processes
from .weight_gradient import weight_gradient


class Backward:
    """One backward pass. ``needs[0]`` is whether x needs a gradient, ``needs[1][i]`` whether ``tensors[i]`` does."""

    def __init__(
        self,
        x: Tensor,
        tensors: Sequence[Tensor],
        layout: Layout,
        group: str,
        out: Tensor | None,
        taken: Tensor | None,
        raws: Raws,
        statistics: Statistics,
        needs: tuple[bool, Sequence[bool]],
    ) -> None:
        self.tensors, self.layout, self.group, self.out, self.taken = tensors, layout, group, out, taken
        self.raws, self.statistics = {0: x, **raws}, statistics
        self.needs_x, self.needs = needs
        self.grads: list[Tensor | None] = [None] * len(self.needs)
        self.activations: Raws = {}
        self._find_needs()

    def _find_needs(self) -> None:
        """Which raw outputs (``raw``) and activations (``act``) lie between the output and something that learns."""
        layout = self.layout
        self.raw, self.act = [self.needs_x], []
        for i, conv in enumerate(layout.convs):
            norm = layout.norms[i]
            self.act.append(self.raw[i] or (norm is not None and self._learns(norm.gamma, norm.beta)))
            self.raw.append(self.act[i] or self._learns(conv.weight, conv.bias))
        if layout.projection is not None:
            side = layout.projection
            self.raw.append(self.act[0] or self._learns(side.weight, side.bias))

    def _learns(self, *slots: int | None) -> bool:
        return any(slot is not None and self.needs[slot] for slot in slots)

    def run(self, grad: Tensor) -> tuple[Tensor | None, list[Tensor | None]]:
        """The gradients of x and of each of ``tensors``, None where none is needed."""
        layout = self.layout
        count = len(layout.convs)
        relu = layout.relu
        last = layout.norms[count]
        sums: Sums | None = None  # of a gradient, where whoever makes it takes them
        if self.out is not None:  # what passed the ReLU has several readers
            if last is not None and self._wants_sums(count, last):
                args = norm_args(last, self.tensors, self.statistics.get(count))
                # It is the gradient of a residual too, or of x where nothing learns between the two.
                internal = layout.residual is None and (layout.place.internal_input or not layout.identity)
                raw = self._raw(count)
                grad, sum_g, sum_g_xhat = ops.bn_add_act_backward_reduce(grad, raw, *args, self.out, internal=internal)
                sums = sum_g, sum_g_xhat
            else:
                grad = torch.ops.aten.threshold_backward.default(grad, self.out, 0)
            relu = False
        if layout.pool is not None and self.taken is not None:  # what was taken had passed the ReLU
            grad = ops.bn_relu_max_pool_backward(grad, self.taken, self._raw(count), *layout.pool, internal=True)
            relu = False
        if layout.residual is not None and self.needs[layout.residual]:
            self.grads[layout.residual] = grad

        flowing: Tensor | None = grad
        if last is not None:
            flowing = self._norm(grad, count, last, relu, sums)
        joins_x = layout.identity and bool(layout.convs) and layout.norms[0] is None and self.needs_x
        for i in reversed(range(count)):
            beside: Tensor | None = None  # another gradient of what this convolution read
            if i == 0 and layout.projection is not None:
                beside = self._projection(grad, layout.projection)
            elif i == 0 and joins_x:
                beside = grad
            norm = layout.norms[i]
            sums = None
            if flowing is not None and norm is not None and self._sums_too(flowing, i, norm):
                flowing, sums = self._conv_and_sums(flowing, i, norm, beside)
            else:
                flowing = beside if flowing is None else self._conv(flowing, i, layout.convs[i], beside)
            if flowing is not None and beside is not None:
                flowing = _laid_out_as(flowing, beside)
            if norm is not None and flowing is not None:
                flowing = self._norm(flowing, i, norm, True, sums)
        if not self.needs_x:
            return None, self.grads
        return _identity_sum(grad, flowing) if layout.identity and not joins_x else flowing, self.grads

    def _projection(self, grad: Tensor, conv: ConvSlots) -> Tensor | None:
        key, norm = len(self.layout.convs) + 1, self.layout.projection_norm
        side = grad if norm is None else self._norm(grad, key, norm, False)
        return None if side is None else self._conv(side, 0, conv)

    def _wants_sums(self, key: int, norm: NormSlots) -> bool:
        return self._learns(norm.gamma, norm.beta) or (norm.trains and self.raw[key])

    def _sums_too(self, grad: Tensor, i: int, norm: NormSlots) -> bool:
        """Whether the gradient of ``act[i]`` comes with the sums that ``norm`` asks for."""
        conv = self.layout.convs[i]
        return self._wants_sums(i, norm) and sums_with_the_gradient(grad, self.tensors[conv.weight], conv)

    def _conv_and_sums(self, grad: Tensor, i: int, norm: NormSlots, beside: Tensor | None) -> tuple[Tensor, Sums]:
        """What :meth:`_conv` does, with the sums for ``norm``, whose gradient it is."""
        conv = self.layout.convs[i]
        args = norm_args(norm, self.tensors, self.statistics.get(i))
        found = conv_backward_reduce(grad, self.tensors[conv.weight], conv, self._raw(i), args, beside)
        self._conv_backward(grad, i, conv, [False, self._learns(conv.weight), self._learns(conv.bias)])
        return found

    def _norm(self, grad: Tensor, key: int, norm: NormSlots, relu: bool, sums: Sums | None = None) -> Tensor | None:
        """From the gradient of ``[relu](norm(raw[key]))`` to that of ``raw[key]``; gamma's and beta's on the way.

        ``sums``: what ``bn_act_backward_reduce`` would return, where whoever made the gradient has taken them.
        """
        learns, flows = self._learns(norm.gamma, norm.beta), self.raw[key]
        if not (learns or flows):
            return None
        raw = self._raw(key)
        statistics = self.statistics.get(key)
        args = norm_args(norm, self.tensors, statistics)
        now = self._change(norm, args)
        if not self._wants_sums(key, norm):
            return self._through_constants(grad, raw, args, relu, now, self._is_internal(key))
        sum_g, sum_g_xhat = sums or ops.bn_act_backward_reduce(grad, raw, *args, None, relu)
        for slot, total in (
            (norm.gamma, sum_g_xhat if now is None else now.of_sum(sum_g_xhat, sum_g)),
            (norm.beta, sum_g),
        ):
            if slot is not None and self.needs[slot]:
                self.grads[slot] = total.to(self.tensors[slot].dtype)
        if not flows:
            return None
        if statistics is None or not norm.trains:
            return self._through_constants(grad, raw, args, relu, now, self._is_internal(key))
        count = torch.sym_float(raw.shape[0] * raw.shape[2] * raw.shape[3])
        if norm.sync:  # gamma and beta learn from this process's share, as DistributedDataParallel expects
            totals = sum_over_processes(torch.stack([sum_g, sum_g_xhat]), self.group) / statistics[2]
            (sum_g, sum_g_xhat), count = totals.unbind(), 1.0
        return ops.bn_act_backward(
            grad, raw, *args, None, relu, sum_g, sum_g_xhat, count, internal=self._is_internal(key)
        )

    def _through_constants(
        self, grad: Tensor, raw: Tensor, args: tuple[Any, ...], relu: bool, now: Change | None, internal: bool
    ) -> Tensor:
        """The gradient of ``raw`` through a BatchNorm that used running statistics."""
        gamma, beta, *rest = args
        if now is not None:
            gamma, beta = now.of_affine(gamma, beta)
        return ops.bn_act_backward(grad, raw, gamma, beta, *rest, None, relu, None, None, 1.0, internal=internal)

    def _is_internal(self, key: int) -> bool:
        """Whether nobody but chains sees the gradient of ``raw[key]``."""
        return key > 0 or self.layout.place.internal_input

    def _change(self, norm: NormSlots, args: tuple[Any, ...]) -> Change | None:
        """What has become of the statistics of ``args`` since they were used; None where they cannot have changed."""
        if norm.mean is None or norm.var is None:
            return None
        return change(args[2:4], (self.tensors[norm.mean], self.tensors[norm.var]), norm.eps)

    def _conv(self, grad: Tensor, i: int, conv: ConvSlots, beside: Tensor | None = None) -> Tensor | None:
        """From the gradient of a convolution of ``act[i]`` to that of ``act[i]``; weight's and bias's on the way.

        ``beside``: another gradient of ``act[i]``, which is added.
        """
        weight = self.tensors[conv.weight]
        mask = [self.act[i], self._learns(conv.weight), self._learns(conv.bias)]
        if not any(mask):
            return beside
        internal = self.layout.norms[i] is not None or self._is_internal(i)
        to_x = input_gradient(grad, weight, conv, beside, internal) if mask[0] else None
        if to_x is not None:
            self._conv_backward(grad, i, conv, [False, *mask[1:]])
            return to_x
        return _sum(self._conv_backward(grad, i, conv, mask), beside)

    def _conv_backward(self, grad: Tensor, i: int, conv: ConvSlots, mask: list[bool]) -> Tensor | None:
        """The input's gradient if ``mask[0]``; the weight's and bias's, into their places, if the others."""
        to_x, to_weight, to_bias = None, None, None
        if mask[1]:
            norm = self.layout.norms[i]
            args = None if norm is None else norm_args(norm, self.tensors, self.statistics.get(i))
            to_weight = weight_gradient(grad, self._raw(i), args, self.tensors[conv.weight], conv)
        rest = [mask[0], mask[1] and to_weight is None, mask[2]]
        if any(rest):
            to_x, by_torch, to_bias = self._torchs_gradients(grad, i, conv, rest)
            to_weight = by_torch if rest[1] else to_weight
        if mask[1]:
            self.grads[conv.weight] = to_weight
        if mask[2] and conv.bias is not None:
            self.grads[conv.bias] = to_bias
        if i > 0:  # a projection may still want the first
            self.activations.pop(i, None)
        return to_x

    def _torchs_gradients(self, grad: Tensor, i: int, conv: ConvSlots, mask: list[bool]) -> list[Tensor | None]:
        """Those of the input, the weight and the bias that the mask asks for."""
        # The gradient of the input asks for the input's shape only.
        x = self._activation(i) if mask[1] else self._raw(i)
        weight = self.tensors[conv.weight]
        sizes = None if conv.bias is None else [weight.shape[0]]
        shape = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
        found = torch.ops.aten.convolution_backward.default(grad, x, weight, sizes, *shape, mask)
        return [each if asked else None for each, asked in zip(found, mask, strict=True)]

    def _activation(self, i: int) -> Tensor:
        norm = self.layout.norms[i]
        if norm is None:
            return self._raw(i)
        if i not in self.activations:
            args = norm_args(norm, self.tensors, self.statistics.get(i))
            self.activations[i] = ops.bn_add_act(self._raw(i), *args, None, True, internal=True)
        return self.activations[i]

    def _raw(self, key: int) -> Tensor:
        if key not in self.raws:
            convs = (*self.layout.convs, self.layout.projection)
            is_side = key == len(convs)
            conv = convs[key - 1]
            assert conv is not None
            source = 0 if is_side else key - 1
            before = self.layout.norms[source]
            pre = None if before is None else norm_args(before, self.tensors, self.statistics.get(source))
            # the forward pass's call, for its bits
            if sums_while_convolving(self.raws[0], self.layout.norm_of(key)):
                self.raws[key] = conv_stats(self._raw(source), pre, self.tensors, conv)[0]
            elif normalises_while_convolving(self.raws[0], before):
                self.raws[key] = conv_of_normalised(self._raw(source), pre, self.tensors, conv)
            else:
                self.raws[key] = convolve(self._activation(source), self.tensors, conv, internal=True)
        return self.raws[key]


def _laid_out_as(total: Tensor, beside: Tensor) -> Tensor:
    """The sum of two gradients in the format of the shortcut's, which autograd has first and adds the other one to."""
    return total if total.stride() == beside.stride() else torch.empty_like(beside).copy_(total)


def _identity_sum(grad: Tensor, flowing: Tensor | None) -> Tensor:
    """The gradient of x from the shortcut's and the convolutions', in the format that eager's sum of the two has."""
    if flowing is None:
        return grad
    return flowing.add_(grad) if flowing.stride() == grad.stride() else grad + flowing


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b in a's memory, which nobody else reads."""
    if a is None or b is None:
        return b if a is None else a
    return a.add_(b)
