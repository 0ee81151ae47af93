"""Parses stride, padding and similar layer attributes, which users may have modified, as torch interprets them."""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor

from .spec import Pair


def pair(value: Any, least: int) -> Pair | None:
    """``value`` as a pair of ints, each at least ``least``; None if torch rejects it or interprets it differently."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int and min(value) >= least:
        return value  # fast path: nn.Conv2d stores every argument in this form
    values = (value,) if isinstance(value, Integral) else value
    if not isinstance(values, tuple | list) or not 1 <= len(values) <= 2:
        return None
    if any(not _is_number(v) or v < least for v in values):
        return None
    return int(values[0]), int(values[-1])


def _is_number(value: Any) -> bool:
    return isinstance(value, Integral) and value is not True and value is not False  # numpy's integers too


def of_conv(conv: Any) -> tuple[Pair, Pair, Pair, int] | None:
    """``(stride, padding, dilation, groups)`` of a convolution, or None if eager must run."""
    if conv.padding_mode != "zeros":
        return None
    stride, padding, dilation = pair(conv.stride, 1), pair(conv.padding, 0), pair(conv.dilation, 1)
    groups = conv.groups
    if stride is None or padding is None or dilation is None or not _is_number(groups) or groups < 1:
        return None
    return stride, padding, dilation, int(groups)


def of_pool(pool: Any) -> tuple[Pair, Pair, Pair] | None:
    """``(kernel, stride, padding)`` of a max-pooling, or None if it uses dilation, ceil_mode or return_indices."""
    kernel, padding, dilation = pair(pool.kernel_size, 1), pair(pool.padding, 0), pair(pool.dilation, 1)
    stride = kernel if pool.stride is None or pool.stride == () else pair(pool.stride, 1)
    if kernel is None or stride is None or padding is None or dilation != (1, 1):
        return None
    if pool.ceil_mode or pool.return_indices or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None
    return kernel, stride, padding


def convolved_size(size: Iterable[Any], weight: Tensor, stride: Pair, padding: Pair, dilation: Pair) -> tuple[Any, ...]:
    """Output height and width of a convolution."""
    sizes = zip(size, weight.shape[2:], stride, padding, dilation, strict=True)
    # A size that does not change must stay the same symbol under torch.compile.
    return tuple(
        n if s == 1 and 2 * p == d * (k - 1) else (n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes
    )


def output_shape(x: Tensor, convs: Sequence[Any]) -> tuple[Any, ...]:
    """The output shape of a sequence of convolutions of x."""
    size = tuple(x.shape[2:])
    for conv in convs:
        size = convolved_size(size, conv.weight, conv.stride, conv.padding, conv.dilation)
    return x.shape[0], convs[-1].weight.shape[0] if convs else x.shape[1], *size
