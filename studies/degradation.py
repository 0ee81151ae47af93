"""Degradation: training error of plain and residual networks by depth (He et al. 2015, arXiv:1512.03385, figure 1)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from resnet_fused.models import cifar_resnet

from .common import data, figures
from .common.context import Context
from .common.report import Report, percent
from .common.training import Curve, Recipe, early_losses, fit, network

TITLE = "Degradation: deeper plain networks train worse, deeper residual networks do not"


@dataclass(frozen=True)
class Run:
    """One network to train."""

    depth: int
    residual: bool
    fused: bool
    seed: int
    recipe: Recipe
    cifar10: Path | None = None

    def data(self) -> data.Data:
        return data.digits() if self.cifar10 is None else data.cifar10(self.cifar10)

    def device(self) -> str:
        return "cuda" if self.cifar10 is not None and torch.cuda.is_available() else "cpu"


def train(run: Run) -> Curve:
    images = run.data()
    build = partial(cifar_resnet, run.depth, residual=run.residual, in_channels=images.channels)
    model = network(build, run.seed, run.fused).to(run.device())
    return fit(model, images, run.recipe, run.seed, require_fused=run.fused)


def first_losses(run: Run) -> tuple[float, ...]:
    """In float64, of the eager network on the CPU."""
    images = run.data()
    build = partial(cifar_resnet, run.depth, residual=run.residual, in_channels=images.channels)
    return early_losses(network(build, run.seed, fused=False).double(), images, run.recipe, run.seed)


def run(context: Context) -> Report:
    if context.cifar10 is not None:
        depths, recipe = (20, 56), Recipe(epochs=1 if context.quick else 30)
    elif context.quick:
        depths, recipe = (8, 14), Recipe(epochs=2)
    else:
        depths, recipe = (8, 14, 20, 32, 44, 56), Recipe(epochs=20)
    runs = [
        Run(depth, residual, fused, seed, recipe, context.cifar10)
        for depth in reversed(depths)
        for residual in (True, False)
        for seed in context.seeds
        for fused in (False, True)
    ]
    curves = context.map("Degradation: training", train, runs)
    exact = context.map("Degradation: first losses, float64", first_losses, [run for run in runs if not run.fused])
    return summary(curves, exact, finished=not context.quick)


def summary(curves: dict[Run, Curve], exact: dict[Run, tuple[float, ...]], finished: bool) -> Report:
    """The report. ``exact`` has the first losses of each eager run in float64."""
    run = next(iter(curves))
    depths, recipe = sorted({run.depth for run in curves}), run.recipe

    def of(depth: int, residual: bool, fused: bool = True) -> list[Curve]:
        return [curves[run] for run in curves if (run.depth, run.residual, run.fused) == (depth, residual, fused)]

    report = Report(run.data().name)
    report.table(
        f"Training and test error in % after {recipe.epochs} epochs, fused blocks",
        ("depth", "plain: training", "residual: training", "plain: test", "residual: test"),
        [
            (
                depth,
                *(percent([c.train_error[-1] for c in of(depth, residual)]) for residual in (False, True)),
                *(percent([c.test_error[-1] for c in of(depth, residual)]) for residual in (False, True)),
            )
            for depth in depths
        ],
    )
    for residual in (False, True):
        for depth in depths:
            kind = f"{'residual' if residual else 'plain'} {depth}"
            truth = [exact[run] for run in exact if (run.depth, run.residual) == (depth, residual)]
            report.curves(kind, of(depth, residual, False), of(depth, residual), finished, truth)
            report.numbers[kind] = {
                "eager": [vars(c) for c in of(depth, residual, False)],
                "fused": [vars(c) for c in of(depth, residual)],
                "first losses in float64": truth,
            }
    report.figures["training_error"] = _by_epoch(depths, recipe, of)
    report.figures["by_depth"] = _by_depth(depths, of)
    return report


def _by_epoch(depths, recipe, of):
    figure, axes = figures.panels(2, sharey=True)
    epochs = range(1, recipe.epochs + 1)
    shown = {depths[0]: figures.GREY, depths[len(depths) // 2]: figures.PLAIN, depths[-1]: figures.RESIDUAL}
    for axis, residual in zip(axes, (False, True), strict=True):
        for depth, colour in shown.items():
            for fused, style in ((True, "-"), (False, ":")):
                runs = [[100 * e for e in c.train_error] for c in of(depth, residual, fused)]
                label = f"{depth} layers, {'fused' if fused else 'eager'}"
                figures.band(axis, epochs, runs, label, colour, linestyle=style)
        axis.set_title("residual" if residual else "plain")
        axis.set_xlabel("epoch")
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    axes[0].set_ylabel("training error, %")
    axes[0].set_ylim(bottom=0)
    return figure


def _by_depth(depths, of):
    figure, (axis,) = figures.panels(1, width=6)
    for residual, colour in ((False, figures.PLAIN), (True, figures.RESIDUAL)):
        for fused, style in ((True, "-"), (False, ":")):
            by_seed = zip(*([100 * c.train_error[-1] for c in of(d, residual, fused)] for d in depths), strict=True)
            label = f"{'residual' if residual else 'plain'}, {'fused' if fused else 'eager'}"
            figures.band(axis, depths, list(by_seed), label, colour, linestyle=style, marker="o", markersize=4)
    axis.set_xticks(depths)
    axis.set_xlabel("layers")
    axis.set_ylabel("training error after the last epoch, %")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure
