"""Errors found in teaching code: each faulty form trained beside the mended one, and what resnet_fused does with it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

import resnet_fused

from . import teaching_blocks as blocks
from .common import data, figures
from .common.context import Context
from .common.networks import Fusing, SmallResNet, fusing, norm_relu
from .common.report import Report, percent, spread
from .common.training import Curve, Recipe, fit, logits, network

TITLE = "Errors found in teaching code: what each costs, and what resnet_fused says about it"
DOUBLE_LIMIT = 1e-6  # float64
LOOKS = {"mended": (figures.PLAIN, "o"), "first": (figures.RESIDUAL, "s"), "second": (figures.THIRD, "^")}

# Each takes the number of blocks per stage.


def deep(block: type[nn.Module], n: int) -> nn.Module:
    return SmallResNet(block, (n, n, n), stem=norm_relu)


def one_stage(block: type[nn.Module], n: int) -> nn.Module:
    """Every unpadded block trims two pixels, so that three blocks leave 2x2 of 8x8."""
    return SmallResNet(block, (3,), (16,), (1,), norm_relu)


def pre_activated(block: type[nn.Module], n: int) -> nn.Module:
    return SmallResNet(block, (n, n, n), stem=norm_relu, end=norm_relu)


def with_softmax(n: int) -> nn.Module:
    return nn.Sequential(deep(blocks.Block, n), nn.Softmax(dim=1))


def with_head(head: Callable[[int], nn.Module], n: int) -> nn.Module:
    body = SmallResNet(blocks.Block, (1, 1), (16, 64), (1, 2), norm_relu)
    return nn.Sequential(body.stem, body.stages, head(64))


@dataclass(frozen=True)
class Part:
    """One error: ``forms`` maps a name to what builds its network of ``n`` blocks per stage; the mended is first."""

    title: str
    n: int
    forms: dict[str, Callable[[int], nn.Module]]


PARTS = {
    "a": Part(
        "(a) no padding",
        1,
        {
            "padded": partial(one_stage, blocks.Block),
            "shortcut cropped": partial(one_stage, blocks.Cropped),
            "branch interpolated": partial(one_stage, blocks.Interpolated),
        },
    ),
    "b": Part(
        "(b) shortcut of the output",
        5,
        {
            "shortcut(x)": partial(deep, blocks.Block),
            "shortcut(out)": partial(deep, blocks.ProjectsOutput),
            "no shortcut": partial(deep, blocks.Plain),
        },
    ),
    "c": Part(
        "(c) bn1 thrown away",
        3,
        {
            "conv1(out)": partial(pre_activated, blocks.PreActivation),
            "conv1(x)": partial(pre_activated, blocks.ConvolvesUnnormalised),
        },
    ),
    "d": Part(
        "(d) softmax before cross-entropy",
        3,
        {"logits": partial(deep, blocks.Block), "softmax": with_softmax},
    ),
    "e": Part(
        "(e) rows of the wrong size",
        1,
        {
            "one row per image": partial(with_head, blocks.Head),
            "reshape(-1, 64)": partial(with_head, blocks.ReshapeOfWrongSize),
        },
    ),
}
# Forms that raise: what builds them, and the memory format of weights and images.
RAISING = {
    "(a) no padding": (partial(one_stage, blocks.Unpadded), torch.channels_last),
    "(b) `out += shortcut(out)`": (partial(deep, blocks.ProjectsOutputInPlace), torch.channels_last),
    "(e) `view(-1, 64)`": (partial(with_head, blocks.ViewOfWrongSize), torch.contiguous_format),
    "(e) `view(-1, 64)`, channels_last": (partial(with_head, blocks.ViewOfWrongSize), torch.channels_last),
}


@dataclass(frozen=True)
class Run:
    """One network to train, or to check."""

    part: str
    form: str
    n: int
    fused: bool = False
    seed: int = 0
    recipe: Recipe | None = None

    def build(self) -> nn.Module:
        return PARTS[self.part].forms[self.form](self.n)

    def __str__(self) -> str:
        return f"{PARTS[self.part].title}: {self.form}"


@dataclass(frozen=True)
class Trained:
    """A training run; of eager runs also the ``logits`` of test images from the trained weights, eager and fused."""

    curve: Curve
    logits: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Checked:
    """``steps``: loss, gradients and buffers after one training step in float64, eager and fused, each tensor relative
    to the largest value of the eager one, or to a millionth of the largest of all where that is more.

    ``without_gradient``: the number of parameters (tensors) that get none, eager and fused.
    """

    fusing: Fusing
    steps: tuple[np.ndarray, np.ndarray]
    without_gradient: tuple[int, int]


def train(run: Run) -> Trained:
    images = data.digits()
    model = network(run.build, run.seed, run.fused)
    curve = fit(model, images, run.recipe, run.seed)
    if run.fused:
        return Trained(curve)
    eager = logits(model, images.test_x).numpy()
    return Trained(curve, (eager, logits(resnet_fused.convert(model, chains=True), images.test_x).numpy()))


def check(run: Run) -> Checked:
    images = data.digits()
    x = images.train_x[:32].contiguous(memory_format=torch.channels_last)
    steps, missing = [], []
    for fused in (False, True):
        model = network(run.build, 0, fused).double()
        loss = nn.functional.cross_entropy(model(x.double()), images.train_y[:32])
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        parts = [loss.detach(), *gradients, *(buffer.double() for buffer in model.buffers())]
        steps.append([part.flatten() for part in parts])
        missing.append(len(list(model.parameters())) - len(gradients))
    sizes = torch.stack([part.abs().max() for part in steps[0]])
    sizes = sizes.clamp_min(1e-6 * sizes.max())
    scaled = [torch.cat([part / size for part, size in zip(step, sizes, strict=True)]).numpy() for step in steps]
    types = tuple({type(unit) for unit in network(run.build, 0, False).modules() if isinstance(unit, UNITS)})
    return Checked(fusing(network(run.build, 0, False), types, x), (scaled[0], scaled[1]), tuple(missing))


UNITS = (blocks.Layers, blocks.PreActivation)


def raised(name: str) -> tuple[str, str]:
    """The exceptions of one training step, with eager blocks and after ``convert``."""
    build, memory_format = RAISING[name]
    images = data.digits()
    x, y = images.train_x[:64].contiguous(memory_format=memory_format), images.train_y[:64]
    texts = []
    for fused in (False, True):
        model = network(partial(build, 1), 0, fused).to(memory_format=memory_format)
        try:
            nn.functional.cross_entropy(model(x), y).backward()
            texts.append("none")
        except (RuntimeError, ValueError) as error:
            texts.append(f"{type(error).__name__}: {str(error).partition(' Hint:')[0]}")
    return texts[0], texts[1]


def run(context: Context) -> Report:
    recipe = Recipe(epochs=1 if context.quick else 5, batch=128 if context.quick else 64)
    forms = [
        Run(key, form, 1 if context.quick else part.n)
        for key, part in sorted(PARTS.items(), key=lambda item: -item[1].n)
        for form in part.forms
    ]
    runs = [
        Run(run.part, run.form, run.n, fused, seed, recipe)
        for run in forms
        for seed in context.seeds
        for fused in (False, True)
    ]
    trained = context.map("Teaching errors: training", train, runs)
    checked = context.map("Teaching errors: fused against faulty", check, forms)
    forms.sort(key=lambda run: run.part)

    def of(run: Run, fused: bool = True) -> list[Curve]:
        return [
            result.curve
            for other, result in trained.items()
            if (other.part, other.form, other.fused) == (run.part, run.form, fused)
        ]

    report = Report(data.digits().name)
    report.table(
        f"Error in % and loss after {recipe.epochs} epochs, fused networks; the mended form of each comes first",
        ("form", "training error", "test error", "training loss", "parameter tensors without gradient"),
        [
            (
                run,
                percent([curve.train_error[-1] for curve in of(run)]),
                percent([curve.test_error[-1] for curve in of(run)]),
                spread([curve.loss[-1] for curve in of(run)], 3),
                checked[run].without_gradient[1],
            )
            for run in forms
        ],
    )
    report.table(
        "What resnet_fused does with the blocks",
        ("form", "`report` before `convert`", "blocks that ran fused"),
        [(run, checked[run].fusing.reason or "convertible", checked[run].fusing) for run in forms],
    )
    texts = context.map("Teaching errors: exceptions", raised, RAISING)
    report.table(
        "Forms that raise, with eager blocks and after `convert`",
        ("form", "exception in training", "after `convert`"),
        [(name, eager, "the same" if eager == fused else fused) for name, (eager, fused) in texts.items()],
    )
    for name, (eager, fused) in texts.items():
        report.same_weights(f"{name}: the same exception (1: yes)", [1], [int(eager == fused)])
    for run in forms:
        result = checked[run]
        report.same_weights(f"{run}: loss, gradients and buffers of a step", *result.steps, limit=DOUBLE_LIMIT)
        report.same_weights(f"{run}: parameters without gradient", *result.without_gradient)
        first = next(
            trained[other] for other in runs if (other.part, other.form, other.fused) == (run.part, run.form, False)
        )
        report.same_weights(f"{run}: logits of the trained network", *first.logits)
        report.curves(str(run), of(run, False), of(run), finished=not context.quick)
        report.numbers[str(run)] = {
            "fusing": vars(result.fusing),
            "eager": [vars(curve) for curve in of(run, False)],
            "fused": [vars(curve) for curve in of(run)],
        }
    report.figures["training_error"] = _errors(forms, of)
    return report


def _errors(forms: list[Run], of: Callable[..., list[Curve]]):
    figure, axes = figures.panels(2, 3, height=3)
    for axis, (key, part) in zip(axes, PARTS.items(), strict=False):
        for run, (colour, marker) in zip((run for run in forms if run.part == key), LOOKS.values(), strict=False):
            errors = [curve.train_error for curve in of(run)]
            figures.errors_by_epoch(axis, errors, run.form, colour, marker=marker)
        axis.set_title(part.title)
        figures.log_percent(axis, "training error, %")
        axis.legend()
    loss = axes[-1]
    for run, (colour, marker) in zip((run for run in forms if run.part == "d"), LOOKS.values(), strict=False):
        losses = [curve.loss for curve in of(run)]
        figures.band(loss, range(1, len(losses[0]) + 1), losses, run.form, colour, marker=marker, markersize=4)
    floor = float(nn.functional.cross_entropy(torch.eye(10)[:1], torch.tensor([0])))
    loss.axhline(floor, color=figures.GREY, linestyle="--", label="least possible with softmax")
    loss.set_title("(d) softmax before cross-entropy")
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss, nats")
    loss.set_ylim(bottom=0)
    loss.legend()
    return figure
