"""The convolutions of training and their gradients: by our ops, or by PyTorch's.

Which kernel runs on the CPU is decided in ``csrc/cpu/plan.cpp``. The ops call PyTorch themselves where the plan says
so. This module asks the plan what is PyTorch's and calls it directly, for both gradients at once: by ops, a step of a
BasicBlock of 16 channels at 4x4 took 15 % longer (float32, Xeon with AMX, 2026-11-30).
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import ops, plans
from .layout import ConvSlots, NormSlots
from .policy import capabilities_of, torch_allows_tf32
from .spec import norm_args

NO_NORM = norm_args(None)


def convolve(
    x: Tensor,
    tensors: Sequence[Tensor],
    conv: ConvSlots,
    shortcut: Tensor | None = None,
    relu: bool = False,
    internal: bool = False,
) -> Tensor:
    """``act(conv(x) + shortcut)``. ``internal``: only the chain reads the result."""
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    plan = _plan_of(_FORWARD, x, weight, conv)
    if plan is not None and not plan.by_torch:
        return ops.conv_forward(x, weight, bias, *conv[2:], shortcut, relu, internal=internal)
    dtype = x.dtype
    if plan is not None and plan.in_float32:
        x, weight, bias = x.float(), weight.float(), None if bias is None else bias.float()
    y = torch.ops.aten.convolution.default(x, weight, bias, *_aten_geometry(conv)).to(dtype)
    y = y if shortcut is None else y.add_(shortcut)
    return y.relu_() if relu else y


def aten_convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: ConvSlots, mask: list[bool]
) -> list[Tensor | None]:
    """The gradients of input, weight and bias from ``aten::convolution_backward``, None where ``mask`` is False."""
    grad_bias = None
    if mask[2] and not mask[1]:  # oneDNN computes it only with the weight's, which would then be computed for nothing
        grad_bias, mask = grad.sum((0, 2, 3)), [mask[0], False, False]
    if not any(mask):
        return [None, None, grad_bias]
    dtype = grad.dtype
    plan = _plan_of(_INPUT if mask[0] else _WEIGHT, x, weight, conv) if dtype.itemsize == 2 else None
    if plan is not None and plan.in_float32:
        grad, x, weight = grad.float(), x.float(), weight.float()
    sizes = None if conv.bias is None else [weight.shape[0]]
    grads = torch.ops.aten.convolution_backward.default(grad, x, weight, sizes, *_aten_geometry(conv), mask)
    found = [each.to(dtype) if needed else None for each, needed in zip(grads, mask, strict=True)]
    return found if grad_bias is None else [*found[:2], grad_bias]


def _aten_geometry(conv: ConvSlots) -> tuple[Any, ...]:
    return conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups


class _Plan(NamedTuple):
    """Of a convolution or of one of its gradients on the CPU."""

    by_torch: bool  # by an aten op, even of channels_last tensors, which our kernels need
    in_float32: bool  # if PyTorch computes it


_FORWARD, _INPUT, _WEIGHT = "forward", "input gradient", "weight gradient"


def _plan_of(purpose: str, x: Tensor, weight: Tensor, conv: ConvSlots) -> _Plan | None:
    """The CPU's plan of conv(x) or of a gradient; None on other devices."""
    # Tensors of other types are being traced: all choices have the same shapes, and reading sizes would add guards.
    if not capabilities_of(x).chooses_kernels or type(x) not in (Tensor, Parameter):
        return None
    return _cached_plan(purpose, x.shape, weight.shape, conv[2:], x.dtype, *map(os.environ.get, _VARIABLES))


_VARIABLES = ("RESNET_FUSED_CPU_ENGINE", "RESNET_FUSED_CPU_ISA")  # that the plan depends on


@functools.lru_cache(maxsize=4096)
def _cached_plan(
    purpose: str, x: torch.Size, weight: torch.Size, geometry: tuple[Any, ...], dtype: torch.dtype, *_: str | None
) -> _Plan:
    plan = plans.read(ops.explain_cpu(x, weight, *geometry, str(dtype).removeprefix("torch."), purpose))
    return _Plan(plan.kernel == "composed" and not plan.fields["flips"], plan.fields["in_float32"] == 1)


def fuses_norm_prologue(x: Tensor, before: NormSlots | None) -> bool:
    """Whether a chain from x applies the BatchNorm ``before`` in the convolution's prologue."""
    return before is not None and capabilities_of(x).norm_prologue


def conv_with_prologue(
    x: Tensor,
    pre: tuple[Any, ...] | None,
    tensors: Sequence[Tensor],
    conv: ConvSlots,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``act(conv(relu(bn(x))) + shortcut)``, with ``pre`` the BatchNorm's arguments. Deterministic."""
    assert pre is not None
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    after = (weight, bias, *NO_NORM, *conv[2:], shortcut, relu, False, allow_tf32(x))
    return ops.bn_relu_conv_bn_act(x, *pre, *after)


def fuses_statistics(x: Tensor, after: NormSlots | None) -> bool:
    """Whether a chain from x computes the statistics of the BatchNorm ``after`` with the convolution.

    It saves passes over the convolution's output.
    """
    return after is not None and after.trains and capabilities_of(x).statistics_epilogue


def conv_stats(
    x: Tensor, pre: tuple[Any, ...] | None, tensors: Sequence[Tensor], conv: ConvSlots
) -> tuple[Tensor, Tensor, Tensor]:
    """The convolution of x, or with ``pre`` of ``relu(bn(x))``, and its output's mean and variance.

    ``pre``: the BatchNorm's arguments. Deterministic, so that the backward pass can recompute the same bits.
    """
    weight, bias = tensors[conv.weight], None if conv.bias is None else tensors[conv.bias]
    return ops.conv_stats(x, *(pre or NO_NORM), weight, bias, *conv[2:], False, allow_tf32(x))


def allow_tf32(x: Tensor) -> bool:
    """Whether x is float32 and torch's own convolutions may use TF32. The switch is read when the chain runs."""
    return x.dtype is torch.float32 and torch_allows_tf32()


def input_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    conv: ConvSlots,
    grad_addend: Tensor | None = None,
    internal: bool = False,
) -> Tensor | None:
    """The gradient of a convolution's input x, or None if ``aten::convolution_backward`` should compute it.

    With stride 1 it is a convolution of the output's gradient with the flipped filter (spatially flipped, input and
    output channels exchanged), with padding = filter extent - padding (Dumoulin and Visin 2016, arXiv:1603.07285,
    section 4.3). ``grad_addend``, another gradient of the same tensor, is added. ``internal``: only chains read the
    result.
    """
    if not is_convolution(weight, conv):
        return None
    if grad_addend is None or not capabilities_of(grad).gradient_addend:
        plan = _plan_of(_INPUT, x, weight, conv)
        if plan is None or plan.by_torch:
            return None
    shape = (conv.padding, conv.dilation)
    return ops.conv_backward_input(grad, weight, *shape, grad_addend, allow_tf32(grad), internal=internal)


def is_convolution(weight: Tensor, conv: ConvSlots) -> bool:
    """Whether the input gradient is a convolution: stride 1, one group, padding at most the filter's extent."""
    if conv.stride != (1, 1) or conv.groups != 1:
        return False
    extent = [d * (size - 1) for d, size in zip(conv.dilation, weight.shape[2:], strict=True)]
    return conv.padding[0] <= extent[0] and conv.padding[1] <= extent[1]


def weight_gradient(
    grad: Tensor, pre_bn: Tensor, norm: tuple[Any, ...] | None, weight: Tensor, conv: ConvSlots
) -> Tensor | None:
    """The weight's gradient from that of ``conv(relu(bn(pre_bn)))``, or without ``norm`` from that of ``conv(pre_bn)``.

    ``norm``: the BatchNorm's arguments; BatchNorm and ReLU are applied while pre_bn is read. None if
    ``aten::convolution_backward`` should compute the gradient.
    """
    plan = _plan_of(_WEIGHT, pre_bn, weight, conv)
    if plan is None or plan.by_torch:
        return None
    return ops.conv_backward_weight(grad, pre_bn, *(norm or NO_NORM), weight, *conv[2:])


Sums = tuple[Tensor, Tensor]  # per-channel sums of g and of g * xhat


def fuses_gradient_sums(grad: Tensor, weight: Tensor, conv: ConvSlots) -> bool:
    """Whether a chain uses :func:`conv_backward_reduce` for ``conv``; it saves a pass."""
    return capabilities_of(grad).gradient_sums and is_convolution(weight, conv)


def conv_backward_reduce(
    grad: Tensor, weight: Tensor, conv: ConvSlots, pre_bn: Tensor, norm: tuple[Any, ...], grad_addend: Tensor | None
) -> tuple[Tensor, Sums]:
    """Backward through ``conv(relu(bn(pre_bn)))``: ``relu(bn(pre_bn))``'s gradient plus ``grad_addend``, and its sums.

    ``norm``: the BatchNorm's arguments.
    """
    grad_x, *sums = ops.conv_backward_reduce(
        grad, weight, conv.padding, conv.dilation, pre_bn, *norm, grad_addend, allow_tf32(grad)
    )
    return grad_x, (sums[0], sums[1])
