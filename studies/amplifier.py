"""A differential amplifier: how the last layer, and each block, responds to a small change of the input."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resnet_fused.models import cifar_resnet

from .common import data, figures
from .common.context import Context
from .common.report import Report, percent, spread
from .common.training import Curve, Recipe, check_fused, early_losses, fit, measure_statistics, network

TITLE = "A differential amplifier: the response of the last layer to a small change of the input"
KINDS = ("noise", "one pixel", "towards another image")
SIZES = (1e-3, 1e-2, 1e-1, 0.5)  # ||d|| / ||x||
SHOWN = 1  # the index in SIZES of what the tables show: 1 %
SINGLE = 2  # the index in SIZES of what float32 is compared at: 10 %
STATES = ("at initialisation", "after training")
DOUBLE_LIMIT = 1e-6  # float64: rounding differences of 1e-13, enlarged by the difference of two nearly equal results
TRAINED_TWICE = 20  # the largest depth at which the eager network is trained to the end; deeper, for one epoch
LINES = (("-", "o"), ("--", "s"), (":", "^"))


@dataclass(frozen=True)
class Job:
    """One network: measured, trained with eager and with fused blocks, and measured again."""

    depth: int
    residual: bool
    seed: int
    epochs: int
    images: int
    cifar10: Path | None = None

    def data(self) -> data.Data:
        return data.digits() if self.cifar10 is None else data.cifar10(self.cifar10)

    def network(self, fused: bool) -> nn.Module:
        build = partial(cifar_resnet, self.depth, residual=self.residual, in_channels=self.data().channels)
        return network(build, self.seed, fused)


@dataclass(frozen=True)
class Response:
    """Medians over the images; L layers are the stem, the blocks and the logits, in this order."""

    gain: np.ndarray  # (kind, size, L): relative change of each layer's output / relative change of the image
    cosine: np.ndarray  # (kind, size): between f(x + d) - f(x) and f(x + 2d) - f(x), of the logits
    share: np.ndarray  # (kind, size): ||f(x + d) - f(x)|| / ||f(x') - f(x)||, x' an image of another class
    branch: np.ndarray  # (L - 2,): of each block, relative change of F / of the block's input, for noise
    block: np.ndarray  # (L - 2,): the same of the block's output
    single: np.ndarray  # (kind,): gain of the logits in float32, for the size of SINGLE


@dataclass(frozen=True)
class Result:
    """Indices: state, then False (eager) or True (fused); both from the weights of the fused run."""

    responses: tuple[dict[bool, Response], ...]
    curves: dict[bool, Curve]
    exact: tuple[float, ...]  # the first losses in float64


def measure(job: Job) -> Result:
    images = job.data()
    untrained = respond({fused: job.network(fused) for fused in (False, True)}, images, job)
    models = {fused: job.network(fused) for fused in (False, True)}
    epochs = {False: job.epochs if job.depth <= TRAINED_TWICE else 1, True: job.epochs}
    curves = {
        fused: fit(model, images, Recipe(epochs[fused], batch=64), job.seed, require_fused=fused)
        for fused, model in models.items()
    }
    exact = early_losses(job.network(False).double(), images, Recipe(job.epochs, batch=64), job.seed)
    return Result((untrained, respond(models, images, job)), curves, exact)


def respond(models: dict[bool, nn.Module], images: data.Data, job: Job) -> dict[bool, Response]:
    """Of an eager and a fused network, both with the weights of the fused one, converted to float64."""
    measure_statistics(models[True], images.train_x[:5000])
    models[False].load_state_dict(models[True].state_dict())
    return {fused: response(model.eval(), images, job, fused) for fused, model in models.items()}


def response(model: nn.Module, images: data.Data, job: Job, fused: bool) -> Response:
    x = images.test_x[: job.images].double()
    y = images.test_y[: job.images]
    other = x[[next(j % len(y) for j in range(i + 1, i + len(y)) if y[j % len(y)] != y[i]) for i in range(len(y))]]
    with torch.no_grad():
        if fused:
            check_fused(model, x.float())
        single = [
            median(relative(model(x.float()), model((x + SIZES[SINGLE] * d).float())) / SIZES[SINGLE])
            for d in directions(x, other, job.seed)
        ]
        model.double()
        if fused:
            check_fused(model, x)
        before = layers(model, x)
        apart = norm(before[-1] - layers(model, other)[-1])
        gain = np.empty((len(KINDS), len(SIZES), len(before)))
        cosine, share = np.empty(gain.shape[:2]), np.empty(gain.shape[:2])
        for k, direction in enumerate(directions(x, other, job.seed)):
            for s, size in enumerate(SIZES):
                d = size * direction
                after = layers(model, x + d)
                once, twice = after[-1] - before[-1], layers(model, x + 2 * d)[-1] - before[-1]
                gain[k, s] = [median(relative(a, b) / size) for a, b in zip(before, after, strict=True)]
                cosine[k, s] = median((once * twice).sum(1) / (norm(once) * norm(twice)))
                share[k, s] = median(norm(once) / apart)
        moved = layers(model, x + SIZES[SHOWN] * next(directions(x, other, job.seed)))
        entering = [relative(a, b) for a, b in zip(before[:-2], moved[:-2], strict=True)]
        leaving = [relative(a, b) for a, b in zip(before[1:-1], moved[1:-1], strict=True)]
        inside = [
            relative(branch(block, a), branch(block, b))
            for block, a, b in zip(blocks(model), before[:-2], moved[:-2], strict=True)
        ]
    ratios = [[median(a / b) for a, b in zip(part, entering, strict=True)] for part in (inside, leaving)]
    return Response(gain, cosine, share, *map(np.array, [*ratios, single]))


def directions(x: Tensor, other: Tensor, seed: int) -> Iterator[Tensor]:
    """Of each of ``KINDS`` a change of every image, as long as the image: (N, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    pixel = torch.randint(x[0].numel(), (len(x),), generator=generator)
    one = nn.functional.one_hot(pixel, x[0].numel()).to(x.dtype).view(x.shape)
    for direction in (noise, one, other - x):
        yield direction * (norm(x) / norm(direction))[:, None, None, None]


def blocks(model: nn.Module) -> list[nn.Module]:
    return [block for stage in model.stages for block in getattr(model, stage)]


def layers(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs of the stem, of each block, and the logits. Without hooks: they would make the blocks run eagerly."""
    out = [model._stem(x.contiguous(memory_format=torch.channels_last))]
    for block in blocks(model):
        out.append(block(out[-1]))
    return [*out, model._head(out[-1])]


def branch(block: nn.Module, x: Tensor) -> Tensor:
    """F of a block, before the addition: layer by layer, so eager."""
    return block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))


def norm(x: Tensor) -> Tensor:  # (N, ...) -> (N,)
    return x.flatten(1).norm(dim=1)


def relative(a: Tensor, b: Tensor) -> Tensor:
    return norm(b - a) / norm(a)


def median(x: Tensor) -> float:
    return float(x.quantile(0.5))  # the mean of the middle two


def run(context: Context) -> Report:
    depths, epochs, images = (8, 20, 32, 56), 8, 48
    if context.quick:
        depths, epochs, images = (8, 14), 1, 16
    elif context.cifar10 is not None:
        depths, epochs = (20, 56), 60
    jobs = [
        Job(depth, residual, seed, epochs, images, context.cifar10)
        for depth in reversed(depths)
        for residual in (False, True)
        for seed in context.seeds
    ]
    results = context.map("Amplifier: training, measuring", measure, jobs)

    def of(depth: int, residual: bool, state: int, fused: bool = True) -> list[Response]:
        return [r.responses[state][fused] for j, r in results.items() if (j.depth, j.residual) == (depth, residual)]

    report = Report(jobs[0].data().name)
    _tables(report, depths, results, of)
    for residual in (False, True):
        name = "residual" if residual else "plain"
        for state, when in enumerate(STATES):
            pair = [[np.concatenate([_numbers(r) for d in depths for r in of(d, residual, state, f)])] for f in (0, 1)]
            report.same_weights(f"{name}: responses {when}, float64", *pair, limit=DOUBLE_LIMIT)
            pair = [[r.single for d in depths for r in of(d, residual, state, f)] for f in (0, 1)]
            report.same_weights(f"{name}: responses {when}, float32, {SIZES[SINGLE]:.0%}", *pair)
        for depth in depths:
            chosen = [r for j, r in results.items() if (j.depth, j.residual) == (depth, residual)]
            pair = [[r.curves[fused] for r in chosen] for fused in (False, True)]
            finished = not context.quick and depth <= TRAINED_TWICE
            report.curves(f"{name} {depth}", *pair, finished, [r.exact for r in chosen])
            report.numbers[f"{name} {depth}: training"] = [
                {"eager": vars(r.curves[False]), "fused": vars(r.curves[True]), "first losses in float64": r.exact}
                for r in chosen
            ]
            report.numbers[f"{name} {depth}"] = {
                when: [{n: a.tolist() for n, a in vars(r).items()} for r in of(depth, residual, state)]
                for state, when in enumerate(STATES)
            }
    report.numbers |= {"kinds": KINDS, "sizes": SIZES}
    report.figures["by_depth"] = _by_depth(depths, of)
    report.figures["by_layer"] = _by_layer(depths[-1], of)
    report.figures["branches"] = _branches(depths[-1], of)
    report.figures["linearity"] = _linearity(depths, of)
    return report


def _numbers(r: Response) -> np.ndarray:
    """Of one response all that is computed in float64, each kind relative to its largest."""
    return np.concatenate([(v / np.abs(v).max()).ravel() for name, v in vars(r).items() if name != "single"])


def _tables(report, depths, results, of):
    columns = ("depth", *(f"{name}, {when}" for when in STATES for name in ("plain", "residual")))
    cases = [(residual, state) for state in (0, 1) for residual in (False, True)]

    def rows(cell):
        return [(depth, *(cell(of(depth, *case)) for case in cases)) for depth in depths]

    for k, kind in enumerate(KINDS):
        report.table(
            f"Gain of the logits, 1 % of change, {kind}", columns, rows(lambda rs, k=k: _spread(rs, "gain", k))
        )
    report.table(
        "Response to 1 % of noise, in % of the response to another image",
        columns,
        rows(lambda rs: percent([r.share[0, SHOWN] for r in rs])),
    )
    report.table(
        "Is the response linear? Cosine between the responses to d and to 2d, 1 % of noise",
        columns,
        rows(lambda rs: spread([r.cosine[0, SHOWN] for r in rs], 3)),
    )
    for name, title in (("branch", "the branch F"), ("block", "the whole block")):
        report.table(
            f"Gain of {title}, geometric mean over the blocks, 1 % of noise",
            columns,
            rows(lambda rs, name=name: spread([np.exp(np.log(getattr(r, name)).mean()) for r in rs], 2)),
        )
    report.table(
        "Error after training in %, fused blocks",
        ("depth", "plain: training", "residual: training", "plain: test", "residual: test"),
        [
            (
                depth,
                *(
                    percent(
                        [
                            getattr(r.curves[True], which)[-1]
                            for j, r in results.items()
                            if j.depth == depth and j.residual == residual
                        ]
                    )
                    for which in ("train_error", "test_error")
                    for residual in (False, True)
                ),
            )
            for depth in depths
        ],
    )


def _spread(responses, name, kind):
    values = [getattr(r, name)[kind, SHOWN, -1] for r in responses]
    return spread(values, 2)


def _panels(**options):
    figure, axes = figures.panels(2, sharey=True, **options)
    for axis, when in zip(axes, STATES, strict=True):
        axis.set_title(when)
    return figure, axes


def _kinds():
    return (("plain", False, figures.PLAIN), ("residual", True, figures.RESIDUAL))


def _by_depth(depths, of):
    figure, axes = _panels(height=4)
    for state, axis in enumerate(axes):
        for name, residual, colour in _kinds():
            for k, kind in enumerate(KINDS):
                by_seed = zip(*([r.gain[k, SHOWN, -1] for r in of(d, residual, state)] for d in depths), strict=True)
                line, marker = LINES[k]
                style = dict(linestyle=line, marker=marker, markersize=4)
                figures.band(axis, depths, list(by_seed), f"{name}, {kind}", colour, **style)
        axis.set_xticks(depths)
        axis.set_xlabel("layers")
        axis.set_yscale("log")
        figures.log_ticks(axis.yaxis)
    axes[0].set_ylabel("gain of the logits (1 % of change)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _by_layer(depth, of):
    figure, axes = _panels()
    for state, axis in enumerate(axes):
        for name, residual, colour in _kinds():
            for k, kind in ((0, KINDS[0]), (2, KINDS[2])):
                runs = [r.gain[k, SHOWN] for r in of(depth, residual, state)]
                style = dict(linestyle=LINES[k][0])
                figures.band(axis, range(len(runs[0])), runs, f"{name}, {kind}", colour, **style)
        axis.set_xlabel("0: stem, 1, 2, ...: blocks, last: logits")
        axis.set_yscale("log")
        figures.log_ticks(axis.yaxis)
    axes[0].set_ylabel(f"gain up to this layer, {depth} layers")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _branches(depth, of):
    figure, axes = _panels()
    for state, axis in enumerate(axes):
        axis.axhline(1, color=figures.GREY, linewidth=1)
        for label, name, residual, colour in (
            ("plain block", "block", False, figures.PLAIN),
            ("residual block", "block", True, figures.RESIDUAL),
            ("residual branch F", "branch", True, figures.FOURTH),
        ):
            runs = [getattr(r, name) for r in of(depth, residual, state)]
            figures.band(axis, range(1, len(runs[0]) + 1), runs, label, colour)
        axis.set_xlabel(f"block, {depth} layers")
    axes[0].set_ylabel("gain of this block (1 % of noise)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def _linearity(depths, of):
    figure, axes = _panels()
    percents = [100 * size for size in SIZES]
    for state, axis in enumerate(axes):
        axis.axhline(0.5, color=figures.GREY, linewidth=1)
        for name, residual, colour in _kinds():
            for depth, line in ((depths[0], ":"), (depths[-1], "-")):
                runs = [r.cosine[0] for r in of(depth, residual, state)]
                label = f"{name}, {depth} layers"
                figures.band(axis, percents, runs, label, colour, linestyle=line, marker="o", markersize=4)
        axis.set_xscale("log")
        figures.log_ticks(axis.xaxis)
        axis.set_xlabel("change of the image, noise, %")
    axes[0].set_ylabel("cosine of the responses to d and 2d")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
