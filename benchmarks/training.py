"""Times a training step (forward, backward, SGD) of blocks and of ResNet-18 and -50, contenders in turn.

    python -m benchmarks.training                                    # everything
    python -m benchmarks.training --only "ResNet-18" --dtypes fp32 --contenders eager_cl,ours --budget 60
    python -m benchmarks.training --device cuda --batch 256 --dtypes bf16

Prints a Markdown table: images per second, and the bytes that autograd keeps (counted, parameters left out). bf16 is
autocast's. Rules are README.md's: one seed, verified before timed, interleaved, medians.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused import models, reference

from .timing import Call, interleave

STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))


class Workload(NamedTuple):
    """Something to train: a block on random gradients, or a network on random labels."""

    title: str
    shape: tuple[int, int, int, int]
    make: Callable[[], nn.Module]


def _projection(channels: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


def workloads(batch: int) -> list[Workload]:
    """Blocks at ResNet's four stages, then the networks."""
    found = []
    for c, size in STAGES:
        found.append(Workload(f"basic {c}@{size}", (batch, c, size, size), lambda c=c: reference.BasicBlock(c, c)))  # type: ignore[misc]
        if c > STAGES[0][0]:
            make = lambda c=c: reference.BasicBlock(c // 2, c, 2, _projection(c // 2, c, 2))  # type: ignore[misc]  # noqa: E731
            found.append(Workload(f"basic proj {c}@{size}", (batch, c // 2, 2 * size, 2 * size), make))
    for c, size in STAGES:
        shape = (batch, 4 * c, size, size)
        found.append(Workload(f"bottleneck {c}@{size}", shape, lambda c=c: reference.Bottleneck(4 * c, c)))  # type: ignore[misc]
        found.append(Workload(f"preact {c}@{size}", (batch, c, size, size), lambda c=c: reference.PreActBlock(c, c)))  # type: ignore[misc]
    for title, net in (("ResNet-18", models.resnet18), ("ResNet-50", models.resnet50)):
        found.append(Workload(title, (batch, 3, 224, 224), lambda net=net: resnet_fused.revert(net())))  # type: ignore[misc]
    return found


def _recompute(model: nn.Module) -> nn.Module:
    resnet_fused.convert(model)
    for module in model.modules():
        if isinstance(module, resnet_fused.modules.FusedBlock):
            module.recompute = True
    return model


CONTENDERS: dict[str, tuple[bool, bool, Callable[[nn.Module], nn.Module]]] = {  # channels_last, compiled, made by
    "eager": (False, False, lambda model: model),
    "eager_cl": (True, False, lambda model: model),
    "compile": (True, True, lambda model: model),
    "ours": (True, False, resnet_fused.convert),
    "ours_recompute": (True, False, _recompute),
    "ours_compile": (True, True, resnet_fused.convert),
}


class Trainee:
    """A contender: its own copy of the module, and one step of it."""

    def __init__(self, workload: Workload, name: str, dtype: str, device: torch.device) -> None:
        self.last, compiled, make = CONTENDERS[name]
        torch.manual_seed(0)
        self.model = make(workload.make().train()).to(device)
        self.x = self._format(torch.randn(workload.shape).to(device))
        self.dtype = dtype
        if self.last:
            self.model.to(memory_format=torch.channels_last)
        is_network = workload.shape[1] == 3
        self.labels = torch.randint(1000, workload.shape[:1]).to(device) if is_network else None
        if not is_network:  # a block in a network gets its input in autocast's dtype, and owes it a gradient
            self.x = (self.x.bfloat16() if dtype == "bf16" else self.x).requires_grad_()
        self.call = torch.compile(self.model) if compiled else self.model
        self.optimiser = torch.optim.SGD(self.model.parameters(), 0.01, momentum=0.9)

    def _format(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.last else x

    def loss(self, x: Tensor) -> Tensor:
        """Forward. A block's loss has a gradient of one value, cheap to make for everybody alike."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            y = self.call(x)
        if self.labels is None:
            return y.sum()
        return nn.functional.cross_entropy(y.float(), self.labels[: len(x)])

    def step(self) -> None:
        self.optimiser.zero_grad()
        self.x.grad = None
        self.loss(self.x).backward()
        self.optimiser.step()

    def saved_bytes(self) -> int:
        """Bytes of distinct storages that autograd keeps, without parameters and buffers."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.loss(self.x)
        del loss
        return sum(kept.values())


def verify(workload: Workload, dtype: str, trainees: dict[str, Trainee]) -> dict[str, float]:
    """Relative L2 error of all gradients of two images against float64; ours may have twice eager's."""
    errors = {}
    truth: Tensor | None = None
    for name, trainee in trainees.items():
        model = trainee.model
        if truth is None:
            exact = copy.deepcopy(resnet_fused.revert(copy.deepcopy(model))).double()
            twin = copy.copy(trainee)
            twin.model = twin.call = exact
            twin.dtype = "fp64"
            twin.loss(trainee.x[:2].detach().double()).backward()
            truth = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
        state = copy.deepcopy(model.state_dict())
        trainee.loss(trainee.x[:2].detach()).backward()
        found = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
        errors[name] = ((found - truth).norm() / truth.norm()).item()
        model.load_state_dict(state)
    limit = 2 * errors["eager"] + 1e-6
    wrong = {name: error for name, error in errors.items() if name.startswith("ours") and error > limit}
    if wrong:
        raise SystemExit(f"{workload.title} {dtype}: gradients off by {wrong}, eager's by {errors['eager']:.1e}")
    return errors


def peak_bytes(trainee: Trainee, device: torch.device) -> int:
    """Of a step, beyond what was allocated before it (CUDA)."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    trainee.step()
    return torch.cuda.max_memory_allocated(device) - before


def measure(workload: Workload, dtype: str, names: list[str], budget_s: float, device: torch.device) -> str:
    """A line of the table for each contender."""
    torch._dynamo.reset()
    trainees = {name: Trainee(workload, name, dtype, device) for name in names}
    errors = verify(workload, dtype, trainees)
    # Storages live as long as the loss; a compiled step decides for itself what it keeps.
    kept = {name: t.saved_bytes() for name, t in trainees.items() if not CONTENDERS[name][1]}
    calls: dict[str, Call] = {name: trainee.step for name, trainee in trainees.items()}
    samples = interleave(calls, budget_s, device)
    peak = {name: peak_bytes(t, device) for name, t in trainees.items()} if device.type == "cuda" else {}
    ours = statistics.median(samples["ours"]) if "ours" in samples else float("nan")
    lines = []
    for name in names:
        seconds = statistics.median(samples[name])
        low, _, high = statistics.quantiles(samples[name], n=4)
        size = f"{kept[name] / 2**20:.0f} MiB" if name in kept else ""
        size += f", peak {peak[name] / 2**20:.0f} MiB" if name in peak else ""
        lines.append(
            f"| {workload.title} | {dtype} | {name} | {workload.shape[0] / seconds:.1f} | {1e3 * seconds:.1f} "
            f"| {1e3 * low:.1f} to {1e3 * high:.1f} | {seconds / ours:.2f} | {size} | {errors[name]:.1e} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", default="", help="workloads whose title contains this")
    parser.add_argument("--dtypes", default="fp32,bf16")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of timing a workload and dtype")
    args = parser.parse_args()
    names = list(dict.fromkeys(["eager", *args.contenders.split(",")]))  # eager is correctness's yardstick
    where = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else "CPU"
    threads = torch.get_num_threads()
    print(f"{where}, torch {torch.__version__}, {threads} threads, load average {os.getloadavg()[0]:.1f}\n")
    print("| workload | dtype | contender | images/s | median ms | quartiles | ours is times as fast | kept | error |")
    print("|---|---|---|---:|---:|---:|---:|---:|---:|")
    for workload in workloads(args.batch):
        if args.only in workload.title:
            for dtype in args.dtypes.split(","):
                print(measure(workload, dtype, names, args.budget, args.device), flush=True)


if __name__ == "__main__":
    main()
