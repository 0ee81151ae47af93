"""Depth that adapts itself: how near each trained block is to the identity, and what removing it costs.

He et al. 2015 (arXiv:1512.03385), section 3.1 and figure 7; blocks that start as the identity: arXiv:1706.02677,
section 5.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused.models import cifar_resnet

from .common import data, figures
from .common.blocks import arranged, blocks_of, deleted, without_branch
from .common.context import Context
from .common.report import Report, percent, spread
from .common.training import Curve, Recipe, check_fused, fit, logits, network

TITLE = "Depth that adapts itself: how near blocks are to the identity, and what removing them costs"
NEAR = 0.3  # a block whose ratio is less counts as near the identity
KINDS = {False: ("without zero init", figures.PLAIN, "s"), True: ("zero init", figures.RESIDUAL, "o")}


@dataclass(frozen=True)
class Run:
    """One network to train and, if it is fused, to measure. ``zero_init``: the branches start as zero."""

    depth: int
    zero_init: bool
    fused: bool
    seed: int
    recipe: Recipe
    draws: int  # random orders
    cifar10: Path | None = None

    @property
    def blocks(self) -> int:
        return (self.depth - 2) // 2

    def data(self) -> data.Data:
        return data.digits() if self.cifar10 is None else data.cifar10(self.cifar10)

    def network(self, channels: int, fused: bool) -> nn.Module:
        return network(partial(_build, self.depth, self.zero_init, channels), self.seed, fused)


def _build(depth: int, zero_init: bool, channels: int) -> nn.Module:
    model = cifar_resnet(depth, in_channels=channels)
    if zero_init:
        for block in blocks_of(model):
            nn.init.zeros_(block.bn2.weight)
    return model


@dataclass(frozen=True)
class Measured:
    """What one network gave. ``ratios``: one per block. ``nearest`` and ``random``: test errors, fractions in [0, 1].

    ``nearest[k]``: without the branches of the k blocks that are nearest to the identity; ``random[k]``: of k random
    blocks, the mean over draws.
    """

    data: str
    curve: Curve
    start: tuple[float, ...] = ()  # the ratios before training
    ratios: tuple[float, ...] = ()
    nearest: tuple[float, ...] = ()
    random: tuple[float, ...] = ()
    checks: dict[str, tuple[np.ndarray, np.ndarray]] | None = None  # eager and fused from the same weights


def measure(run: Run) -> Measured:
    """Trains one network; if it is fused, removes its blocks, and compares with an eager network of its weights."""
    images = run.data()
    model = run.network(images.channels, run.fused)
    if not run.fused:
        return Measured(images.name, fit(model, images, run.recipe, run.seed))
    x, y = images.test_x[:1000], images.test_y[:1000]
    start = ratios(model, x, fused=True)
    curve = fit(model, images, run.recipe, run.seed, require_fused=True)
    trained = ratios(model, x, fused=True)
    eager = run.network(images.channels, fused=False)
    eager.load_state_dict(model.state_dict())
    seen: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])

    def errors(order: Sequence[int]) -> list[float]:
        """Test errors without the first 0, 1, 2, ... blocks of ``order``."""
        found = []
        for k in range(run.blocks + 1):
            with arranged(model, deleted(model, order[:k])), torch.no_grad():
                if k == run.blocks // 2:
                    check_fused(model, x[:2])
                fused = logits(model, x)
            with arranged(eager, deleted(eager, order[:k])):
                seen[0].append(logits(eager, x[:100]).numpy())
            seen[1].append(fused[:100].numpy())
            found.append(int((fused.argmax(1) != y).sum()) / len(y))
        return found

    draw = np.random.default_rng(run.seed)
    nearest = errors(np.argsort(trained).tolist())
    random = np.mean([errors(draw.permutation(run.blocks).tolist()) for _ in range(run.draws)], axis=0)
    checks = {
        "ratios": (np.array(ratios(eager, x, fused=False)), np.array(trained)),
        "logits without blocks": (np.stack(seen[0]), np.stack(seen[1])),
    }
    return Measured(images.name, curve, start, trained, tuple(nearest), tuple(random.tolist()), checks)


def ratios(model: nn.Module, x: Tensor, fused: bool) -> tuple[float, ...]:
    """For each block the mean over images of |F(x)| / |S(x)|, in eval mode.

    F is the branch up to its last BatchNorm, S the shortcut. The ReLU after the addition hides F in the output of a
    block, so its layers are also called as a sequence, which ``convert`` fuses too.
    """
    model.eval()
    found = []
    with torch.no_grad():
        x = model.relu(model.bn1(model.conv1(x.contiguous(memory_format=torch.channels_last))))
        for block in blocks_of(model):
            branch = nn.Sequential(block.conv1, block.bn1, block.relu, block.conv2, block.bn2).eval()
            if fused:
                resnet_fused.convert(branch, chains=True)
                check_fused(branch, x[:2])
                check_fused(block, x[:2])
            change, kept = branch(x), without_branch(block)(x)
            found.append(float((change.flatten(1).norm(dim=1) / kept.flatten(1).norm(dim=1)).mean()))
            x = block(x)
    return tuple(found)


def run(context: Context) -> Report:
    if context.cifar10 is not None:
        depths, recipe, draws = (20, 56), Recipe(epochs=1 if context.quick else 60), 5
    elif context.quick:
        depths, recipe, draws = (8, 14), Recipe(epochs=1, batch=512), 1
    else:
        depths, recipe, draws = (20, 56), Recipe(epochs=8, batch=32), 5
    runs = [
        Run(depth, zero_init, fused, seed, recipe, draws, context.cifar10)
        for depth in reversed(depths)
        for fused in (True, False)
        for zero_init in KINDS
        for seed in context.seeds
    ]
    results = context.map("Adaptive depth: training and measuring", measure, runs)

    def of(depth: int, zero_init: bool, fused: bool = True) -> list[Measured]:
        return [results[r] for r in runs if (r.depth, r.zero_init, r.fused) == (depth, zero_init, fused)]

    report = Report(of(depths[0], False)[0].data)
    cases = [(depth, zero_init) for depth in depths for zero_init in KINDS]
    _tables(report, cases, of)
    report.figures["ratios"] = _ratios(depths, of)
    report.figures["removed_blocks"] = _removed(depths, of)
    for depth, zero_init in cases:
        name = f"{depth} layers, {KINDS[zero_init][0]}"
        fused, eager = of(depth, zero_init), of(depth, zero_init, False)
        report.curves(name, [m.curve for m in eager], [m.curve for m in fused], finished=not context.quick)
        for what in fused[0].checks:
            a, b = (np.stack([m.checks[what][i] for m in fused]) for i in (0, 1))
            report.same_weights(f"{name}: {what}", a, b)
        report.numbers[name] = {
            "eager": [vars(m.curve) for m in eager],
            "fused": [vars(m) | {"curve": vars(m.curve), "checks": None} for m in fused],
        }
    return report


def _tables(report: Report, cases, of) -> None:
    rows = [
        (
            f"{depth}, {KINDS[zero_init][0]}",
            spread([float(np.median(m.start)) for m in of(depth, zero_init)], 2),
            spread([float(np.median(m.ratios)) for m in of(depth, zero_init)], 2),
            spread([min(m.ratios) for m in of(depth, zero_init)], 2),
            spread([float(np.sum(np.array(m.ratios) < NEAR)) for m in of(depth, zero_init)]),
            percent([float(np.mean(np.array(m.ratios) < NEAR)) for m in of(depth, zero_init)], 0),
        )
        for depth, zero_init in cases
    ]
    report.table(
        "Norm of the branch, relative to the shortcut, fused blocks",
        (
            "layers",
            "median of blocks, before training",
            "median, trained",
            "smallest, trained",
            f"blocks under {NEAR}",
            "in % of all",
        ),
        rows,
    )
    rows = []
    for depth, zero_init in cases:
        measured = of(depth, zero_init)
        n = len(measured[0].ratios)
        cells = [percent([m.nearest[0] for m in measured])]
        for k in (n // 3, n // 2):
            cells += [percent([m.nearest[k] for m in measured]), percent([m.random[k] for m in measured])]
        cells.append(spread([_removable(m.nearest) for m in measured]))
        rows.append((f"{depth}, {KINDS[zero_init][0]}", *cells))
    report.table(
        "Test error in % after removing blocks, fused blocks",
        (
            "layers",
            "none",
            "a third, nearest first",
            "a third, at random",
            "half, nearest first",
            "half, at random",
            "nearest blocks removed at no more than 2 points",
        ),
        rows,
    )


def _removable(errors: Sequence[float]) -> float:
    """The number of blocks that can be removed before the error first rises by more than 2 points."""
    return float(next((k - 1 for k, e in enumerate(errors) if e > errors[0] + 0.02), len(errors) - 1))


def _ratios(depths, of):
    figure, axes = figures.panels(len(depths), sharey=True)
    for axis, depth in zip(axes, depths, strict=True):
        n = len(of(depth, False)[0].ratios)
        blocks = range(1, n + 1)
        start = [m.start for m in of(depth, False)]
        figures.band(axis, blocks, start, "before training, without zero init", figures.GREY, linestyle="--")
        for zero_init, (kind, colour, marker) in KINDS.items():
            runs = [m.ratios for m in of(depth, zero_init)]
            figures.band(axis, blocks, runs, f"trained, {kind}", colour, marker=marker, markersize=4)
        axis.axhline(NEAR, color=figures.GREY, linewidth=1, linestyle=":")
        axis.set_title(f"{depth} layers")
        axis.set_xlabel("number of the block")
        axis.set_yscale("log")
    axes[0].set_ylabel("|F(x)| / |S(x)|, mean over images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _removed(depths, of):
    figure, axes = figures.panels(len(depths), sharey=True)
    for axis, depth in zip(axes, depths, strict=True):
        for zero_init, (kind, colour, marker) in KINDS.items():
            counts = range(len(of(depth, zero_init)[0].nearest))
            for label, style in (("nearest", "-"), ("random", ":")):
                runs = [[100 * e for e in getattr(m, label)] for m in of(depth, zero_init)]
                name = f"{kind}, {'nearest first' if label == 'nearest' else 'at random'}"
                figures.band(axis, counts, runs, name, colour, linestyle=style, marker=marker, markersize=4)
        axis.set_title(f"{depth} layers")
        axis.set_xlabel(f"blocks removed, of {len(counts) - 1}")
    axes[0].set_ylabel("test error, %")
    axes[0].set_ylim(0, 100)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
