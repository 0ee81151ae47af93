"""The contenders. Each runs a workload from the same weights, in its own best layout.

A builder takes the workload and returns a :class:`Contender`, or raises :class:`Unavailable` with
the reason.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import resnet_fused

from .worker import Unavailable
from .workloads import Workload


@dataclass
class Contender:
    """``call`` is what is timed; ``output`` turns its result into a tensor like eager's.

    ``restore`` undoes changes of running statistics. With ``quantises`` the error is reported, not judged.
    """

    call: Callable[[], object]
    output: Callable[[object], Tensor]
    note: str = ""
    restore: Callable[[], None] = field(default=lambda: None)
    quantises: bool = False


Builder = Callable[[Workload, torch.device], Contender]


def eager(workload: Workload, device: torch.device) -> Contender:
    """Unmodified PyTorch in the default (contiguous) layout."""
    return _of_module(workload.module().to(device), workload.input().to(device))


def channels_last(workload: Workload, device: torch.device) -> Contender:
    """Eager in the layout that torch's own performance guide recommends."""
    return _of_module(*_channels_last(workload, device))


def compiled(workload: Workload, device: torch.device) -> Contender:
    """``torch.compile(model)``."""
    module, x = _channels_last(workload, device)
    return _of_compiled(module, x, fullgraph=True)


def frozen(workload: Workload, device: torch.device) -> Contender:
    """``torch.compile`` with inductor's freezing: BatchNorm folds into constant weights."""
    require_running_statistics(workload)
    module, x = _channels_last(workload, device)
    with torch._inductor.config.patch(freezing=True):
        return _of_compiled(module, x, fullgraph=True)


def max_autotune(workload: Workload, device: torch.device) -> Contender:
    """``torch.compile(mode="max-autotune")``: Triton convolutions and CUDA graphs; on the CPU with freezing."""
    on_cpu = device.type == "cpu"
    if on_cpu:
        require_running_statistics(workload)
    module, x = _channels_last(workload, device)
    with torch._inductor.config.patch(freezing=on_cpu):
        contender = _of_compiled(module, x, fullgraph=True, mode="max-autotune")
    contender.note = "with freezing" if on_cpu else ""
    return contender


def ours(workload: Workload, device: torch.device) -> Contender:
    """``resnet_fused.convert(model)``, run eagerly."""
    return _of_module(*_converted(workload, device))


def ours_frozen(workload: Workload, device: torch.device) -> Contender:
    """``resnet_fused.freeze(resnet_fused.convert(model))``: packed weights are not compared with the Parameters."""
    module, x = _converted(workload, device)
    return _of_module(resnet_fused.freeze(module), x)


def ours_compiled(workload: Workload, device: torch.device) -> Contender:
    """``torch.compile(resnet_fused.convert(model))``."""
    module, x = _converted(workload, device)
    return _of_compiled(module, x, fullgraph=False)


def require_running_statistics(workload: Workload) -> None:
    """Raises Unavailable unless BatchNorms use running statistics, for peers that fold them."""
    if workload.batch_statistics:
        raise Unavailable("takes running statistics only")


def _channels_last(workload: Workload, device: torch.device) -> tuple[nn.Module, Tensor]:
    last = torch.channels_last
    module = workload.module().to(device).to(memory_format=last)  # type: ignore[call-overload]
    return module, workload.input().to(device, memory_format=last)


def _converted(workload: Workload, device: torch.device) -> tuple[nn.Module, Tensor]:
    module, x = _channels_last(workload, device)
    module = resnet_fused.convert(module)
    if not any(type(m).__module__.startswith("resnet_fused.modules") for m in module.modules()):
        raise Unavailable("convert() fused nothing: this would time eager PyTorch under our name")
    return module, x


def _of_module(module: nn.Module, x: Tensor) -> Contender:
    return Contender(lambda: module(x), as_tensor, restore=_restorer(module))


def _of_compiled(module: nn.Module, x: Tensor, **options: object) -> Contender:
    """Compiles now, while the caller's inductor settings hold.

    Dynamo keeps compiled code per Python code object, and a second copy of a model may be given
    the first one's code, frozen or not. So each contender gets a code object of its own, and must
    add a graph.
    """

    def forward(x: Tensor) -> Tensor:
        return module(x)

    own = types.FunctionType(
        forward.__code__.replace(co_name=f"forward_{id(module)}"),
        globals(),
        closure=forward.__closure__,
    )
    before, restore = _graphs(), _restorer(module)
    function = torch.compile(own, dynamic=False, **options)  # type: ignore[call-overload]
    function(x)
    if _graphs() == before:
        raise Unavailable("torch.compile made no graph")
    return Contender(lambda: function(x), as_tensor, restore=restore)


def _restorer(module: nn.Module) -> Callable[[], None]:
    """Restores in place, because a CUDA graph refers to buffers by address."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()] if module.training else []

    def restore() -> None:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)

    return restore


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def as_tensor(result: object) -> Tensor:
    """The result itself: it is a tensor."""
    assert isinstance(result, Tensor)
    return result
