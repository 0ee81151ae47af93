"""Workloads: eager modules, inputs and work, identical in every process."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from resnet_fused import models
from resnet_fused.reference import BasicBlock, Bottleneck

SEED = 0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEASURED_DTYPES = ("fp32", "bf16")  # in the benchmarks that run on any device
#: ResNet's four stages: (width, height and width of its 224x224 input's activations there)
STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))


@dataclass(frozen=True)
class Workload:
    """One module at one input shape and dtype. ``make`` builds it, in fp32 on the CPU; it pickles."""

    kind: str  # "block" or "model"
    title: str
    shape: tuple[int, int, int, int]  # of the input, (N, C, H, W)
    dtype: str  # a key of DTYPES
    make: Callable[[], nn.Module]
    batch_statistics: bool = False  # train() under no_grad, as if eval() was forgotten

    @property
    def name(self) -> str:
        """The group name in pytest-benchmark's table."""
        return f"{self.title} {self.dtype} b{self.shape[0]}"

    def module(self) -> nn.Module:
        """The eager module in this workload's dtype and mode, with random BatchNorms, which reveal mistakes."""
        torch.manual_seed(SEED)
        module = self.make().eval().requires_grad_(False)
        for bn in module.modules():
            if isinstance(bn, nn.BatchNorm2d):
                _randomise(bn)
        return module.to(DTYPES[self.dtype]).train(self.batch_statistics)

    def input(self) -> Tensor:
        """Random, never zeros: a GPU's clock depends on the bits that toggle."""
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(SEED + 1)).to(DTYPES[self.dtype])

    def work(self) -> tuple[int, int]:
        """FLOPs of a forward, and the minimum bytes: input, weights and output once."""
        module, x = self.module().to("meta"), self.input().to("meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            y = module(x)
        tensors = [x, y, *module.parameters(), *module.buffers()]
        return counter.get_total_flops(), sum(t.nbytes for t in tensors)


def workloads(device: str, *, quick: bool) -> list[Workload]:
    """Everything that a run on ``device`` measures, in order."""
    block_batch = 8 if device == "cpu" else 256
    model_batches = (1, 8, 32) if device == "cpu" else (1, 32, 256)
    blocks = [w for dtype in MEASURED_DTYPES for w in _blocks(block_batch, dtype)]
    made = (("ResNet-18", models.resnet18), ("ResNet-50", models.resnet50))
    nets = [
        model(title, make, batch, dtype) for dtype in MEASURED_DTYPES for title, make in made for batch in model_batches
    ]
    if quick:
        blocks = [w for w in blocks if w.title == "basic 64@56"]
        nets = [w for w in nets if w.title == "ResNet-18" and w.shape[0] in model_batches[:2]]
    else:  # one batch size is enough
        batch = model_batches[1]
        nets += [model(title, make, batch, dtype, True) for dtype in MEASURED_DTYPES for title, make in made]
    return blocks + nets


def model(
    title: str, make: Callable[[], nn.Module], batch: int, dtype: str, batch_statistics: bool = False
) -> Workload:
    """A network at 224x224."""
    title += " batch statistics" if batch_statistics else ""
    return Workload("model", title, (batch, 3, 224, 224), dtype, make, batch_statistics)


def _blocks(batch: int, dtype: str) -> list[Workload]:
    found = []
    for width, size in STAGES:
        found.append(
            Workload(
                "block",
                f"basic {width}@{size}",
                (batch, width, size, size),
                dtype,
                partial(BasicBlock, width, width),
            )
        )
        if width > STAGES[0][0]:  # stage 1 of ResNet-18 has no projection
            found.append(
                Workload(
                    "block",
                    f"basic proj {width}@{size}",
                    (batch, width // 2, 2 * size, 2 * size),
                    dtype,
                    partial(_projected, width),
                )
            )
    for width, size in STAGES:
        found.append(
            Workload(
                "block",
                f"bottleneck {width}@{size}",
                (batch, 4 * width, size, size),
                dtype,
                partial(Bottleneck, 4 * width, width),
            )
        )
    return found


def _projected(width: int) -> BasicBlock:
    projection = nn.Sequential(nn.Conv2d(width // 2, width, 1, 2, bias=False), nn.BatchNorm2d(width))
    return BasicBlock(width // 2, width, 2, projection)


def _randomise(bn: nn.BatchNorm2d) -> None:
    assert bn.running_mean is not None
    assert bn.running_var is not None
    bn.running_mean.normal_(0, 0.1)
    bn.running_var.uniform_(0.5, 1.5)
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias, 0, 0.1)
