"""Predicts a training step on an H200 from the layers of a network: bytes moved, multiplications, and their times.

Nothing in it is measured. A pass over tensors takes its bytes over the bandwidth; a convolution the longer of that and
its multiplications over a rate; kernels follow each other without a gap. bf16 under autocast, channels_last.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused import models, reference
from resnet_fused.cli import _gpus

from . import model_constants

GPU_ARCH, GPU_SMS = _gpus.GPUS["h200"][:2]
MODEL = model_constants.family(GPU_ARCH).values
BANDWIDTH = 1e9 * MODEL["dram"] * GPU_SMS  # bytes a second
PEAK = 2e9 * MODEL["macs"] * MODEL["clock"] * GPU_SMS  # FLOP a second; kernels reach a share
CUDNN = PEAK * MODEL["torch_share"]
SM80 = PEAK * MODEL["sm80_share"]
SM90 = PEAK * MODEL["sm90_share"]  # with RESNET_FUSED_CUDA_ENGINE=all only
PARTS = 12 / 256  # bytes of moments (three floats a channel) per byte of output, in parts of 128 pixels
SUMS = 8 / 256  # the same for gradient sums: two floats
SIZE = 2  # bytes of an element
POOLED = 1 / 4  # size of the pooled tensor relative to its input; its 64-bit indices are as large as the input
ARGMAX = 1 / 8  # the same for argmax, a byte a value


class Conv(NamedTuple):
    flops: float
    x: float  # elements
    y: float
    weight: float
    ours: bool  # channels in multiples of 8, one group
    unit_stride: bool

    def seconds(self, rate: float, extra: float = 0.0) -> float:
        """Time of the convolution or one of its gradients: each reads two of three tensors and writes the third."""
        return max(self.flops / rate, SIZE * (self.x + self.y + self.weight + extra) / BANDWIDTH)


class Block(NamedTuple):
    """A chain of convolutions, each followed by a BatchNorm; ``projection`` is its shortcut's, ``shortcut``: any adds.

    Without a shortcut it is the stem: its input is images and its output is pooled.
    """

    title: str
    main: list[Conv]
    projection: Conv | None
    shortcut: bool

    def convs(self) -> list[Conv]:
        return [*self.main, *([] if self.projection is None else [self.projection])]


class Cost(NamedTuple):
    passes: float  # bytes moved by passes other than convolutions
    convs: float  # seconds

    def __add__(self, other: "Cost") -> "Cost":  # type: ignore[override]
        return Cost(self.passes + other.passes, self.convs + other.convs)

    @property
    def seconds(self) -> float:
        return self.passes / BANDWIDTH + self.convs


def tensors(count: float, elements: float) -> Cost:
    return Cost(SIZE * count * elements, 0.0)


def total(costs: list[Cost]) -> Cost:
    return Cost(sum(c.passes for c in costs), sum(c.convs for c in costs))


def eager_forward(b: Block) -> Cost:
    found = [Cost(0, c.seconds(CUDNN)) for c in b.convs()]
    found += [tensors(3, c.y) for c in b.convs()]  # statistics read; normalise reads and writes
    found += [tensors(2, c.y) for c in b.main]  # ReLU in place
    end = 3 if b.shortcut else 1 + POOLED + 1  # the addition; or the pooling, its indices written
    return total([*found, tensors(end, b.main[-1].y)])


def gradients(b: Block) -> int:
    """Number of gradients of a convolution: input and weight, but images need none."""
    return 2 if b.shortcut else 1


def eager_backward(b: Block) -> Cost:
    found = [Cost(0, gradients(b) * c.seconds(CUDNN)) for c in b.convs()]
    found += [tensors(5, c.y) for c in b.convs()]  # two reads for the sums; two and a write for the gradient
    found += [tensors(3, c.y) for c in b.main]  # ReLU: gradient and output read, gradient written
    # adds two gradients of x; or the pooling's backward, without torch's zero fill
    return total([*found, tensors(3, b.main[0].x) if b.shortcut else tensors(POOLED + 1 + 1, b.main[0].y)])


def our_forward(b: Block, *rates: float) -> Cost:
    """Each convolution by the faster of our kernel and cuDNN's with extra passes."""
    found = []
    for c in b.convs():
        activated = c is not b.main[0] and c is not b.projection  # reads relu(bn(pre_bn))
        theirs = tensors(1, c.y) + tensors(2 if activated else 0, c.x) + Cost(0, c.seconds(CUDNN))
        ours = [Cost(0, c.seconds(rate, 2 * PARTS * c.y)) for rate in rates]
        found.append(min([*ours, theirs], key=lambda cost: cost.seconds) if c.ours else theirs)
    return total([*found, tensors(3 if b.shortcut else 1 + POOLED + ARGMAX, b.main[-1].y)])


def gradient_with_sums(c: Conv) -> Cost:
    """The cost of conv_backward_reduce less that of cuDNN's input gradient and a pass for the sums; at most zero.

    The pass reads two tensors. The convolution reads one more, writes and reads partial sums, and needs a flipped
    filter (two copies).
    """
    saved, flipped = tensors(-2, c.x), tensors(4, c.weight)
    ours = Cost(0, c.seconds(SM80, c.x + 2 * SUMS * c.x) - c.seconds(CUDNN))
    return min(saved + flipped + ours, Cost(0, 0), key=lambda cost: cost.seconds)


def our_backward(b: Block) -> Cost:
    found = [Cost(0, gradients(b) * c.seconds(CUDNN)) for c in b.convs()]
    found += [tensors(5, c.y) for c in b.convs()]  # recomputes the ReLU's mask
    found += [tensors(2, c.x) for c in b.main[1:]]  # recomputes the activation for the weight gradient
    found += [gradient_with_sums(c) for c in b.main[1:] if c.ours and c.unit_stride]
    if not b.shortcut:
        return total([*found, tensors(POOLED + ARGMAX + 1, b.main[0].y)])
    found.append(tensors(2, b.main[-1].y))  # the masked gradient, stored by the reduction pass
    first = b.main[0]  # with stride 1, our convolution adds both gradients of x
    added = tensors(3, first.x)
    joined = Cost(0, first.seconds(SM80, first.x) - first.seconds(CUDNN))
    if first.ours and first.unit_stride and joined.seconds < added.seconds:
        added = joined
    return total([*found, added])


def conv_of(module: nn.Conv2d, x: torch.Size, y: torch.Size) -> Conv:
    channels = x[1] // module.groups
    taps = module.kernel_size[0] * module.kernel_size[1]
    strided = taps == 1 and module.stride[0] > 1  # a strided 1x1 convolution skips pixels
    pixels = y[2] * y[3] if strided else x[2] * x[3]
    fits = module.groups == 1 and x[1] % 8 == 0 and y[1] % 8 == 0
    return Conv(
        2.0 * y.numel() * channels * taps,
        x[0] * x[1] * pixels,
        y.numel(),
        module.weight.numel(),
        fits,
        module.stride[0] == 1,
    )


def read(net: nn.Module, batch: int) -> tuple[list[Block], float]:
    """The network's blocks, its stem among them, and its number of parameters."""
    found: dict[nn.Conv2d, Conv] = {}

    def note(module: nn.Module, x: tuple[Tensor, ...], y: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        found[module] = conv_of(module, x[0].shape, y.shape)

    net = resnet_fused.revert(net.to("meta"))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    net.eval()(torch.empty(batch, 3, 224, 224, device="meta"))
    first, *_ = found
    blocks = [Block("stem, with its pooling", [found[first]], None, False)]
    for module in net.modules():
        if isinstance(module, (reference.BasicBlock, reference.Bottleneck)):
            main = [m for m in module.children() if isinstance(m, nn.Conv2d)]
            projection = None if module.downsample is None else next(module.downsample.children())
            assert projection is None or isinstance(projection, nn.Conv2d)
            kind = type(module).__name__
            kind += "" if projection is None else f", projection, stride {projection.stride[0]}"
            width = f" {main[-1].out_channels}@{int((found[main[-1]].y / batch / main[-1].out_channels) ** 0.5)}"
            projection = None if projection is None else found[projection]
            blocks.append(Block(kind + width, [found[m] for m in main], projection, True))
    return blocks, sum(p.numel() for p in net.parameters())


def rest(parameters: float) -> Cost:
    """SGD with momentum in float32 (three read, two written), weights cast to bf16 and their gradients back."""
    return Cost(parameters * (5 * 4 + 2 * (4 + 2)), 0.0)


def milliseconds(cost: Cost) -> str:
    return f"{1e3 * cost.seconds:.2f}"


def tables(batch: int = 256) -> str:
    """Networks, then blocks, in Markdown."""
    blocks_of: list[str] = []
    rows = []
    for title, make in (("ResNet-18", models.resnet18), ("ResNet-50", models.resnet50)):
        blocks, parameters = read(make(), batch)
        blocks_of += [
            "",
            f"| {title}: block | times | eager fwd | ours | ours, all | eager bwd | ours | GB eager | GB ours |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for name in dict.fromkeys(b.title for b in blocks):
            same = [b for b in blocks if b.title == name]
            b = same[0]
            ours = [our_forward(b, SM80), our_forward(b, SM80, SM90)]
            costs = [eager_forward(b), *ours, eager_backward(b), our_backward(b)]
            moved = [costs[0].passes + costs[3].passes, costs[1].passes + costs[4].passes]
            cells = [*map(milliseconds, costs), *(f"{m / 1e9:.2f}" for m in moved)]
            blocks_of.append(f"| {name} | {len(same)} | {' | '.join(cells)} |")
        backward = total([our_backward(b) for b in blocks])
        for kind, cost in (
            ("eager AMP", total([eager_forward(b) + eager_backward(b) for b in blocks])),
            ("ours", total([our_forward(b, SM80) for b in blocks]) + backward),
            ("ours, all", total([our_forward(b, SM80, SM90) for b in blocks]) + backward),
        ):
            rows.append((title, kind, cost + rest(parameters)))
    lines = [
        "| network | | convolutions, ms | passes, GB | passes, ms | step, ms | images/s | to eager |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for title, kind, cost in rows:
        eager = next(c for t, k, c in rows if t == title and k == "eager AMP")
        lines.append(
            f"| {title} | {kind} | {1e3 * cost.convs:.1f} | {cost.passes / 1e9:.1f} "
            f"| {1e3 * cost.passes / BANDWIDTH:.1f} | {1e3 * cost.seconds:.1f} | {batch / cost.seconds:.0f} "
            f"| {eager.seconds / cost.seconds:.2f} |"
        )
    return "\n".join([*lines, *blocks_of])
