"""Speed and error of one network in one dtype: eager, eager in channels_last, torch.compile, fused.

Each round runs every variant once, so that load from other processes affects all of them. Speeds are medians over the
rounds.
"""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import resnet_fused

from . import numerics
from .settings import Settings

EAGER, CHANNELS_LAST, COMPILED, FUSED = "eager", "channels_last", "torch.compile", "fused"
VARIANTS = (EAGER, CHANNELS_LAST, COMPILED, FUSED)


@dataclass(frozen=True)
class Row:
    """One variant of one network in one dtype. Without a speed, ``note`` gives the reason."""

    model: str
    dtype: str
    variant: str
    images_per_second: float | None = None
    rounds: int = 0
    error: float | None = None  # numerics.relative_error of the logits
    error_bound: float | None = None  # for the fused variant
    same_predictions: int | None = None  # images of the batch whose argmax equals eager's
    note: str = ""  # "failed: <reason>" or "omitted: <reason>"

    @property
    def status(self) -> str:
        """The first word of the note; empty if there is a speed."""
        return self.note.partition(":")[0]

    def failures(self) -> list[str]:
        """One sentence per failed check; empty if all passed."""
        if self.error is None or self.error_bound is None or self.error <= self.error_bound:
            return []
        return [f"{self.model} {self.dtype}: the fused error {self.error:.2e} exceeds {self.error_bound:.2e}"]


@dataclass
class _Variant:
    name: str
    forward: Callable[[Tensor], Tensor]
    x: Tensor
    output: Tensor


def compare(
    name: str,
    model: nn.Module,
    x: Tensor,
    settings: Settings,
    advance: Callable[[str], None],
    elapsed: float = 0.0,
) -> list[Row]:
    """Rows for ``model``, whose parameters and ``x`` have the dtype to compare in.

    ``advance`` is called with a description after each variant is prepared and after each round. ``elapsed`` is how
    many seconds the demo has been running.
    """
    dtype = str(x.dtype).removeprefix("torch.")
    expected = numerics.reference(model, x)
    rows: dict[str, Row] = {}
    variants: list[_Variant] = []
    for variant in VARIANTS:
        if variant == COMPILED and not settings.compile:
            continue
        if variant == COMPILED and elapsed > settings.compile_within:
            rows[variant] = Row(name, dtype, variant, note=f"omitted: {elapsed:.0f} s had passed")
            continue
        try:
            variants.append(_prepare(variant, model, x))
        except Exception as error:  # torch.compile can fail in many ways, e.g. without a compiler
            if variant != COMPILED:
                raise
            rows[variant] = Row(name, dtype, variant, note=f"failed: {str(error).strip().splitlines()[0]}")
        advance(f"{name} {dtype}: {variant}")

    seconds = _interleaved(variants, settings, lambda: advance(f"{name} {dtype}: rounds"))
    eager_output = variants[0].output
    eager_error = numerics.relative_error(eager_output, expected)
    for v in variants:
        rows[v.name] = Row(
            name,
            dtype,
            v.name,
            images_per_second=len(x) / statistics.median(seconds[v.name]),
            rounds=len(seconds[v.name]),
            error=numerics.relative_error(v.output, expected),
            error_bound=numerics.error_bound(eager_error, x.dtype) if v.name == FUSED else None,
            same_predictions=int((v.output.argmax(1) == eager_output.argmax(1)).sum()),
        )
    return [rows[variant] for variant in VARIANTS if variant in rows]


def _prepare(variant: str, model: nn.Module, x: Tensor) -> _Variant:
    """The variant after two forward passes, with code compiled, weights packed and caches warm."""
    model = copy.deepcopy(model)
    if variant != EAGER:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.to(memory_format=torch.channels_last)
    forward: Callable[[Tensor], Tensor] = model
    if variant == FUSED:
        forward = resnet_fused.convert(model)
    if variant == COMPILED:
        torch._dynamo.reset()  # otherwise a second dtype counts as a recompilation
        forward = torch.compile(model)
    with torch.no_grad(), _freezing() if variant == COMPILED else contextlib.nullcontext():
        forward(x)
        return _Variant(variant, forward, x, forward(x))


def _freezing() -> contextlib.AbstractContextManager[None]:
    """What ``torch.compile`` compiles meanwhile has constant weights with BatchNorm folded in: its fastest mode."""
    from torch._inductor import config  # imports for a second

    patch: contextlib.AbstractContextManager[None] = config.patch(freezing=True)
    return patch


def _interleaved(variants: list[_Variant], settings: Settings, advance: Callable[[], None]) -> dict[str, list[float]]:
    """Seconds per forward pass of each variant, one per round."""
    seconds: dict[str, list[float]] = {v.name: [] for v in variants}
    deadline = time.perf_counter() + settings.seconds
    for i in range(settings.rounds):
        if i and time.perf_counter() > deadline:
            break
        first = i % len(variants)  # rotate the order
        for v in variants[first:] + variants[:first]:
            seconds[v.name].append(_time(v.forward, v.x))
        advance()
    return seconds


def _time(forward: Callable[[Tensor], Tensor], x: Tensor) -> float:
    with torch.no_grad():
        _wait(x.device)
        start = time.perf_counter()
        forward(x)
        _wait(x.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
