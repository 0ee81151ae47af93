"""Predicts inference of whole ResNets on an H200. Nothing in it is measured.

Each convolution's time is the plan's own (``csrc/cuda``), ours with every kernel allowed. Peers run torch's
convolutions, as the plan models them, and passes over memory between them: torch.compile one pass a convolution,
eager one for each of BatchNorm, ReLU and addition, cuDNN's fused kernel none but for BatchNorm folded beforehand.
Every kernel costs ``LAUNCH`` between its neighbours' starts, in CUDA graphs on all sides. The stem's convolution and
the network's end are PyTorch's on all sides and counted alike. Our pooling behind the stem applies BatchNorm and ReLU
as it reads; torch.compile's follows a pass that does; torch's own also writes 64-bit indices.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields

import torch

import resnet_fused
from resnet_fused import models, reference
from resnet_fused.cli import _gpus
from resnet_fused.cli._cuda_plans import cuda_plan
from resnet_fused.cli._shapes import ConvCall, conv_calls
from resnet_fused.plans import Plan

from . import gpu, model_constants

DTYPE = "bfloat16"
GPU = "h200"
MODELS, BATCHES = ("resnet18", "resnet34", "resnet50"), (1, 32, 256)
GPU_ARCH, GPU_SMS = _gpus.GPUS[GPU][:2]
MODEL = model_constants.family(GPU_ARCH).values
# From csrc/cuda's model, for the whole GPU: ns a launch, bytes a ns of memory and L2, bytes of L2, FLOP a ns.
LAUNCH, MEMORY, L2 = MODEL["launch"], MODEL["dram"] * GPU_SMS, MODEL["l2"] * MODEL["clock"] * GPU_SMS
L2_SIZE, PEAK = MODEL["l2_size"] * (1 << 20), 2 * MODEL["macs"] * MODEL["clock"] * GPU_SMS
STEM_SHARE = 0.25  # share of the peak that a 3-channel convolution reaches: assumed, the same for every contender


@dataclass
class Times:
    """Microseconds of each contender."""

    ours: float = 0.0
    compiled: float = 0.0
    eager: float = 0.0
    cudnn: float = 0.0  # with fused add and ReLU where available

    def __iadd__(self, other: "Times") -> "Times":
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        return self


def sweep(*elements: int) -> float:
    """Microseconds of one pass over tensors of these sizes, from L2 if they fit into half of it."""
    moved = 2 * sum(elements)
    return (LAUNCH + moved / (L2 if 2 * moved <= L2_SIZE else MEMORY)) / 1e3


def size(shape: Iterable[int]) -> int:
    return int(torch.Size(shape).numel())


def engine(name: str) -> AbstractContextManager[None]:
    """Sets the engine for plans in the context."""
    return gpu.engine(name or gpu.PLANNED, torch.device("cpu"))


class Network:
    """The convolutions of one network at one batch, and the module that owns each."""

    def __init__(self, name: str, batch: int) -> None:
        model = getattr(models, name)().eval()
        self.calls = conv_calls(model, [batch, 3, 224, 224], getattr(torch, DTYPE), channels_last=True)
        self.model = resnet_fused.convert(model)
        self.gpu = _gpus.numbers(GPU)

    def plan(self, call: ConvCall, name: str) -> Plan:
        owner = call.name.rpartition(".")[0].removesuffix(".downsample")
        with engine(name):
            return cuda_plan(self.model, owner, call, self.calls, DTYPE, self.gpu)

    def torch_time(self, plan: Plan, last_pass: float) -> float:
        """Time of the convolutions alone, from torch's plan."""
        return float(plan.fields["microseconds"]) - last_pass

    def conv(self, call: ConvCall) -> Times | None:
        """A convolution and the passes after it. None for a projection, which another convolution's plan includes."""
        y = size(call.output)
        if call.weight[1] == 3:
            flops = 2 * y * size(call.weight[1:])
            stem = LAUNCH / 1e3 + max(flops / (PEAK * STEM_SHARE), 2 * (size(call.input) + y) / MEMORY) / 1e3
            eager = 2 * sweep(y, y)
            return Times(stem, stem + sweep(y, y), stem + eager, stem)
        modelled = self.plan(call, "torch")
        if not modelled.fields:  # in another convolution's plan
            return None
        ours = self.plan(call, "all")
        projects, ends = "projection" in ours.fields.get("mode", ""), call.name.endswith(self.last_conv(call))
        after = sweep(y, y, y) if ends else sweep(y, y)
        convolutions = self.torch_time(modelled, after)
        assert ours.fields or ours.kernel == "in conv1", ours  # a fused block counts as its first convolution
        fused = float(ours.fields.get("microseconds", 0.0))
        passes = sweep(y, y) * (1 + projects) + sweep(y, y) + (sweep(y, y, y) if ends else 0)
        # cuDNN adds the shortcut and applies ReLU in its kernel.
        shortcut = 2 * y / MEMORY / 1e3 if ends else 0.0
        return Times(fused, convolutions + after, convolutions + passes, convolutions + shortcut)

    def last_conv(self, call: ConvCall) -> str:
        block = self.model.get_submodule(call.name.rpartition(".")[0])
        return "conv3" if isinstance(block, reference.Bottleneck) else "conv2"

    def pooling(self) -> tuple[float, float]:
        """Pooling after the stem: our pass, and torch's, which writes 64-bit indices for a quarter of the values."""
        y = size(self.calls[0].output)
        return sweep(y, y // 4), sweep(y, y // 4, y)

    def fused_pooling_saves(self) -> float:
        """What fused pooling saves: a separate pass for the stem's BatchNorm and ReLU, and the indices."""
        y = size(self.calls[0].output)
        fused, with_indices = self.pooling()
        return sweep(y, y) + with_indices - fused

    def rest(self) -> Times:
        """Max-pooling after the stem, average pooling and classifier."""
        last = self.calls[-1].output
        n, c = last[:2]
        classes = 1000
        end = sweep(size(last), n * c) + sweep(n * c, c * classes, n * classes)
        pool, with_indices = self.pooling()
        return Times(end + pool, end + pool, end + with_indices, end + with_indices)

    def times(self) -> tuple[Times, Times]:
        """The whole network, and its blocks' 3x3 and 1x1 convolutions alone."""
        whole, blocks = self.rest(), Times()
        for call in self.calls:
            part = self.conv(call)
            if part is None:
                continue
            whole += part
            if call.weight[1] != 3:
                blocks += part
        return whole, blocks


def tables() -> str:
    """In Markdown."""
    lines = [
        "| network, batch | ours | torch.compile | eager | compile / ours | eager / ours | blocks: cuDNN fused / ours "
        "| fused pooling saves |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in MODELS:
        for batch in BATCHES:
            network = Network(name, batch)
            whole, blocks = network.times()
            saved = network.fused_pooling_saves()
            lines.append(
                f"| {name}, {batch} | {whole.ours:.0f} | {whole.compiled:.0f} | {whole.eager:.0f} "
                f"| {whole.compiled / whole.ours:.2f} | {whole.eager / whole.ours:.2f} "
                f"| {blocks.cudnn / blocks.ours:.2f} | {saved:.0f}, {saved / (whole.ours + saved):.0%} |"
            )
    return "\n".join(lines)
