"""Workloads and contenders of the training benchmark, and the check of their gradients."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import resnet_fused
from resnet_fused import models, reference

from . import gpu

STAGES = ((64, 56), (128, 28), (256, 14), (512, 7))


class Workload(NamedTuple):
    """A block trained with random gradients, or a network with random labels."""

    title: str
    shape: tuple[int, int, int, int]
    make: Callable[[], nn.Module]

    @property
    def is_network(self) -> bool:
        return self.shape[1] == 3


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
        found.append(
            Workload(f"preact bottleneck {c}@{size}", shape, lambda c=c: reference.PreActBottleneck(4 * c, c))  # type: ignore[misc]
        )
    make = lambda: reference.Bottleneck(64, 64, 1, _projection(64, 256, 1))  # noqa: E731
    found.append(Workload("bottleneck proj 64@56", (batch, 64, 56, 56), make))
    for title, net in (("ResNet-18", models.resnet18), ("ResNet-50", models.resnet50)):
        found.append(Workload(title, (batch, 3, 224, 224), lambda net=net: resnet_fused.revert(net())))  # type: ignore[misc]
    return found


def _recompute(model: nn.Module) -> nn.Module:
    resnet_fused.convert(model)
    for module in model.modules():
        if isinstance(module, resnet_fused.modules.FusedBlock):
            module.recompute = True
    return model


CONTENDERS: dict[str, tuple[bool, bool, Callable[[nn.Module], nn.Module]]] = {  # channels_last, compiled, builder
    "eager": (False, False, lambda model: model),
    "eager_cl": (True, False, lambda model: model),
    "compile": (True, True, lambda model: model),
    "ours": (True, False, resnet_fused.convert),
    "ours_recompute": (True, False, _recompute),
    "ours_compile": (True, True, resnet_fused.convert),
    "eager_cl_graph": (True, False, lambda model: model),
    "ours_graph": (True, False, resnet_fused.convert),
}
GRAPHED = ("eager_cl_graph", "ours_graph")  # the whole step is captured in a CUDA graph
OTHER_UPDATE = 0.5  # relative; bf16 rounding changes a network's gradients by a third, wrong memory by more


YARDSTICKS = ("eager", "eager_cl")  # references for correctness, of which one always runs


class Trainee:
    """A contender: its own copy of the module, and one step of it."""

    def __init__(self, workload: Workload, name: str, dtype: str, device: torch.device) -> None:
        self.last, compiled, make = CONTENDERS[name]
        self.name = name
        torch.manual_seed(0)
        self.model = make(workload.make().train()).to(device)
        self.x = self._format(torch.randn(workload.shape).to(device))
        self.dtype = dtype
        if self.last:
            self.model.to(memory_format=torch.channels_last)
        self.labels = torch.randint(1000, workload.shape[:1]).to(device) if workload.is_network else None
        if not workload.is_network:  # inside a network, a block's input has autocast's dtype and needs a gradient
            self.x = (self.x.bfloat16() if dtype == "bf16" else self.x).requires_grad_()
            self.grad = self._gradient()
        self.call = torch.compile(self.model) if compiled else self.model
        rate = 0.01 if workload.is_network else 1e-5  # a block has no loss to minimise: barely change it
        self.optimiser = torch.optim.SGD(self.model.parameters(), rate, momentum=0.9)

    def _format(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if self.last else x

    def forward(self, x: Tensor) -> Tensor:
        """Returns a network's loss or a block's output."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.dtype == "bf16"):
            y = self.call(x)
        return y if self.labels is None else nn.functional.cross_entropy(y.float(), self.labels[: len(x)])

    @torch.no_grad()
    def _gradient(self) -> Tensor:
        """Returns a random gradient of a block's output, as large as that of a mean loss.

        The sum of the outputs is not a usable loss: within ten steps the weights are infinite or the outputs zero.
        """
        y = self.model.eval()(self.x.float())
        self.model.train()
        generator = torch.Generator().manual_seed(1)
        return self._format(torch.randn(y.shape, generator=generator).div_(y.numel())).to(y.device)

    def backward(self, y: Tensor) -> None:
        """Backpropagates a network's loss, or the gradient of a block's output."""
        if self.labels is not None:
            return y.backward()
        self.grad = self.grad.to(y.dtype)
        y.backward(self.grad[: len(y)])

    def step(self) -> None:
        self.optimiser.zero_grad()
        self.x.grad = None
        self.backward(self.forward(self.x))
        self.optimiser.step()

    def timed_call(self) -> Callable[[], object]:
        """Returns a step or the replay of its CUDA graph; raises RuntimeError if the replay's update differs."""
        if self.name not in GRAPHED:
            return self.step
        replay, _ = gpu.captured(self.step)
        before = [t.clone() for t in (*self.model.state_dict().values(), *self._momenta())]
        by_graph, by_step = self._update(replay, before), self._update(self.step, before)
        error = ((by_graph - by_step).norm() / by_step.norm()).item()
        if not error <= OTHER_UPDATE:
            raise RuntimeError(f"a replay's update of the weights differs from a step's by {error:.1e}")
        return replay

    def _momenta(self) -> list[Tensor]:
        return [state["momentum_buffer"] for state in self.optimiser.state.values()]

    @torch.no_grad()
    def _update(self, call: Callable[[], object], before: list[Tensor]) -> Tensor:
        """Returns how a call changes the parameters, starting from the state ``before``."""
        for t, old in zip([*self.model.state_dict().values(), *self._momenta()], before, strict=True):
            t.copy_(old)
        old_parameters = [p.detach().clone() for p in self.model.parameters()]
        with torch.enable_grad():
            call()
        changes = zip(self.model.parameters(), old_parameters, strict=True)
        return torch.cat([(p.detach() - old).double().flatten() for p, old in changes])

    def peak_bytes(self) -> int:
        """Peak memory of a step, beyond what was allocated before (CUDA)."""
        device = self.x.device
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        self.step()
        return torch.cuda.max_memory_allocated(device) - before

    def saved_bytes(self) -> int:
        """Bytes of distinct storages that autograd saves, without parameters and buffers."""
        own = {t.untyped_storage().data_ptr() for t in (*self.model.parameters(), *self.model.buffers())}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            y = self.forward(self.x)
        del y
        return sum(kept.values())


def verify(workload: Workload, dtype: str, trainees: dict[str, Trainee]) -> tuple[dict[str, float], dict[str, str]]:
    """Relative L2 errors of all gradients of two images against float64, and which of ours are wrong, with reasons.

    The limit is twice eager's error in its worse layout. Near zero one rounding decides whether a ReLU passes a
    gradient; that changes with the images, a bug does not, so up to three pairs of images are tried.
    """
    for start in range(0, max(1, min(6, workload.shape[0] - 1)), 2):
        errors = {name: _error(trainee, slice(start, start + 2), dtype) for name, trainee in trainees.items()}
        eager = max((error for name, error in errors.items() if name in YARDSTICKS), default=float("nan"))
        limit = 2 * eager + 1e-6
        wrong = {
            name: f"wrong: gradients off by {error:.1e}, eager's by {eager:.1e}"
            for name, error in errors.items()
            if name.startswith("ours") and not error <= limit
        }
        if not wrong:
            break
    return errors, wrong


def _error(trainee: Trainee, images: slice, dtype: str) -> float:
    exact = copy.copy(trainee)
    exact.model = exact.call = copy.deepcopy(resnet_fused.revert(copy.deepcopy(trainee.model))).double()
    exact.dtype = "fp64"
    x = trainee.x[images].detach()
    exact.backward(exact.forward(x.double()))
    state = copy.deepcopy(trainee.model.state_dict())
    trainee.optimiser.zero_grad()
    trainee.backward(trainee.forward(x))
    trainee.model.load_state_dict(state)
    found, truth = (
        torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
        for model in (trainee.model, exact.model)
    )
    return ((found - truth).norm() / truth.norm()).item()
