"""Training of small classifiers, with eager or with fused blocks."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import resnet_fused

from .data import Data

EARLY_STEPS = 2  # before and after the first update; from then on rounding differences grow tenfold a step


@dataclass(frozen=True)
class Recipe:
    """SGD with momentum, one epoch of linear warm-up, then a cosine schedule to zero (arXiv:1608.03983)."""

    epochs: int
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4


@dataclass(frozen=True)
class Curve:
    """One training run. Errors are fractions in [0, 1], one per epoch.

    ``train_error`` and ``loss`` are means over the epoch's training steps, in training mode, as in He et al. 2015
    (arXiv:1512.03385, figure 1). ``early`` holds the losses of the first ``EARLY_STEPS`` steps.
    """

    loss: tuple[float, ...]
    train_error: tuple[float, ...]
    test_error: tuple[float, ...]
    early: tuple[float, ...]


def network(build: Callable[[], nn.Module], seed: int, fused: bool) -> nn.Module:
    """``build()`` with the weights of ``seed``; its blocks, stems and chains of layers fused if ``fused``.

    Raises:
        RuntimeError: ``fused``, and ``convert`` fused nothing: the comparison would be of eager with eager.
    """
    torch.manual_seed(seed)
    model = build()
    if fused:
        resnet_fused.convert(model, chains=True)
        if not resnet_fused.report(model).count("converted"):
            raise RuntimeError(f"convert() fused nothing in this network:\n{resnet_fused.report(model)}")
    return model.to(memory_format=torch.channels_last)


def fit(
    model: nn.Module,
    data: Data,
    recipe: Recipe,
    seed: int,
    loss_of=nn.functional.cross_entropy,
    require_fused: bool = False,
) -> Curve:
    """Trains ``model`` in place, in the batch order of ``seed``; the last partial batch of an epoch is dropped.

    Runs on the device of the model's parameters. ``require_fused``: first :func:`check_fused` in training mode.
    """
    data = data.to(next(model.parameters()).device)
    if require_fused:
        check_fused(model.train(), data.train_x[:2])
    run = _Run(model, data, recipe, seed, loss_of)
    epochs: list[tuple[float, float, float]] = []
    early: list[float] = []
    for _ in range(recipe.epochs):
        model.train()
        losses, wrong = zip(*(run.step(chosen) for chosen in run.batches()), strict=True)
        early += losses[: EARLY_STEPS - len(early)]
        test_error = error(model, data.test_x, data.test_y)
        epochs.append((sum(losses) / run.steps, sum(wrong) / (run.steps * recipe.batch), test_error))
    loss, train_error, test_error = zip(*epochs, strict=True)
    return Curve(loss, train_error, test_error, tuple(early))


def early_losses(model: nn.Module, data: Data, recipe: Recipe, seed: int) -> tuple[float, ...]:
    """The losses of the first ``EARLY_STEPS`` steps of :func:`fit`, in the dtype of the model's parameters."""
    run = _Run(model.train(), data, recipe, seed, nn.functional.cross_entropy)
    return tuple(run.step(chosen)[0] for chosen in itertools.islice(run.batches(), EARLY_STEPS))


class _Run:
    """The steps of a training run. ``steps``: of an epoch."""

    def __init__(self, model: nn.Module, data: Data, recipe: Recipe, seed: int, loss_of) -> None:
        self.model, self.data, self.batch, self.loss_of = model, data, recipe.batch, loss_of
        self.steps = len(data.train_x) // recipe.batch
        self.optimiser = torch.optim.SGD(
            model.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        warmup = torch.optim.lr_scheduler.LinearLR(self.optimiser, 1 / self.steps, total_iters=self.steps)
        rest = max(1, (recipe.epochs - 1) * self.steps)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, rest)
        self.schedule = torch.optim.lr_scheduler.SequentialLR(self.optimiser, [warmup, cosine], [self.steps])
        self.order = torch.Generator().manual_seed(seed)

    def batches(self) -> Iterator[Tensor]:
        """The indices of each batch of the next epoch."""
        shuffled = torch.randperm(len(self.data.train_x), generator=self.order)[: self.steps * self.batch]
        yield from shuffled.to(self.data.train_x.device).split(self.batch)

    def step(self, chosen: Tensor) -> tuple[float, int]:
        """Takes one step; returns the loss before it, and the number of images that were classified wrongly."""
        dtype = next(self.model.parameters()).dtype
        x = self.data.train_x[chosen].to(dtype, memory_format=torch.channels_last)
        labels = self.data.train_y[chosen]
        logits = self.model(x)
        loss = self.loss_of(logits, labels)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return loss.item(), int((logits.argmax(1) != labels).sum())


def error(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The fraction of images that ``model`` in eval mode classifies wrongly. Leaves it in eval mode."""
    return int((logits(model, x).argmax(1) != y).sum()) / len(y)


def logits(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    """``model(x)`` in eval mode without gradients, (N, classes), computed in batches. Leaves it in eval mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part.contiguous(memory_format=torch.channels_last)) for part in x.split(batch)])


def check_fused(module: nn.Module, x: Tensor) -> None:
    """Runs ``module(x)`` once, as it is now.

    Raises:
        RuntimeError: not all of its blocks and stems ran fused: the comparison would be of eager with eager.
    """
    explanation = resnet_fused.explain(module, x.contiguous(memory_format=torch.channels_last))
    if not explanation or any(run.how == "eager" for run in explanation.values()):
        raise RuntimeError(f"not all ran fused:\n{explanation}")


def measure_statistics(model: nn.Module, x: Tensor) -> None:
    """Replaces the running statistics of every BatchNorm by those of ``x``: the mean over batches of about 500 images,
    in training mode. Leaves ``model`` in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    model.train()
    with torch.no_grad():
        for part in x.chunk(max(1, len(x) // 500)):  # parts of the same size, give or take one image
            model(part.contiguous(memory_format=torch.channels_last))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
