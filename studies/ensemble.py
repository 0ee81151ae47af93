"""Residual networks as ensembles of shallow ones (Veit, Wilber and Belongie 2016, arXiv:1605.06431).

Deletes and permutes blocks of trained networks, and decomposes the gradient by the length of its paths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resnet_fused.models import cifar_resnet

from .common import data, figures
from .common.blocks import arranged, blocks_of, deleted, keeps_shape, without_branch
from .common.context import Context
from .common.report import Report, percent, spread
from .common.training import Curve, Recipe, check_fused, error, fit, logits, network

TITLE = "An ensemble of shallow networks: what deleting and permuting blocks costs, and which paths carry the gradient"
KINDS = {False: ("plain", figures.PLAIN, "s"), True: ("residual", figures.RESIDUAL, "o")}
Order = tuple[int, ...]  # the numbers of blocks, from input to output


@dataclass(frozen=True)
class Size:
    """How much to compute."""

    depth: int
    recipe: Recipe
    train: int  # images
    test: int
    draws: int  # random deletions and permutations of each kind
    batches: int  # whose gradients are decomposed
    samples: int  # paths of each length and batch


@dataclass(frozen=True)
class Run:
    """One network to train and, if fused, to measure."""

    residual: bool
    fused: bool
    seed: int
    size: Size
    cifar10: Path | None = None

    def data(self) -> data.Data:
        found = data.mnist(14, self.size.train) if self.cifar10 is None else data.cifar10(self.cifar10)
        return replace(found, test_x=found.test_x[: self.size.test], test_y=found.test_y[: self.size.test])

    def network(self, fused: bool) -> nn.Module:
        channels = self.data().channels
        return network(
            partial(cifar_resnet, self.size.depth, residual=self.residual, in_channels=channels), self.seed, fused
        )


@dataclass(frozen=True)
class Paths:
    """The gradient of the loss with respect to the first block's input, by number k of branches on a path, 0 to n."""

    one: tuple[float, ...]  # the mean norm over sampled single paths
    share: tuple[float, ...]  # the part of all paths together, G_k G / |G|^2
    norm: tuple[float, ...]  # |G_k| / |G|


@dataclass(frozen=True)
class Measured:
    """Test errors are fractions in [0, 1]; ``single`` has one per block, the others one per number and draw."""

    data: str
    curve: Curve
    test_error: float
    single: tuple[float, ...] = ()
    several: dict[int, tuple[float, ...]] | None = None
    permuted: dict[int, tuple[float, ...]] | None = None
    paths: tuple[Paths, ...] = ()  # before and after training, of residual networks
    checks: dict[str, tuple[np.ndarray, np.ndarray]] | None = None  # eager and fused from the same weights


def measure(run: Run) -> Measured:
    """Trains one network; if it is fused, deletes and permutes its blocks, and compares with an eager network."""
    images = run.data()
    model = run.network(run.fused)
    paths = [by_length(model, images, run)] if run.fused and run.residual else []
    curve = fit(model, images, run.size.recipe, run.seed, require_fused=run.fused)
    test_error = error(model, images.test_x, images.test_y)
    if not run.fused:
        return Measured(images.name, curve, test_error)
    eager = run.network(fused=False)
    eager.load_state_dict(model.state_dict())
    seen: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {"deletions": ([], []), "permutations": ([], [])}

    def error_of(what: str, order: Order, chosen: Sequence[int] = ()) -> float:
        with arranged(eager, [deleted(eager, chosen)[i] for i in order]):
            seen[what][0].append(logits(eager, images.test_x[:100]).numpy())
        with arranged(model, [deleted(model, chosen)[i] for i in order]), torch.no_grad():
            check_fused(model, images.test_x[:2])
            found = logits(model, images.test_x)
        seen[what][1].append(found[:100].numpy())
        return int((found.argmax(1) != images.test_y).sum()) / len(found)

    natural = tuple(range(len(blocks_of(model))))
    single = tuple(error_of("deletions", natural, [i]) for i in natural)
    several = {
        k: tuple(error_of("deletions", natural, chosen) for chosen in draws) for k, draws in deletions(run.size).items()
    }
    permuted = {
        k: tuple(error_of("permutations", order) for order in draws) for k, draws in permutations(run.size).items()
    }
    checks = {f"logits after {what}": (np.stack(a), np.stack(b)) for what, (a, b) in seen.items()}
    if run.residual:
        paths.append(by_length(model, images, run))
        expected = by_length(eager, images, run, fused=False)
        for name, what in (("one", "norms by path length"), ("share", "shares of the gradient")):
            a, b = np.array(getattr(expected, name)), np.array(getattr(paths[-1], name))
            checks[what] = (np.ones_like(a), b / a) if name == "one" else (a, b)  # each norm counts alike
    return Measured(images.name, curve, test_error, single, several, permuted, tuple(paths), checks)


def by_length(model: nn.Module, images: data.Data, run: Run, fused: bool = True) -> Paths:
    """Decomposes the gradient on training batches, in training mode; leaves the model as it was.

    A block computes ``y = relu(F(x) + S(x))``. So the gradient g of y gives ``D g`` for both summands, where D is 1
    where y > 0 and else 0; through the shortcut it is ``S^T D g``, and through the branch, that of the block minus it.
    """
    state = {name: value.clone() for name, value in model.state_dict().items()}
    draw = np.random.default_rng(run.seed)
    n = len(blocks_of(model))
    one, shares, norms = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1)
    model.train().requires_grad_(False)
    for i in range(run.size.batches):
        part = slice(i * run.size.recipe.batch, (i + 1) * run.size.recipe.batch)
        steps, gradient = forward(model, images.train_x[part], images.train_y[part], fused)
        for k in range(n + 1):
            for _ in range(run.size.samples):
                chosen = draw.choice(n, k, replace=False).tolist()
                one[k] += float(along(steps, gradient, chosen).norm()) / run.size.samples / run.size.batches
        sums = summed(steps, gradient)
        whole = torch.stack(sums).sum(0)
        shares += [float((g * whole).sum() / whole.square().sum()) / run.size.batches for g in sums]
        norms += [float(g.norm() / whole.norm()) / run.size.batches for g in sums]
    model.requires_grad_(True)
    model.load_state_dict(state)
    return Paths(tuple(one.tolist()), tuple(shares.tolist()), tuple(norms.tolist()))


def along(steps: Sequence["Step"], gradient: Tensor, chosen: Sequence[int]) -> Tensor:
    """The gradient of one path, through the branches of the blocks ``chosen`` and the shortcuts of the others."""
    for i in reversed(range(len(steps))):
        gradient = steps[i].branch(gradient) if i in chosen else steps[i].shortcut(gradient)
    return gradient


def summed(steps: Sequence["Step"], gradient: Tensor) -> list[Tensor]:
    """By k, the sum over all paths through exactly k branches."""
    sums = [gradient]
    for step in reversed(steps):
        direct = [step.shortcut(g) for g in sums]
        branch = [step.block(g) - d for g, d in zip(sums, direct, strict=True)]
        zero = [torch.zeros_like(direct[0])]
        sums = [d + b for d, b in zip(direct + zero, zero + branch, strict=True)]
    return sums


@dataclass(frozen=True)
class Step:
    """One block of a forward pass, whose gradients can be computed again and again."""

    x: Tensor
    y: Tensor
    direct: Tensor  # the shortcut of x
    active: Tensor  # where y > 0

    def block(self, g: Tensor) -> Tensor:
        return torch.autograd.grad(self.y, self.x, g, retain_graph=True)[0]

    def shortcut(self, g: Tensor) -> Tensor:
        return torch.autograd.grad(self.direct, self.x, g * self.active, retain_graph=True)[0]

    def branch(self, g: Tensor) -> Tensor:
        return self.block(g) - self.shortcut(g)


def forward(model: nn.Module, x: Tensor, labels: Tensor, fused: bool) -> tuple[list[Step], Tensor]:
    """The steps, and the gradient of the mean loss with respect to the last block's output."""
    with torch.no_grad():
        x = model.relu(model.bn1(model.conv1(x.contiguous(memory_format=torch.channels_last))))
    steps = []
    for block in blocks_of(model):
        x = x.detach().requires_grad_()
        if fused:
            check_fused(block, x)
        y = block(x)
        steps.append(Step(x, y, without_branch(block)(x), (y > 0).to(y.dtype)))
        x = y
    x = x.detach().requires_grad_()
    loss = nn.functional.cross_entropy(model.fc(torch.flatten(model.avgpool(x), 1)), labels)
    return steps, torch.autograd.grad(loss, x)[0]


def _movable(size: Size) -> list[list[int]]:
    """The blocks of each stage that keep the shape."""
    with torch.device("meta"):
        blocks = blocks_of(cifar_resnet(size.depth))
    stage = len(blocks) // 3
    return [[i for i in range(first, first + stage) if keeps_shape(blocks[i])] for first in (0, stage, 2 * stage)]


def deletions(size: Size) -> dict[int, list[Order]]:
    """By k, draws of k blocks to delete: the same for all networks."""
    draw = np.random.default_rng(0)
    candidates = [i for stage in _movable(size) for i in stage]
    counts = sorted({k for k in (1, 2, 3, 4, 6, 8, 10) if k < len(candidates)} | {len(candidates)})
    repeats = {k: 1 if k == len(candidates) else size.draws for k in counts}
    return {k: [tuple(draw.choice(candidates, k, replace=False).tolist()) for _ in range(repeats[k])] for k in counts}


def permutations(size: Size) -> dict[int, list[Order]]:
    """By number of exchanges of two random blocks of a stage, orders of all blocks: the same for all networks."""
    draw = np.random.default_rng(0)
    stages = _movable(size)
    result: dict[int, list[Order]] = {}
    for swaps in (1, 2, 3, 5, 20):
        result[swaps] = []
        while len(result[swaps]) < size.draws:
            order = list(range((size.depth - 2) // 2))
            for _ in range(swaps):
                stage = stages[draw.integers(len(stages))]
                if len(stage) > 1:
                    i, j = draw.choice(stage, 2, replace=False)
                    order[i], order[j] = order[j], order[i]
            result[swaps].append(tuple(order))
    return result


def kendall_tau(order: Order, stages: Sequence[Sequence[int]]) -> float:
    """(pairs in order - pairs out of order) / pairs, over the pairs of movable blocks of one stage."""
    signs = [math.copysign(1, order[b] - order[a]) for stage in stages for a in stage for b in stage if a < b]
    return sum(signs) / len(signs)


def run(context: Context) -> Report:
    if context.quick:
        size = Size(depth=14, recipe=Recipe(epochs=1, batch=64), train=128, test=50, draws=1, batches=1, samples=1)
    elif context.cifar10 is not None:
        size = Size(depth=32, recipe=Recipe(epochs=60), train=50000, test=2000, draws=6, batches=2, samples=10)
    else:
        size = Size(depth=32, recipe=Recipe(epochs=8, batch=32), train=1000, test=500, draws=6, batches=4, samples=5)
    runs = [
        Run(residual, fused, seed, size, context.cifar10)
        for fused in (True, False)
        for residual in (True, False)
        for seed in context.seeds
    ]
    results = context.map("Ensemble: training and measuring", measure, runs)

    def of(residual: bool, fused: bool = True) -> list[Measured]:
        return [results[r] for r in runs if (r.residual, r.fused) == (residual, fused)]

    report = Report(f"{of(True)[0].data}, {size.train} for training and {size.test} for testing")
    _tables(report, size, of)
    report.figures["deleted_blocks"] = _deleted(size, of)
    report.figures["permuted_blocks"] = _permuted(size, of)
    report.figures["path_lengths"] = _path_lengths(of(True))
    for residual, (kind, _, _) in KINDS.items():
        report.curves(
            kind, [m.curve for m in of(residual, False)], [m.curve for m in of(residual)], finished=not context.quick
        )
        for what in of(residual)[0].checks:
            eager, fused = (np.stack([m.checks[what][i] for m in of(residual)]) for i in (0, 1))
            report.same_weights(f"{kind}: {what}", eager, fused)
        report.numbers[kind] = {
            "eager": [vars(m.curve) for m in of(residual, False)],
            "fused": [
                vars(m) | {"curve": vars(m.curve), "paths": [vars(p) for p in m.paths], "checks": None}
                for m in of(residual)
            ],
        }
    return report


def _tables(report: Report, size: Size, of) -> None:
    stages = _movable(size)
    inner = [i for stage in stages for i in stage]
    outer = [i for i in range((size.depth - 2) // 2) if i not in inner]

    def row(title: str, value: Callable[[Measured], float]) -> tuple[str, ...]:
        return title, *(percent([float(value(m)) for m in of(residual)]) for residual in KINDS)

    rows = [
        row("all blocks in order", lambda m: m.test_error),
        row("one deleted, mean of those that keep the shape", lambda m: np.mean([m.single[i] for i in inner])),
        row("one deleted, the worst of them", lambda m: max(m.single[i] for i in inner)),
        row("one deleted, mean of those that change it", lambda m: np.mean([m.single[i] for i in outer])),
    ]
    rows += [row(f"{k} deleted at random", lambda m, k=k: np.mean(m.several[k])) for k in deletions(size)]
    for swaps, orders in permutations(size).items():
        tau = np.mean([kendall_tau(order, stages) for order in orders])
        title = f"{swaps} exchange{'s' * (swaps > 1)}, Kendall tau {tau:.2f}"
        rows.append(row(title, lambda m, swaps=swaps: np.mean(m.permuted[swaps])))
    report.table("Test error in %, fused blocks", ("blocks", *(kind for kind, _, _ in KINDS.values())), rows)
    rows = []
    for when, index in (("before training", 0), ("trained", 1)):
        paths = [m.paths[index] for m in of(True)]
        one = [_times_count(p.one) for p in paths]
        low, high = np.searchsorted(np.cumsum(np.mean(one, axis=0)), (0.05, 0.95))
        means = [[float(np.arange(len(w)) @ w) for w in weights] for weights in (one, [p.share for p in paths])]
        largest = spread([max(p.norm) for p in paths], 2)
        rows.append((when, f"{low} to {high}", spread(means[0]), spread(means[1]), largest))
    n = (size.depth - 2) // 2
    report.table(
        f"Lengths of the paths that carry the gradient, in branches of {n} (mean over all paths: {n / 2})",
        ("", "one path: 90 % of it from", "one path: mean", "all paths: mean", "largest norm of G_k, relative to G"),
        rows,
    )


def _times_count(one: Sequence[float]) -> np.ndarray:
    """Mean norms of one path times the number of paths, divided by their sum."""
    weighted = np.array(one) * [math.comb(len(one) - 1, k) for k in range(len(one))]
    return weighted / weighted.sum()


def _deleted(size: Size, of):
    figure, axes = figures.panels(2, sharey=True)
    blocks = range(1, len(of(True)[0].single) + 1)
    inner = [i for stage in _movable(size) for i in stage]
    for residual, (kind, colour, marker) in KINDS.items():
        line = {"marker": marker, "markersize": 4}
        figures.band(axes[0], blocks, [[100 * e for e in m.single] for m in of(residual)], kind, colour, **line)
        counts = [0, *of(residual)[0].several]
        runs = [
            [100 * m.test_error, *(100 * float(np.mean(errors)) for errors in m.several.values())] for m in of(residual)
        ]
        figures.band(axes[1], counts, runs, kind, colour, **line)
    for i in blocks:
        if i - 1 not in inner:
            axes[0].axvline(i, color=figures.GREY, linestyle=":", linewidth=1, zorder=0)
    axes[0].set_title("one block deleted")
    axes[0].set_xlabel("number of the deleted block\n(dotted: it changes the shape)")
    axes[0].set_ylabel("test error, %")
    axes[1].set_title("several blocks deleted at random")
    axes[1].set_xlabel(f"number of deleted blocks, of {len(inner)}")
    axes[0].set_ylim(0, 100)
    axes[0].legend(loc="center right")
    return figure


def _permuted(size: Size, of):
    figure, (axis,) = figures.panels(1, width=6)
    stages = _movable(size)
    taus = [1.0, *(np.mean([kendall_tau(o, stages) for o in orders]) for orders in permutations(size).values())]
    for residual, (kind, colour, marker) in KINDS.items():
        runs = [
            [100 * m.test_error, *(100 * float(np.mean(errors)) for errors in m.permuted.values())]
            for m in of(residual)
        ]
        figures.band(axis, taus, runs, kind, colour, marker=marker, markersize=4)
    axis.invert_xaxis()
    axis.set_xlabel("Kendall tau of the order of blocks (1: as trained, 0: random)")
    axis.set_ylabel("test error, %")
    axis.set_ylim(0, 100)
    axis.legend()
    return figure


def _path_lengths(measured: list[Measured]):
    figure, axes = figures.panels(3)
    lengths = range(len(measured[0].paths[0].one))
    for index, when, colour, marker in (
        (0, "before training", figures.GREY, "s"),
        (1, "trained", figures.RESIDUAL, "o"),
    ):
        paths = [m.paths[index] for m in measured]
        line = {"marker": marker, "markersize": 4}
        figures.band(axes[0], lengths, [np.array(p.one) / p.one[0] for p in paths], when, colour, **line)
        figures.band(axes[1], lengths, [100 * _times_count(p.one) for p in paths], when, colour, **line)
        figures.band(axes[2], lengths, [100 * np.array(p.share) for p in paths], when, colour, **line)
    n = len(lengths) - 1
    count = [100 * math.comb(n, k) / 2**n for k in lengths]
    axes[1].plot(lengths, count, color=figures.PLAIN, linestyle="--", label="number of paths")
    axes[0].set_yscale("log")
    titles = ("one path", "its norm times the number of paths", "all paths of a length, summed")
    labels = ("norm of the gradient, relative to length 0", "part of the sum over lengths, %", "part of the whole, %")
    for axis, title, label in zip(axes, titles, labels, strict=True):
        axis.set_title(title)
        axis.set_ylabel(label)
        axis.set_xlabel("branches on the path")
        axis.legend()
    return figure
