"""First-use check of CUDA kernels that are not verified on this GPU: compares an op's result with eager PyTorch.

C++ (``csrc/cuda/ops/first_use.h``) calls ``resnet_fused::compare_<op>`` after it launches an unchecked kernel, and
``resnet_fused::eager_<op>`` if no kernel may run. Both are registered here for each CUDA op, from its schema and its
definition in :mod:`resnet_fused.reference`. The rules are in ``docs/architecture.md``, "Trust".
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import (
    _library,  # noqa: F401  registers the schemas
    reference,
)
from .criterion import FLOAT64, ULPS, TF32Factors, allowed_error

#: The ops with CUDA kernels. Each takes the arguments of its definition, followed by some of :data:`OPTIONS`.
OPS = (
    *("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "basic_block", "conv_bn_relu_pool", "bn_add_act"),
    *("bn_stats", "conv_stats", "bn_add_bn_act", "bn_act_backward_reduce", "bn_add_act_backward_reduce"),
    *("conv_backward_reduce", "conv_backward_input", "bn_act_backward", "bn_relu_max_pool"),
    "bn_relu_max_pool_backward",
)
OPTIONS = ("keep_packed", "allow_tf32", "internal")
#: Return values of compare_<op>; csrc/cuda/ops/first_use.cpp reads them.
NOT_COMPARED, RIGHT, WRONG = 0, 1, 2
#: Ops whose further results are sums over the first result.
SUMS_FIRST = ("conv_stats", "conv_backward_reduce")
#: After this many failed comparisons a kernel is not tried again.
MAX_TRIES = 3
#: Largest rounding error of a ReLU's input in a kernel, in ulps of the sum of its terms' magnitudes.
RELU_BOUNDARY_ULPS = 16

_lock = threading.Lock()
_outcomes: dict[str, str] = {}
_tries: dict[str, int] = {}


def outcomes() -> dict[str, str]:
    """What this process has checked: ``"<device> <kernel>"`` -> "right", "not compared", or the error found."""
    with _lock:
        return dict(_outcomes)


class Difference(NamedTuple):
    """One output's largest error, the largest error that is allowed, and the first position that exceeds it."""

    error: float
    allowed: float
    position: list[int] | None


class _Call:
    """An op's arguments by name."""

    def __init__(self, op: str, args: Sequence[Any]) -> None:
        self.op = op
        self.named = dict(zip(_names(op), args, strict=False))  # arguments with defaults may be omitted
        self.x: Tensor = args[0]  # or a gradient of its dtype and device

    def definition_args(self) -> dict[str, Any]:
        return {name: value for name, value in self.named.items() if name not in OPTIONS}

    def eager_args(self) -> list[Any]:
        """The definition's arguments with vectors in a dtype that eager accepts with x's; kernels accept any."""
        wide = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        cast = lambda name, t: t.to(self.x.dtype if "bias" in name else wide).contiguous()  # noqa: E731
        named = self.definition_args().items()
        return [cast(name, v) if isinstance(v, Tensor) and v.dim() == 1 else v for name, v in named]

    def float64_args(self) -> list[Any]:
        values = self.definition_args().values()
        return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]

    def has_zero_gamma(self) -> bool:
        """Whether a gamma is all zeros, as in zero-initialised residual branches: it hides the convolution's result."""
        return any(v is not None and not v.any() for name, v in self.named.items() if "gamma" in name)


def _names(op: str) -> list[str]:
    return [argument.name for argument in _schema(op).arguments]


def _schema(op: str) -> Any:
    return getattr(torch.ops.resnet_fused, op).default._schema


def _definition(op: str) -> Callable[..., Any]:
    return getattr(reference, op)  # type: ignore[no-any-return]


def _list(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@contextlib.contextmanager
def _no_modes(device: torch.device) -> Iterator[None]:
    """Disables modes of the caller (tracing, autocast, gradients)."""
    with _disable_current_modes(), torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


def _eager(op: str, *args: Any) -> Any:
    """The op's result from its definition, with the strides of the op's own result."""
    call = _Call(op, args)
    with _no_modes(call.x.device):
        results = _list(_definition(op)(*call.eager_args()))
        shapes = _list(getattr(torch.ops.resnet_fused, op)(*map(_without_data, args)))
        inputs = {v.untyped_storage().data_ptr() for v in args if isinstance(v, Tensor)}
        for i, (result, shape) in enumerate(zip(results, shapes, strict=True)):
            if result.stride() != shape.stride() or result.untyped_storage().data_ptr() in inputs:
                own = torch.empty_strided(shape.shape, shape.stride(), dtype=shape.dtype, device=result.device)
                results[i] = own.copy_(result)
    return results[0] if len(results) == 1 else tuple(results)


def _without_data(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _compare(op: str, *values: Any) -> int:
    """Compares an op's results. ``values``: the results, the unchecked kernels (one per line), the op's arguments."""
    results = len(_schema(op).returns)
    got, kernels, call = list(values[:results]), values[results].splitlines(), _Call(op, values[results + 1 :])
    with _no_modes(call.x.device):
        if call.has_zero_gamma():
            return NOT_COMPARED
        try:
            differences = judge(call, got)
        except RuntimeError as error:  # out of memory, in torch or in a library that it calls
            return _not_compared(call, kernels, error)
    if differences is None:
        return NOT_COMPARED
    wrong = next((i for i, d in enumerate(differences) if not d.error <= d.allowed), None)
    found = "right" if wrong is None else _describe(wrong, differences[wrong])
    device = str(call.x.device)
    with _lock:
        known = [f"{device} {kernel}" for kernel in kernels if _outcomes.get(f"{device} {kernel}", "right") != "right"]
        for kernel in kernels:
            if f"{device} {kernel}" not in known:
                _outcomes[f"{device} {kernel}"] = found
    if wrong is None:
        return RIGHT
    if len(known) < len(kernels):
        _warn(call, kernels, found)
    return WRONG


def _not_compared(call: _Call, kernels: list[str], error: RuntimeError) -> int:
    """Counts failed comparisons and gives up after :data:`MAX_TRIES`, so that every call does not pay for one."""
    names = [f"{call.x.device} {kernel}" for kernel in kernels]
    with _lock:
        for name in names:
            _tries[name] = _tries.get(name, 0) + 1
        if min(_tries[name] for name in names) < MAX_TRIES:
            return NOT_COMPARED
        _outcomes.update(dict.fromkeys(names, "not compared"))
    warnings.warn(
        f"resnet_fused: {' or '.join(kernels)} could not be compared with eager PyTorch in {MAX_TRIES} calls of "
        f"{call.op} ({' '.join(str(error).split())[:200]}). Eager PyTorch is used instead. To enable the kernel, run "
        "the model once on a small batch first, or set RESNET_FUSED_CUDA_CHECK=0 to trust kernels unchecked.",
        RuntimeWarning,
        stacklevel=2,
    )
    return WRONG


def _describe(output: int, difference: Difference) -> str:
    return (
        f"error {difference.error:.3e} where {difference.allowed:.3e} is allowed, output {output}, first at "
        f"{difference.position}"
    )


def _warn(call: _Call, kernels: list[str], found: str) -> None:
    x = call.x
    shapes = ", ".join(f"{n} {list(v.shape)}" for n, v in call.named.items() if isinstance(v, Tensor) and v.dim() > 1)
    gpu = torch.cuda.get_device_name(x.device) if x.is_cuda else "no GPU"
    warnings.warn(
        f"resnet_fused: {' or '.join(kernels)} gave a wrong result in {call.op} on {x.device} ({gpu}): {found}; "
        f"{x.dtype}, {shapes}, torch {torch.__version__}. Eager PyTorch's result was returned instead, and this "
        "process does not use the kernel again. Please run `python -m resnet_fused verify` and post its report "
        "and this message on the project's issue tracker.",
        RuntimeWarning,
        stacklevel=2,
    )


def judge(call: _Call, got: list[Tensor]) -> list[Difference] | None:
    """The :class:`Difference` of each result; None if the values cannot decide (nothing finite, or all zeros)."""
    define = _definition(call.op)
    truths, eagers = _list(define(*call.float64_args())), [_list(define(*call.eager_args()))]
    if call.named.get("allow_tf32") and call.x.dtype == torch.float32:  # torch's convolution may or may not use TF32
        with TF32Factors():
            eagers.append([t.float() for t in _list(define(*call.float64_args()))])
    if call.op in SUMS_FIRST:
        truths[1:] = results_of_first(call.op, call.float64_args(), got[0].double())
        for eager in eagers:
            eager[1:] = results_of_first(call.op, call.eager_args(), got[0])
    if call.op == "bn_relu_max_pool":
        got = [got[0], _selected_activations(call, got[1])]
        truths[1], eagers[0][1] = truths[0], eagers[0][0]
    tolerance = _tolerances(call, got)
    differences = []
    for i, (actual, truth) in enumerate(zip(got, truths, strict=True)):
        candidates = [eager[i] for eager in eagers]
        judged = candidates[0].isfinite() & truth.isfinite() & ~tolerance[i].isinf()
        if not judged.any() or (i == 0 and not truth[judged].any()):
            return None
        differences.append(_difference(actual, candidates, truth, judged, tolerance[i]))
    return differences


def _difference(actual: Tensor, eagers: list[Tensor], truth: Tensor, judged: Tensor, tolerance: Tensor) -> Difference:
    allowed = max(allowed_error(eager, truth, judged, truth) for eager in eagers)
    if truth.dtype == eagers[0].dtype:
        allowed = max(allowed, FLOAT64 * truth[judged].abs().max().item())
    error = torch.where(judged, (actual.double() - truth).abs() - tolerance, 0.0)
    error = torch.where(judged & ~actual.isfinite(), torch.inf, error)
    # Where eager is not finite, the result must equal eager's, or the exact value if only eager overflowed.
    eager = eagers[0]
    same = (actual == eager) | (actual.isnan() & eager.isnan())
    exact = (actual.double() - truth).abs() <= ULPS * torch.finfo(eager.dtype).eps * truth.abs()
    error = torch.where(~eager.isfinite() & ~same & ~exact & ~tolerance.isinf(), torch.inf, error)
    wrong = (error > allowed).nonzero()
    return Difference(error.max().item(), allowed, wrong[0].tolist() if len(wrong) else None)


def results_of_first(op: str, args: Sequence[Any], first: Tensor) -> list[Tensor]:
    """The further results of an op in :data:`SUMS_FIRST`, computed from its first result as rounded."""
    if op == "conv_stats":
        return list(reference.bn_stats(first))
    x, *bn = args[4:10]
    return list(reference.bn_act_backward_reduce(first, x, *bn))


def _tolerances(call: _Call, got: list[Tensor]) -> list[Tensor]:
    """Extra tolerance for each element of each result; infinite for elements that are not judged.

    If a ReLU's input is within rounding of zero, the mask may differ between correct implementations.
    """
    none = [r.new_zeros((), dtype=torch.float64) for r in got]
    recomputed_mask = call.named.get("out") is None and call.named.get("relu", True)
    reduces = call.op in ("bn_act_backward_reduce", "bn_add_act_backward_reduce", "conv_backward_reduce")
    if not reduces and not (call.op == "bn_act_backward" and recomputed_mask):
        return none
    x, mean, var = (call.named[name].double() for name in ("x", "mean", "var"))
    scale, centred = torch.rsqrt(var + call.named["eps"]), x - mean[:, None, None]
    at_boundary = torch.zeros_like(x, dtype=torch.bool)
    if recomputed_mask:
        gamma, beta = call.named["gamma"], call.named["beta"]
        gain = scale if gamma is None else scale * gamma.double()
        offset = torch.zeros_like(mean) if beta is None else beta.double()
        terms = (x.abs() + mean.abs()[:, None, None]) * gain.abs()[:, None, None] + offset.abs()[:, None, None]
        ulp = torch.finfo(torch.float64 if call.x.dtype == torch.float64 else torch.float32).eps
        before = centred * gain[:, None, None] + offset[:, None, None]
        at_boundary = before.abs() <= RELU_BOUNDARY_ULPS * ulp * terms
    if not reduces:
        return [torch.where(at_boundary, torch.inf, 0.0).double()]
    grad = (got[0] if call.op == "conv_backward_reduce" else call.named["grad"]).double().abs()
    # All other terms: float64's own rounding, since the terms may cancel in the sum.
    weight = torch.where(at_boundary, 1.0, 64 * torch.finfo(torch.float64).eps)
    sums = [(grad * weight).sum((0, 2, 3)), (grad * weight * centred.abs()).sum((0, 2, 3)) * scale]
    return [*none[:-2], *sums]


def _selected_activations(call: _Call, argmax: Tensor) -> Tensor:
    """The activations that ``argmax`` selects, in float64; NaN for positions outside the image."""
    x, gamma, beta, mean, var, eps, kernel, stride, padding = call.float64_args()
    activated = reference.bn_add_act(x, gamma, beta, mean, var, eps)
    rows, columns = (torch.arange(size, device=x.device) for size in argmax.shape[2:])
    at = argmax.long()
    row = (rows * stride[0] - padding[0])[:, None] + at // kernel[1]
    place = row * x.shape[3] + columns * stride[1] - padding[1] + at % kernel[1]
    outside = (place < 0) | (place >= x.shape[2] * x.shape[3])
    values = activated.flatten(2).gather(2, torch.where(outside, 0, place).flatten(2)).view(argmax.shape)
    closed = argmax == reference.CLOSED
    return torch.where(closed, 0.0, torch.where(outside, torch.nan, values))


def _register() -> torch.library.Library:
    library = torch.library.Library("resnet_fused", "FRAGMENT")

    def add(name: str, arguments: str, returns: str, function: Callable[..., Any], op: str) -> None:
        library.define(f"{name}({arguments}) -> {returns}")
        library.impl(name, lambda *args: function(op, *args), "CompositeExplicitAutograd")

    for op in OPS:
        arguments, _, returns = str(_schema(op)).partition("(")[2].rpartition(") -> ")
        results = "".join(f"Tensor result{i}, " for i in range(len(_schema(op).returns)))
        add(f"eager_{op}", arguments, returns, _eager, op)
        add(f"compare_{op}", f"{results}str kernels, {arguments}", "int", _compare, op)
    return library


_REGISTERED = _register()
