"""The truth of a problem: its definition in float64, and the allowed error derived from eager PyTorch's.

Computed once, in a process that runs none of our kernels, and loaded by the processes that do.
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
    """For each output: its values in float64, and the allowed absolute error (0: must be equal)."""

    outputs: list[Tensor]
    allowed: list[float]


def outputs_of(result: Any) -> list[Tensor]:
    """An op's result as a list."""
    return [result] if isinstance(result, Tensor) else list(result)


def as64(values: Sequence[Any]) -> list[Any]:
    """Converts floating-point tensors to float64; other values are unchanged."""
    return [v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in values]


def on(device: torch.device, values: Sequence[Any]) -> list[Any]:
    """Moves tensors to the device in their own memory format."""
    return [v.to(device) if isinstance(v, Tensor) else v for v in values]


@contextlib.contextmanager
def torch_convolves(problem: Problem) -> Iterator[None]:
    """Settings of torch's own convolutions: TF32 if the problem allows it, and deterministic algorithms.

    Deterministic mode (``backends.nan_in_new_memory``) excludes some cuDNN algorithms, and some of those err less.
    Eager's error must come from the same algorithm.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = problem.kind.tf32, True
    try:
        yield
    finally:
        cudnn.allow_tf32, cudnn.deterministic = before


def compute(problem: Problem, device: torch.device) -> Truth:
    """The truth of a problem, computed on ``device``.

    float32 convolutions are exact unless the problem allows TF32; then cuDNN may use TF32 or not.
    """
    args = on(device, problem.arguments())
    define: Callable[..., Any] = getattr(reference, problem.op)
    with torch_convolves(problem):
        truths, eagers = outputs_of(define(*as64(args))), [outputs_of(define(*args))]
        if problem.kind.tf32:  # cuDNN may or may not have used TF32
            with TF32Factors():
                eagers.append([y.to(e.dtype) for y, e in zip(outputs_of(define(*as64(args))), eagers[0], strict=True)])
    limits = [max(allowed(eager[i], t) for eager in eagers) for i, t in enumerate(truths)]
    return Truth([t.cpu() for t in truths], limits)


def allowed(eager: Tensor, truth: Tensor) -> float:
    """The allowed error of one output; 0 for integers."""
    if not eager.is_floating_point():
        return 0.0
    if not torch.isfinite(truth).all() or not torch.isfinite(eager).all():
        raise ArithmeticError("eager PyTorch's result is not finite, so no error bound can be derived from it")
    if eager.dtype == torch.float64:
        return FLOAT64 * truth.abs().max().item()
    return allowed_error(eager, truth, torch.isfinite(truth), truth)


def save(truth: Truth, folder: Path, problem: Problem) -> None:
    """Saves atomically: the file is complete or absent."""
    path = _path(folder, problem)
    part = path.with_suffix(f".{os.getpid()}")
    torch.save((truth.outputs, truth.allowed), part)
    part.replace(path)


def load(folder: Path, problem: Problem) -> Truth | None:
    """The saved truth, or None if it was not computed."""
    try:
        return Truth(*torch.load(_path(folder, problem), weights_only=True))
    except FileNotFoundError:
        return None


def _path(folder: Path, problem: Problem) -> Path:
    return folder / f"{problem.name.replace(' ', '_')}.pt"
