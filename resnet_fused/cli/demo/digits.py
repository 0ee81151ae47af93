"""Trains a small network on scikit-learn's digits (1,797 images of 8x8) and converts it."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import resnet_fused
from resnet_fused.models import small_resnet

from . import numerics

SEED = 0
TARGET = 0.97  # required held-out accuracy


@dataclass(frozen=True)
class DigitsResult:
    """Held-out accuracy before and after convert(), and agreement of the predictions."""

    accuracy_eager: float
    accuracy_fused: float
    same_predictions: int
    images: int
    unexplained: int  # predictions that differ by more than rounding can explain
    error_eager: float
    error_fused: float
    error_bound: float
    seconds: float  # of training

    def failures(self) -> list[str]:
        """One sentence per failed check; empty if all passed."""
        found = []
        if not min(self.accuracy_eager, self.accuracy_fused) >= TARGET:
            found.append(
                f"digits: held-out accuracy is {self.accuracy_eager:.2%} eager and "
                f"{self.accuracy_fused:.2%} fused; {TARGET:.0%} expected"
            )
        if self.unexplained:
            found.append(f"digits: {self.unexplained} predictions differ by more than rounding explains")
        if not self.error_fused <= self.error_bound:
            found.append(f"digits: the fused error {self.error_fused:.2e} exceeds {self.error_bound:.2e}")
        return found


def run(device: torch.device, epochs: int, advance: Callable[[], None] = lambda: None) -> DigitsResult:
    """Trains for ``epochs``, converts, compares. ``advance`` is called after every epoch."""
    x_train, x_test, y_train, y_test = (t.to(device) for t in _load())
    start = time.perf_counter()
    with _one_thread():
        model = _train(x_train, y_train, epochs, advance).eval()
    seconds = time.perf_counter() - start

    expected = numerics.reference(model, x_test)
    fused_model = resnet_fused.convert(copy.deepcopy(model))
    with torch.no_grad():
        eager, fused = model(x_test), fused_model(x_test)
    error_eager = numerics.relative_error(eager, expected)
    bound = numerics.error_bound(error_eager, torch.float32)
    return DigitsResult(
        accuracy_eager=_accuracy(eager, y_test),
        accuracy_fused=_accuracy(fused, y_test),
        same_predictions=int((eager.argmax(1) == fused.argmax(1)).sum()),
        images=len(y_test),
        unexplained=numerics.unexplained_flips(eager, fused, error_eager + bound),
        error_eager=error_eager,
        error_fused=numerics.relative_error(fused, expected),
        error_bound=bound,
        seconds=seconds,
    )


def _load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, test images, (N, 1, 8, 8) float32 in [-1, 1], then their labels, (N) int64."""
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1  # pixels are 0 ... 16
    y = torch.tensor(digits.target)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=SEED, stratify=digits.target)
    return x[train], x[test], y[train], y[test]


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: for 64 images of 8x8 a second thread costs more than it gains, ten times more on a busy CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(x: Tensor, y: Tensor, epochs: int, advance: Callable[[], None], batch: int = 64) -> nn.Module:
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.manual_seed(SEED)
        model = small_resnet(in_channels=1).to(x.device)
        optimiser = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01)
        steps = len(x) // batch
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, total_steps=epochs * steps)
        for _ in range(epochs):
            order = torch.randperm(len(x), device=x.device)
            for i in range(steps):  # drops the last partial batch, a different one each epoch
                chosen = order[i * batch : (i + 1) * batch]
                loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            advance()
    return model


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).double().mean().item()
