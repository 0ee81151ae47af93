"""``convert``, ``revert`` and ``report``: eager blocks become fused ones in place, and back."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from . import recognise
from .modules import FusedBlock
from .modules._packing import OwnsPackedWeights

CONVERTED, CONVERTIBLE, REFUSED = "converted", "convertible", "refused"
UNKNOWN, STEM = "unknown", "stem"  # kinds; a block's kind is its recogniser's

Filter = Callable[[nn.Module, str], bool]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Entry:
    """One module of a report. ``kind`` says what it is, ``reason`` why it is not converted (empty if it is)."""

    kind: str
    status: str
    reason: str = ""


@dataclass(frozen=True)
class Report(Mapping[str, Entry]):
    """Fully qualified name -> :class:`Entry`; ``str()`` is a table. The root's name is ""."""

    entries: dict[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def count(self, status: str) -> int:
        """How many entries are "converted", "convertible" or "refused"."""
        return sum(entry.status == status for entry in self.entries.values())

    def __str__(self) -> str:
        if not self.entries:
            return "no residual block, stem or other module with convolutions and BatchNorms found"
        header = ("module", "kind", "status", "reason")
        rows = [(name or "(root)", e.kind, e.status, e.reason) for name, e in self.entries.items()]
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(4)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows)
        ]
        counts = [f"{self.count(status)} {status}" for status in (CONVERTED, CONVERTIBLE, REFUSED)]
        return "\n".join([*lines, ", ".join(counts)])


def convert(model: Model, *, filter_fn: Filter | None = None, strict: bool = False) -> Model:
    """Makes the residual blocks and the stem of ``model`` fused, in place, and returns the model.

    A block changes its class, nothing else: submodules, Parameters, buffers, hooks, the state_dict, ``.training``
    and every reference to it stay. Blocks are recognised by exact type (torchvision's ResNet family,
    :mod:`resnet_fused.reference`, :mod:`resnet_fused.models`); others stay eager and :func:`report` says why.
    Converting twice changes nothing. Convert before ``torch.compile``, DDP or FSDP.

    Args:
        filter_fn: ``filter_fn(module, name) -> bool``; False leaves a module as it is.
        strict: raise ``ValueError`` if anything that :func:`report` would refuse passes ``filter_fn``. Nothing has
            changed then.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` or a part of it is wrapped by DDP, FSDP, torch.compile or TorchScript; or ``strict``.
    """
    _check_model(model, "convert")
    _check_unwrapped(model)
    chosen: list[tuple[nn.Module, recognise.Recogniser]] = []
    refused: list[str] = []
    for name, module, entry in _candidates(model):
        if entry.status == CONVERTED or (filter_fn is not None and not filter_fn(module, name)):
            continue
        recogniser = recognise.find(module)
        if entry.status == CONVERTIBLE and recogniser is not None:
            chosen.append((module, recogniser))
        else:
            refused.append(f"  {name or '(root)'}: {entry.reason}")
    if strict and refused:
        raise ValueError("strict=True, and these modules cannot be converted:\n" + "\n".join(refused))
    for module, recogniser in chosen:
        module.__class__ = recogniser.fused
    return model


def revert(model: Model) -> Model:
    """Undoes :func:`convert` in place: every fused module has its eager class again, with the same Parameters.

    A block built as ``FusedBasicBlock`` becomes a :class:`resnet_fused.reference.BasicBlock`. Returns the model.
    """
    _check_model(model, "revert")
    for module in model.modules():
        recogniser = recognise.by_fused_class(module)
        if recogniser is not None:
            if isinstance(module, OwnsPackedWeights):
                module.forget_packed()
            module.__class__ = recogniser.eager
    return model


def report(model: nn.Module) -> Report:
    """What of ``model`` is converted, what :func:`convert` would convert, and why it would not the rest.

    Lists blocks and stems of known classes, subclasses of those, and modules of unknown classes that directly
    own both convolutions and norms, which makes them look like blocks.
    """
    _check_model(model, "report")
    return Report({name: entry for name, _, entry in _candidates(model)})


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module, Entry]]:
    inside: set[nn.Module] = set()  # parts of something already listed
    for name, module in model.named_modules():
        if module in inside:
            continue
        entry = _judge(module)
        if entry is None:
            continue
        yield name, module, entry
        if entry.kind != STEM and (name or entry.kind != UNKNOWN):
            inside.update(_own_parts(module))


def _own_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The containers directly below a block: shortcuts and the like, which are no blocks of their own."""
    for child in module.children():
        if type(child) is nn.Sequential and not any(_is_block(m) for m in child.modules()):
            yield child


def _is_block(module: nn.Module) -> bool:
    return recognise.find(module) is not None or recognise.near_miss(module) is not None


def _judge(module: nn.Module) -> Entry | None:
    recogniser = recognise.find(module)
    if recogniser is not None:
        if type(module) is recogniser.fused:
            return Entry(recogniser.kind, CONVERTED)
        reason = recogniser.reason(module)
        if reason is not None:
            return Entry(recogniser.kind, REFUSED, reason)
        return Entry(recogniser.kind, CONVERTIBLE, "not converted yet; call resnet_fused.convert")
    name = type(module).__name__
    base = recognise.near_miss(module)
    if base is not None:
        if isinstance(module, FusedBlock):
            return Entry(base.kind, CONVERTED)
        reason = f"{name} is a subclass of {base.eager.__name__}; only the exact class is recognised"
        return Entry(base.kind, REFUSED, reason)
    children = list(module.children())
    has_conv = any(isinstance(m, nn.Conv2d) for m in children)
    if has_conv and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in children):
        return Entry(UNKNOWN, REFUSED, f"class {name} is not a block that resnet_fused knows")
    return None


def _check_model(model: object, function: str) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"resnet_fused.{function} takes a torch.nn.Module, got {type(model).__name__}")


def _check_unwrapped(model: nn.Module) -> None:
    for name, module in model.named_modules():
        wrapper = _wrapper(module)
        if wrapper is not None:
            where = f"{name!r}" if name else "the model"
            raise ValueError(f"{where} is wrapped by {wrapper}; convert the bare model first, then wrap the result")


def _wrapper(module: nn.Module) -> str | None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
        return "torch.compile"
    fsdp = sys.modules.get("torch.distributed.fsdp")  # imported wherever something is wrapped by it
    if fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)):
        return "FSDP"
    return None
