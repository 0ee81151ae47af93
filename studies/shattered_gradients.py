"""Shattered gradients: are the gradients of neighbouring inputs alike? (Balduzzi et al. 2017, arXiv:1702.08591)."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from resnet_fused.models import cifar_resnet

from .common import data, figures
from .common.context import Context
from .common.report import Agreement, Report, spread
from .common.training import check_fused, measure_statistics, network

TITLE = "Shattered gradients: autocorrelation of input gradients by depth"
UNITS, POINTS, LAGS = 200, 256, 16  # of the fully connected networks
LINE, PAIRS, LINE_LAGS = 128, 4, 33  # points on a line between two images, lines, lags
DOUBLE_LIMIT = 1e-6  # float64: no ReLU is so near its kink that it flips
FLIPPED = 1e-3  # an image's float32 gradient that is further from float64: a ReLU near its kink has flipped


@dataclass(frozen=True)
class Kind:
    """A network without its depth."""

    name: str
    residual: bool = False
    norm: bool = True
    beta: float = 1.0  # scales F; of a convolutional block by gamma of its last BatchNorm


DENSE = (
    Kind("plain", norm=False),
    Kind("residual", residual=True, norm=False),
    Kind("residual, β = 0.1", residual=True, norm=False, beta=0.1),
    Kind("plain, BatchNorm"),
    Kind("residual, BatchNorm", residual=True),
    Kind("residual, BatchNorm, β = 0.1", residual=True, beta=0.1),
)
CONVOLUTIONAL = (Kind("plain"), Kind("residual", residual=True), Kind("residual, β = 0.1", residual=True, beta=0.1))


@dataclass(frozen=True)
class Job:
    """The gradients of one convolutional network, or of ``networks`` fully connected ones."""

    kind: Kind
    depth: int
    seed: int
    networks: int = 1
    points: int = LINE
    cifar10: Path | None = None

    def data(self) -> data.Data:
        return data.digits() if self.cifar10 is None else data.cifar10(self.cifar10)


@dataclass(frozen=True)
class Lines:
    """The gradients along lines between images, of an eager and of a fused network."""

    acf: np.ndarray  # (lag,): mean over the lines; fused
    cosine: float  # between the gradients at both ends of a line, mean over the lines; fused
    step: float  # the distance of neighbours / the mean length of an image
    gradients: dict[bool, np.ndarray]  # float64; relative to the norm of the eager ones
    errors: dict[bool, np.ndarray]  # float32, of each image: relative L2 distance to eager in float64
    apart: float  # float32: the same between eager and fused; median of the images that no flip should touch


def dense(job: Job) -> np.ndarray:
    """(lag,): the mean autocorrelation over ``job.networks`` networks."""
    return np.mean([autocorrelation(g, LAGS) for g in dense_gradients(job)], axis=0)


def dense_gradients(job: Job) -> list[np.ndarray]:
    return [dense_gradient(job, 1000 * job.seed + i) for i in range(job.networks)]


def dense_gradient(job: Job, seed: int) -> np.ndarray:
    """(POINTS, 1): df/dx of one network with ``job.depth`` hidden layers on a grid in [-2, 2]."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    x = torch.linspace(-2, 2, POINTS, dtype=torch.float64)[:, None].requires_grad_()
    h = x * normal(UNITS) + normal(UNITS)  # He: two inputs, x and 1

    def activated() -> Tensor:
        mean, variance = h.mean(0).detach(), h.var(0, unbiased=False).detach()  # constants, as in eval mode
        return torch.relu((h - mean) / (variance + 1e-5).sqrt() if job.kind.norm else h)

    for _ in range(job.depth - 1):
        f = job.kind.beta * activated() @ (normal(UNITS, UNITS) * math.sqrt(2 / UNITS))
        h = h + f if job.kind.residual else f
    y = activated() @ normal(UNITS)
    return torch.autograd.grad(y.sum(), x)[0].numpy()


def autocorrelation(g: np.ndarray, lags: int) -> np.ndarray:
    """(N, D) -> (lags,): sum over i of <g_i - mean, g_(i+k) - mean>, relative to lag 0."""
    g = g - g.mean(0)
    return np.array([(g[: len(g) - k] * g[k:]).sum() for k in range(lags)]) / (g * g).sum()


def noise(brown: bool, seed: int) -> np.ndarray:
    white = np.random.default_rng(seed).standard_normal((POINTS, 1))
    return white.cumsum(0) if brown else white


def lines(job: Job) -> Lines:
    images = job.data()
    models = {fused: convolutional(job, images, fused) for fused in (False, True)}
    measure_statistics(models[True], images.train_x[:5000])
    models[False].load_state_dict(models[True].state_dict())
    pairs = list(zip(*_ends(images), strict=True))[:PAIRS]
    t = torch.linspace(0, 1, job.points, dtype=torch.float64)[:, None, None, None]
    x = torch.cat([(1 - t) * a + t * b for a, b in pairs])
    output = torch.randn(10, generator=torch.Generator().manual_seed(job.seed), dtype=torch.float64)
    single = {fused: gradient(model.eval(), x.float(), output) for fused, model in models.items()}
    check_fused(models[True], x[: job.points].float().requires_grad_())
    double = {fused: gradient(model.double(), x, output) for fused, model in models.items()}
    check_fused(models[True], x[: job.points].requires_grad_())
    size = float(double[False].norm())
    errors = {fused: relative(double[False], g).numpy() for fused, g in single.items()}
    untouched = float((errors[False] <= FLIPPED).mean()) ** 2  # neither in the eager nor in the fused network
    by_line = double[True].flatten(1).split(job.points)
    distance = np.mean([float((b - a).norm()) for a, b in pairs]) / (job.points - 1)
    return Lines(
        np.mean([autocorrelation(g.numpy(), min(LINE_LAGS, job.points)) for g in by_line], axis=0),
        float(np.mean([float(torch.cosine_similarity(g[0], g[-1], dim=0)) for g in by_line])),
        distance / float(x.detach().flatten(1).norm(dim=1).mean()),
        {fused: (g / size).numpy().ravel() for fused, g in double.items()},
        errors,
        float(relative(single[False], single[True]).quantile(untouched / 2)),
    )


def convolutional(job: Job, images: data.Data, fused: bool) -> nn.Module:
    build = partial(cifar_resnet, job.depth, residual=job.kind.residual, in_channels=images.channels)
    model = network(build, job.seed, fused)
    for name, parameter in model.named_parameters():
        if name.endswith("bn2.weight"):
            nn.init.constant_(parameter, job.kind.beta)
    return model


def gradient(model: nn.Module, x: Tensor, output: Tensor) -> Tensor:
    """The gradient of <output, logits> with respect to ``x``, (N, C, H, W); model in eval mode."""
    parts = []
    for part in x.detach().split(128):
        part = part.contiguous(memory_format=torch.channels_last).requires_grad_()
        parts.append(torch.autograd.grad((model(part) @ output.to(x.dtype)).sum(), part)[0])
    return torch.cat(parts)


def flipped(fused: bool, found: Lines) -> float:
    return 100 * float((found.errors[fused] > FLIPPED).mean())


def relative(a: Tensor, b: Tensor) -> Tensor:
    """(N, ...), (N, ...) -> (N,): relative L2 distance of each image's gradients."""
    return (b - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)


def _ends(images: data.Data) -> tuple[list[Tensor], list[Tensor]]:
    """The first test images of classes 0 to 4, and of classes 5 to 9, in float64."""
    first = [images.test_x[images.test_y == label][0].double() for label in range(10)]
    return first[:5], first[5:]


def run(context: Context) -> Report:
    depths, conv_depths, networks, points = (2, 4, 10, 24, 50), (8, 20, 32, 56), 8, LINE
    if context.quick:
        depths, conv_depths, networks, points = (2, 10), (8, 14), 1, 16
    jobs = [
        Job(kind, depth, seed, points=points, cifar10=context.cifar10)
        for depth in reversed(conv_depths)
        for kind in CONVOLUTIONAL
        for seed in context.seeds
    ]
    along = context.map("Shattered gradients: convolutional", lines, jobs)
    dense_jobs = [
        Job(kind, depth, seed, networks) for depth in reversed(depths) for kind in DENSE for seed in context.seeds
    ]
    acf = context.map("Shattered gradients: fully connected", dense, dense_jobs)

    def of(results, kind, depth):
        return [result for job, result in results.items() if (job.kind, job.depth) == (kind, depth)]

    report = Report(f"a grid of {POINTS} numbers; {jobs[0].data().name}")
    references = {
        name: [
            np.mean([autocorrelation(noise(brown, 1000 * seed + i), LAGS) for i in range(networks)], axis=0)
            for seed in context.seeds
        ]
        for name, brown in (("brown noise", True), ("white noise", False))
    }
    for lag in (1, 8):
        rows = [(kind.name, *(spread([a[lag] for a in of(acf, kind, depth)], 2) for depth in depths)) for kind in DENSE]
        rows += [(name, *[spread([a[lag] for a in values], 2)] * len(depths)) for name, values in references.items()]
        columns = ("network", *(f"{depth} layers" for depth in depths))
        report.table(f"Fully connected: autocorrelation at lag {lag}", columns, rows)
    columns = ("network", *(f"{depth} layers" for depth in conv_depths))
    for title, value, digits in (
        ("autocorrelation at lag 1", lambda r: r.acf[1], 2),
        ("autocorrelation at lag 8", lambda r: r.acf[8], 2),
        ("cosine of the gradients at two different images", lambda r: r.cosine, 2),
        ("gradients that float32 changes by more than 0.1 %, eager, in %", partial(flipped, False), 1),
        ("gradients that float32 changes by more than 0.1 %, fused, in %", partial(flipped, True), 1),
    ):
        rows = [
            (kind.name, *(spread([value(r) for r in of(along, kind, depth)], digits) for depth in conv_depths))
            for kind in CONVOLUTIONAL
        ]
        report.table(f"Convolutional: {title}", columns, rows)
    for kind in CONVOLUTIONAL:
        found = [r for job, r in along.items() if job.kind == kind]
        pair = [np.concatenate([r.gradients[fused] for r in found]) for fused in (False, True)]
        report.same_weights(f"{kind.name}: gradients, float64", *pair, limit=DOUBLE_LIMIT)
        worst = max(r.apart for r in found)
        report.same_weights(f"{kind.name}: gradients without flips, float32", 1.0, 1.0 + worst)
        report.agreements.append(_flips(kind.name, found))
    report.numbers = {
        "fully connected": {k.name: {d: [a.tolist() for a in of(acf, k, d)] for d in depths} for k in DENSE},
        "noise": {name: [a.tolist() for a in values] for name, values in references.items()},
        "convolutional": {
            k.name: {
                d: [{"acf": r.acf.tolist(), "cosine": r.cosine, "step": r.step} for r in of(along, k, d)]
                for d in conv_depths
            }
            for k in CONVOLUTIONAL
        },
    }
    report.figures["signals"] = _signals()
    report.figures["fully_connected"] = _fully_connected(depths, partial(of, acf), references)
    report.figures["convolutional"] = _convolutional(conv_depths, partial(of, along))
    report.figures["by_depth"] = _by_depth(depths, conv_depths, partial(of, acf), partial(of, along), references)
    return report


def _flips(name: str, found: list[Lines]) -> Agreement:
    """The shares of images that a flip touches, eager and fused, may differ as two samples of one distribution."""
    eager, fused = (np.concatenate([r.errors[f] for r in found]) > FLIPPED for f in (False, True))
    share, n = (eager.mean() + fused.mean()) / 2, len(eager)
    limit = 3 * math.sqrt(2 * share * (1 - share) / n) + 1 / n  # three standard deviations, and one image
    difference = 100 * abs(float(eager.mean() - fused.mean()))
    return Agreement(f"{name}: gradients with flips, float32", difference, 100 * limit, "points")


def _signals():
    figure, axes = figures.panels(2, 3, height=2.2, sharex=True, sharey=True)
    x = np.linspace(-2, 2, POINTS)
    shown = [(DENSE[0], 1), (DENSE[0], 24), (DENSE[3], 24), (DENSE[5], 50)]
    signals = [
        (f"{kind.name}, {depth} layer{'s' * (depth > 1)}", dense_gradient(Job(kind, depth, 0), 0), figures.PLAIN)
        for kind, depth in shown
    ]
    signals += [("brown noise", noise(True, 0), figures.GREY), ("white noise", noise(False, 0), figures.GREY)]
    for i, (axis, (name, g, colour)) in enumerate(zip(axes, signals, strict=True)):
        colour = figures.RESIDUAL if name.startswith("residual") else colour
        axis.plot(x, (g - g.mean()) / g.std(), color=colour, linewidth=1)
        axis.set_title(name)
        if i >= 4:
            axis.set_xlabel("input x")
    figure.supylabel("df/dx, standardised", fontsize=10)
    return figure


COLOURS = (figures.GREY, figures.FOURTH, figures.THIRD, figures.PLAIN, figures.RESIDUAL)
MARKERS = ("o", "s", "^", "D", "v")


def _fully_connected(depths, of, references):
    figure, axes = figures.panels(2, 3, height=2.8, sharex=True, sharey=True)
    for i, kind in enumerate(DENSE):
        axis = axes[2 * (i % 3) + i // 3]  # left without, right with BatchNorm
        for depth, colour, marker in zip(depths, COLOURS, MARKERS, strict=False):
            style = dict(marker=marker, markersize=3, linewidth=1.2)
            figures.band(axis, range(LAGS), of(kind, depth), f"{depth} layers", colour, **style)
        for (name, values), line in zip(references.items(), ("--", ":"), strict=True):
            axis.plot(range(LAGS), np.mean(values, axis=0), line, color="black", linewidth=1, label=name)
        axis.set_title(kind.name)
        if i % 3 == 2:
            axis.set_xlabel("lag, points of the grid")
    figure.supylabel("autocorrelation of df/dx", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _convolutional(depths, of):
    figure, axes = figures.panels(3, sharey=True, width=2.8)
    for axis, kind in zip(axes, CONVOLUTIONAL, strict=True):
        for depth, colour, marker in zip(depths, COLOURS[1:], MARKERS[1:], strict=False):
            found = of(kind, depth)
            distance = 100 * found[0].step * np.arange(len(found[0].acf))
            style = dict(marker=marker, markersize=3, markevery=4)
            figures.band(axis, distance, [r.acf for r in found], f"{depth} layers", colour, **style)
        axis.set_title(kind.name)
        axis.set_xlabel("distance, % of ‖x‖")
    axes[0].set_ylabel("autocorrelation of the gradients")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _by_depth(depths, conv_depths, acf_of, lines_of, references):
    figure, axes = figures.panels(2, sharey=True, height=4.2)
    colours = (figures.PLAIN, figures.RESIDUAL, figures.FOURTH)
    for i, kind in enumerate(DENSE):
        by_seed = zip(*([a[1] for a in acf_of(kind, depth)] for depth in depths), strict=True)
        style = dict(linestyle="-" if kind.norm else "--", marker=MARKERS[i % 3], markersize=4)
        figures.band(axes[0], depths, list(by_seed), kind.name, colours[i % 3], **style)
    for (name, values), line in zip(references.items(), ("--", ":"), strict=True):
        axes[0].axhline(np.mean(values, axis=0)[1], color="black", linestyle=line, linewidth=1, label=name)
    for kind, colour, marker in zip(CONVOLUTIONAL, colours, MARKERS, strict=False):
        by_seed = zip(*([r.acf[1] for r in lines_of(kind, depth)] for depth in conv_depths), strict=True)
        figures.band(axes[1], conv_depths, list(by_seed), kind.name, colour, marker=marker, markersize=4)
    for axis, title, ticks in zip(axes, ("fully connected", "convolutional"), (depths, conv_depths), strict=True):
        axis.set_title(title)
        axis.set_xticks(ticks)
        axis.set_xlabel("layers")
    axes[0].set_ylabel("autocorrelation at lag 1")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure
