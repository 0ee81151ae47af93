"""What a problem's outputs must be: the definition in float64, and the error that eager PyTorch makes.

Computed once, by a process that runs no kernel of ours, and read by those that do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ... import reference
from ...criterion import allowed_error
from .problems import Problem

#: Of float64 eager PyTorch's result is the truth, so its own error is not known: this share of the largest value.
FLOAT64_ERROR = 1e-12


class Truth(NamedTuple):
    """For each output: its values in float64, and how far off the op's may be (0: the same values)."""

    outputs: list[Tensor]
    allowed: list[float]


def outputs_of(result: Any) -> list[Tensor]:
    """An op's result as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def as64(values: Sequence[Any]) -> list[Any]:
    """Floating tensors in float64; all else as it is."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def on(device: torch.device, values: Sequence[Any]) -> list[Any]:
    """Tensors on the device, in their own memory format."""
    return [v.to(device) if isinstance(v, Tensor) else v for v in values]


class _TF32Factors(TorchDispatchMode):
    """Convolutions of factors that are rounded as tensor cores round float32: 10 bits of fraction, ties away from 0."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in func.name() or "conv2d" in func.name():
            args = [_rounded(a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in args]
        return func(*args, **(kwargs or {}))


def _rounded(x: Tensor) -> Tensor:
    bits = x.to(torch.float32, copy=True).view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)


def compute(problem: Problem, device: torch.device) -> Truth:
    """On that device. float32 convolutions are exact, but where the problem allows TF32: then as cuDNN likes it."""
    args = on(device, problem.arguments())
    define: Callable[..., Any] = getattr(reference, problem.op)
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = problem.kind.tf32
    try:
        truths, eagers = outputs_of(define(*as64(args))), [outputs_of(define(*args))]
        if problem.kind.tf32:  # which cuDNN may have used or not
            with _TF32Factors():
                eagers.append([y.to(e.dtype) for y, e in zip(outputs_of(define(*as64(args))), eagers[0], strict=True)])
    finally:
        torch.backends.cudnn.allow_tf32 = before
    limits = [max(allowed(eager[i], t) for eager in eagers) for i, t in enumerate(truths)]
    return Truth([t.cpu() for t in truths], limits)


def allowed(eager: Tensor, truth: Tensor) -> float:
    """The error that passes; 0 of whole numbers."""
    if not eager.is_floating_point():
        return 0.0
    if not torch.isfinite(truth).all() or not torch.isfinite(eager).all():
        raise ArithmeticError("eager PyTorch's result is not finite here, and cannot judge another")
    if eager.dtype == torch.float64:
        return FLOAT64_ERROR * truth.abs().max().item()
    return allowed_error(eager, truth, torch.isfinite(truth), truth)


def save(truth: Truth, folder: Path, problem: Problem) -> None:
    """Complete or not at all."""
    path = _path(folder, problem)
    part = path.with_suffix(f".{os.getpid()}")
    torch.save((truth.outputs, truth.allowed), part)
    part.replace(path)


def load(folder: Path, problem: Problem) -> Truth | None:
    """None where nobody has computed it."""
    try:
        return Truth(*torch.load(_path(folder, problem), weights_only=True))
    except FileNotFoundError:
        return None


def _path(folder: Path, problem: Problem) -> Path:
    return folder / f"{problem.name.replace(' ', '_')}.pt"


#: Ops whose further outputs are sums over the first: those are judged by what the first one holds, rounded as it is.
def held_by(problem: Problem, args: Sequence[Any], first: Tensor) -> tuple[Callable[..., Any], list[Any]] | None:
    """The definition of the outputs after the first, and its arguments."""
    if problem.op == "conv_stats":
        return reference.bn_stats, [first]
    if problem.op == "conv_backward_reduce":
        x, *bn = args[4:10]
        return reference.bn_act_backward_reduce, [first, x, *bn]
    return None
