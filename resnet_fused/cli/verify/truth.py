"""What a problem's outputs must be: the definition in float64, and the error that eager PyTorch makes.

Computed once, by a process that runs no kernel of ours, and read by those that do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import reference
from ...criterion import FLOAT64, TF32Factors, allowed_error
from .problems import Problem


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


@contextlib.contextmanager
def torch_convolves(problem: Problem) -> Iterator[None]:
    """How cuDNN may: in TF32 where the problem allows it, and always by the same algorithm.

    Memory that is filled (``backends.nan_in_new_memory``) excludes others, and some of those err less: eager's error is
    compared with that of the same algorithm.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = problem.kind.tf32, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before


def compute(problem: Problem, device: torch.device) -> Truth:
    """On that device. float32 convolutions are exact, but where the problem allows TF32: then as cuDNN likes it."""
    args = on(device, problem.arguments())
    define: Callable[..., Any] = getattr(reference, problem.op)
    with torch_convolves(problem):
        truths, eagers = outputs_of(define(*as64(args))), [outputs_of(define(*args))]
        if problem.kind.tf32:  # which cuDNN may have used or not
            with TF32Factors():
                eagers.append([y.to(e.dtype) for y, e in zip(outputs_of(define(*as64(args))), eagers[0], strict=True)])
    limits = [max(allowed(eager[i], t) for eager in eagers) for i, t in enumerate(truths)]
    return Truth([t.cpu() for t in truths], limits)


def allowed(eager: Tensor, truth: Tensor) -> float:
    """The error that passes; 0 of whole numbers."""
    if not eager.is_floating_point():
        return 0.0
    if not torch.isfinite(truth).all() or not torch.isfinite(eager).all():
        raise ArithmeticError("eager PyTorch's result is not finite here, and cannot judge another")
    if eager.dtype == torch.float64:
        return FLOAT64 * truth.abs().max().item()
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
