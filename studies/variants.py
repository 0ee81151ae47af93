"""Variants: v1 and v2, shortcuts A to C, the place of ReLU and addition, twice the filters at half the resolution
(He et al. 2015, arXiv:1512.03385, sections 3.3 and 4.1; He et al. 2016, arXiv:1603.05027, figure 4)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

import resnet_fused

from . import variants_blocks as blocks
from .common import data, figures
from .common.context import Context
from .common.networks import Fusing, fusing
from .common.report import Report, percent
from .common.training import Curve, Recipe, fit, logits, network

TITLE = "Variants: v1 and v2, shortcuts, the place of ReLU and addition, and the design rule"
COLOURS = (figures.RESIDUAL, figures.PLAIN, figures.THIRD, figures.FOURTH, figures.GREY)
MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Design:
    """A network of ``6n + 2`` layers; ``option`` names its shortcuts."""

    n: int
    place: str = blocks.V1
    option: str = "A"
    widths: tuple[int, ...] = (16, 32, 64)
    strides: tuple[int, ...] = (1, 2, 2)

    @property
    def depth(self) -> int:
        return 2 * self.n * len(self.widths) + 2

    def __str__(self) -> str:
        size = "" if self.strides[-1] == 2 else ", constant resolution"
        widths = "-".join(map(str, self.widths))
        return f"{self.place}, {self.depth} layers, shortcut {self.option}, {widths} channels{size}"

    def build(self) -> nn.Module:
        return blocks.build(self.place, self.n, self.option, self.widths, self.strides, data.digits().channels)


# Equal total multiply-adds, as nearly as whole channels allow; the first is the paper's rule.
RULES: dict[str, dict[str, tuple[int, ...]]] = {
    "half the resolution, 2x the filters": {},
    "half the resolution, 4x the filters": {"widths": (6, 25, 100)},
    "half the resolution, constant width": {"widths": (24, 24, 24)},
    "constant resolution and width": {"widths": (16, 16, 16), "strides": (1, 1, 1)},
}
OPTIONS = ("A", "B", "C")


@dataclass(frozen=True)
class Run:
    """One network to train."""

    design: Design
    fused: bool
    seed: int
    recipe: Recipe


@dataclass(frozen=True)
class Trained:
    """A training run. ``logits`` of test images from the trained weights, eager and fused, of eager runs only."""

    curve: Curve
    logits: tuple[list[list[float]], ...] = ()


@dataclass(frozen=True)
class Cost:
    """``parameters``, multiply-adds of convolutions of one image ``per_block``, and what runs fused."""

    parameters: int
    per_block: tuple[int, ...]
    fusing: Fusing


def train(run: Run) -> Trained:
    images = data.digits()
    model = network(run.design.build, run.seed, run.fused)
    curve = fit(model, images, run.recipe, run.seed)
    if run.fused:
        return Trained(curve)
    eager = logits(model, images.test_x).tolist()
    fused = logits(resnet_fused.convert(model, chains=True), images.test_x).tolist()
    return Trained(curve, (eager, fused))


def measure(design: Design) -> Cost:
    """Counts with hooks, so on the eager network."""
    x = data.digits().train_x[:8].contiguous(memory_format=torch.channels_last)
    model = network(design.build, 0, fused=False)
    units = [unit for stage in model.stages for unit in stage]
    counts = dict.fromkeys(units, 0)
    for unit in units:
        for conv in (module for module in unit.modules() if isinstance(module, nn.Conv2d)):

            def count(conv: nn.Conv2d, args: tuple, out: torch.Tensor, unit: nn.Module = unit) -> None:
                counts[unit] += out[0].numel() * conv.weight[0].numel()

            conv.register_forward_hook(count)
    logits(model, x)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fresh = network(design.build, 0, fused=False)
    return Cost(parameters, tuple(counts.values()), fusing(fresh, blocks.BLOCKS, x))


def run(context: Context) -> Report:
    small, large = (1, 1) if context.quick else (3, 7)
    recipe = Recipe(epochs=1 if context.quick else 5, batch=128 if context.quick else 64)
    places = {place: Design(large, place) for place in blocks.PLACES}
    versions = {(place, n): Design(n, place) for n in (small, large) for place in (blocks.V1, blocks.V2)}
    options = {option: Design(small, option=option) for option in OPTIONS}
    rules = {rule: Design(small, **shape) for rule, shape in RULES.items()}
    parts = (places, versions, options, rules)
    designs = list(dict.fromkeys(design for part in parts for design in part.values()))
    runs = [Run(design, fused, seed, recipe) for design in designs for seed in context.seeds for fused in (False, True)]
    trained = context.map("Variants: training", train, runs)
    costs = context.map("Variants: multiply-adds", measure, designs)

    def of(design: Design, fused: bool = True) -> list[Curve]:
        return [result.curve for run, result in trained.items() if (run.design, run.fused) == (design, fused)]

    def errors(design: Design) -> tuple[str, str]:
        """Training and test."""
        curves = of(design)
        return percent([c.train_error[-1] for c in curves]), percent([c.test_error[-1] for c in curves])

    report = Report(data.digits().name)
    after = f"error in % after {recipe.epochs} epochs, fused networks"
    report.table(
        f"(a) v1 and v2: {after}",
        ("layers", "v1: training", "v2: training", "v1: test", "v2: test"),
        [
            (Design(n).depth, v1[0], v2[0], v1[1], v2[1])
            for n in (small, large)
            for v1, v2 in [(errors(versions[blocks.V1, n]), errors(versions[blocks.V2, n]))]
        ],
    )
    report.table(
        f"(b) Shortcuts, v1, {Design(small).depth} layers: {after}",
        ("option", "parameters", "training", "test"),
        [(option, f"{costs[design].parameters:,}", *errors(design)) for option, design in options.items()],
    )
    report.table(
        f"(c) ReLU and addition, {Design(large).depth} layers: {after}",
        ("block", "training", "test", "blocks that ran fused", "`report` before `convert`"),
        [
            (place, *errors(design), costs[design].fusing, costs[design].fusing.reason or "convertible")
            for place, design in places.items()
        ],
    )
    report.table(
        f"(d) The design rule, v1, {Design(small).depth} layers: multiply-adds of each stage's last block; {after}",
        ("rule", "channels", *(f"stage {i}" for i in (1, 2, 3)), "all blocks", "parameters", "training", "test"),
        [
            (
                rule,
                ", ".join(map(str, design.widths)),
                *(f"{cost / 1e3:.0f} k" for cost in costs[design].per_block[design.n - 1 :: design.n]),
                f"{sum(costs[design].per_block) / 1e6:.2f} M",
                f"{costs[design].parameters:,}",
                *errors(design),
            )
            for rule, design in rules.items()
        ],
    )
    for design in designs:
        for run_, result in trained.items():
            if run_.design == design and result.logits and run_.seed == context.seeds[0]:
                report.same_weights(f"{design}: logits of the trained network", *result.logits)
        report.curves(str(design), of(design, False), of(design), finished=not context.quick)
        report.numbers[str(design)] = {
            "parameters": costs[design].parameters,
            "multiply-adds per block": costs[design].per_block,
            "fusing": vars(costs[design].fusing),
            "eager": [vars(curve) for curve in of(design, False)],
            "fused": [vars(curve) for curve in of(design)],
        }
    report.figures["versions"] = _versions(versions, (small, large), of)
    report.figures["places"] = _compared(places, of)
    report.figures["rules"] = _rules(rules, costs, of)
    return report


Of = Callable[..., list[Curve]]


def _training(of: Of, design: Design) -> list[tuple[float, ...]]:
    return [curve.train_error for curve in of(design)]


def _versions(versions: dict, sizes: Iterable[int], of: Of):
    figure, axes = figures.panels(2, sharey=True)
    for axis, n in zip(axes, sizes, strict=True):
        for place, name, colour, marker in ((blocks.V1, "v1", COLOURS[0], "o"), (blocks.V2, "v2", COLOURS[1], "s")):
            figures.errors_by_epoch(axis, _training(of, versions[place, n]), name, colour, marker=marker)
        axis.set_title(f"{Design(n).depth} layers")
        axis.legend()
    figures.log_percent(axes[0], "training error, %")
    return figure


def _compared(places: dict[str, Design], of: Of):
    figure, (axis,) = figures.panels(1, width=7, height=4)
    for (place, design), colour, marker in zip(places.items(), COLOURS, MARKERS, strict=True):
        figures.errors_by_epoch(axis, _training(of, design), place, colour, marker=marker)
    axis.set_title(f"{next(iter(places.values())).depth} layers")
    axis.legend()
    figures.log_percent(axis, "training error, %")
    return figure


def _rules(rules: dict[str, Design], costs: dict[Design, Cost], of: Of):
    figure, axes = figures.panels(2, height=4.4)
    for (rule, design), colour, marker in zip(rules.items(), COLOURS, MARKERS, strict=False):
        thousands = [cost / 1e3 for cost in costs[design].per_block]
        axes[0].plot(range(1, len(thousands) + 1), thousands, color=colour, marker=marker, markersize=4)
        figures.errors_by_epoch(axes[1], _training(of, design), rule, colour, marker=marker)
    axes[0].set_title("cost of each block")
    axes[0].set_xlabel("block")
    axes[0].set_ylabel("multiply-adds per image, thousands")
    axes[0].set_ylim(bottom=0)
    axes[1].set_title("training")
    figures.log_percent(axes[1], "training error, %")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
