"""``convert``, ``revert`` and ``report``: switch eager blocks to fused blocks in place, and back."""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from . import recognise
from .modules import FusedStage
from .modules._packing import OwnsPackedWeights

CONVERTED, CONVERTIBLE, REFUSED = "converted", "convertible", "refused"
# Kinds; the recogniser names others. Chains may be those of a residual block that cannot be fused as a whole.
UNKNOWN, STEM, WRAPPED, CHAINS, BLOCK_CHAINS = "unknown", "stem", "wrapped", "chains", "chains of a residual block"
_HINT = "chains=True fuses its convolutions in inference"

_log = logging.getLogger("resnet_fused")

Filter = Callable[[nn.Module, str], bool]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Entry:
    """One module of a report.

    Attributes:
        kind: what it is: "basic block", "bottleneck", "stem", ...
        status: "converted", "convertible" or "refused".
        reason: why it is not fused. A converted module has one if it currently runs eagerly, for example because a hook
            was added.
        class_name: its eager class.
    """

    kind: str
    status: str
    reason: str = ""
    class_name: str = field(default="", compare=False)

    @property
    def runs_eagerly(self) -> bool:
        """Whether the module is converted but currently runs the eager code."""
        return self.status == CONVERTED and bool(self.reason)


class Coverage(NamedTuple):
    """How many of the residual blocks are fused, or would be by :func:`convert`.

    Attributes:
        fused: blocks that are converted or convertible.
        blocks: all of them.
    """

    fused: int
    blocks: int

    def __str__(self) -> str:
        return f"{self.fused} of {self.blocks} residual blocks"


@dataclass(frozen=True)
class Report(Mapping[str, Entry]):
    """Maps fully qualified module names to :class:`Entry`; ``str()`` gives a table. The root's name is "".

    Attributes:
        entries: the same as a dictionary.
    """

    entries: dict[str, Entry]

    def __getitem__(self, name: str) -> Entry:
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def count(self, status: str) -> int:
        """The number of entries with this status: "converted", "convertible" or "refused"."""
        return sum(entry.status == status for entry in self.entries.values())

    @property
    def coverage(self) -> Coverage:
        """The residual blocks that are converted or convertible, and all of them, without stems and other modules."""
        blocks = [entry for entry in self.entries.values() if entry.kind not in (STEM, UNKNOWN, WRAPPED, CHAINS)]
        fused = sum(entry.status != REFUSED and entry.kind != BLOCK_CHAINS for entry in blocks)
        return Coverage(fused, len(blocks))

    def __str__(self) -> str:
        if not self.entries:
            return "no residual block, stem or other module with convolutions and BatchNorms found"
        head = ("module", "class", "kind", "status", "reason")
        rows = [(name or "(root)", e.class_name, e.kind, e.status, e.reason) for name, e in self.entries.items()]
        counts = [self.counted(status) for status in (CONVERTED, CONVERTIBLE, REFUSED)]
        return "\n".join([*aligned([head, *rows]), ", ".join(counts)])

    def counted(self, status: str) -> str:
        """:meth:`count` as text, including how many converted modules run eagerly."""
        eager = sum(entry.runs_eagerly for entry in self.entries.values()) if status == CONVERTED else 0
        return f"{self.count(status)} {status}" + (f" ({eager} of them eager)" if eager else "")


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The lines of a table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]


def convert(model: Model, *, filter_fn: Filter | None = None, strict: bool = False, chains: bool = False) -> Model:
    """Converts the residual blocks and the stem of ``model`` to fused ones, in place, and returns the model.

    Only the class of a block changes. Submodules, Parameters, buffers, hooks, the state_dict, ``.training`` and all
    references to the block stay the same, and ``isinstance`` with its class still holds. A residual block of any class
    is recognised by what its ``forward`` computes: convolutions with BatchNorm and ReLU, and a shortcut (He et al.
    2015, arXiv:1512.03385; 2016, arXiv:1603.05027). An ``nn.Sequential`` of fused blocks becomes a
    :class:`resnet_fused.modules.FusedStage`. All other modules stay eager, as do parts of the model that are wrapped by
    DDP, FSDP, ``torch.compile`` or TorchScript. :func:`report` gives the reasons. Converting twice has no effect,
    unless a block changed in between.

    >>> import resnet_fused
    >>> model = resnet_fused.convert(resnet_fused.models.resnet18())
    >>> resnet_fused.report(model).coverage
    Coverage(fused=8, blocks=8)

    Args:
        model: any module, in any mode, on any device.
        filter_fn: ``filter_fn(module, name) -> bool``; modules for which it returns False are not converted.
        strict: raise ``ValueError`` if a module that passes ``filter_fn`` is refused, except one that contains blocks
            that are fused. The model is unchanged then.
        chains: also fuse convolutions with the BatchNorm and ReLU that follow them in other modules, such as blocks
            with squeeze-excitation. They run fused in inference on channels_last activations.

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``, or ``filter_fn`` is not callable.
        ValueError: ``model`` itself is wrapped by DDP, FSDP, torch.compile or TorchScript, or ``strict`` found refused
            modules.
    """
    check_model(model, "convert")
    if filter_fn is not None and not callable(filter_fn):
        raise TypeError(f"convert expects filter_fn(module, name) -> bool, but got {filter_fn!r}")
    wrapper = _wrapper(model)
    if wrapper is not None:
        raise ValueError(f"the model is {_wrapped_by(wrapper)}")
    recognise.revert_outdated(model)
    matched = _matched_blocks(model)
    chosen: list[nn.Module] = []
    refused: list[tuple[str, nn.Module]] = []
    entries: dict[str, Entry] = {}
    for name, module, entry in _candidates(model, matched):
        entries[name] = entry
        if entry.status == CONVERTED or (filter_fn is not None and not filter_fn(module, name)):
            continue
        if entry.status == CONVERTIBLE:
            chosen.append(module)
        else:
            refused.append((name, module))
    fused = {*chosen, *(module for module in model.modules() if isinstance(module, OwnsPackedWeights))}
    reasons = [
        f"  {name or '(root)'} ({entries[name].class_name}): {entries[name].reason}"
        for name, module in refused
        if entries[name].kind != UNKNOWN or fused.isdisjoint(module.modules())  # a network of fused blocks
    ]
    if strict and reasons:
        raise ValueError("strict=True, and these modules cannot be converted:\n" + "\n".join(reasons))
    for module in chosen:
        recogniser = recognise.find(module)
        if recogniser is not None:
            module.__class__ = recogniser.fused
        else:
            matched[module].convert(module)
    if chains:
        names = {module: name for name, module in model.named_modules()}
        wrappers, _ = _wrapped_modules(model)

        def accepts(module: nn.Module) -> bool:
            return module not in wrappers and (filter_fn is None or filter_fn(module, names[module]))

        for module in recognise.modules_with_chains(model, accepts):
            module.__class__ = recognise.FusedChains.fused_class(type(module))
    for stage in recognise.stages_in(model):
        stage.__class__ = FusedStage
    coverage = Report(entries).coverage
    _log.info("%s: converted %d modules; %s can be fused", type(model).__name__, len(chosen), coverage)
    return model


def revert(model: Model) -> Model:
    """Undoes :func:`convert` in place: restores the eager class of every fused module, with the same Parameters.

    A block that was built as ``FusedBasicBlock`` becomes a :class:`resnet_fused.reference.BasicBlock`.

    >>> import resnet_fused
    >>> model = resnet_fused.revert(resnet_fused.convert(resnet_fused.models.resnet18()))
    >>> type(model.layer1[0])
    <class 'resnet_fused.reference.BasicBlock'>

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model, "revert")
    for module in model.modules():
        recogniser = recognise.by_fused_class(module)
        if recogniser is not None:
            if isinstance(module, OwnsPackedWeights):
                module.forget_packed()
            for name in ("_matches", "_seen"):
                module.__dict__.pop(name, None)
            module.__class__ = recogniser.eager
    return model


def report(model: nn.Module) -> Report:
    """Lists what is converted, what :func:`convert` would convert, and what it would refuse, with reasons.

    The report covers blocks and stems of known classes, their subclasses, and modules of unknown classes that contain
    convolutions and norms. A converted module that runs eagerly has a reason.

    >>> import resnet_fused
    >>> print(report(resnet_fused.convert(resnet_fused.models.small_resnet())))
    module    class                                  kind         status     reason
    (root)    resnet_fused.models.cifar.CifarResNet  stem         converted
    layer1.0  resnet_fused.reference.BasicBlock      basic block  converted
    layer2.0  resnet_fused.reference.BasicBlock      basic block  converted
    3 converted, 0 convertible, 0 refused

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model, "report")
    return Report({name: entry for name, _, entry in _candidates(model, _matched_blocks(model))})


def _matched_blocks(model: nn.Module) -> dict[nn.Module, recognise.Matched]:
    wrappers, _ = _wrapped_modules(model)

    def is_known(module: nn.Module) -> bool:
        return module in wrappers or isinstance(module, OwnsPackedWeights) or recognise.find(module) is not None

    return recognise.blocks_in(model, is_known)


def _candidates(
    model: nn.Module, matched: dict[nn.Module, recognise.Matched]
) -> Iterator[tuple[str, nn.Module, Entry]]:
    wrappers, untouched = _wrapped_modules(model)
    inside: set[nn.Module] = set()  # submodules of modules already listed
    covered: set[nn.Module] = set()  # those of modules whose chains run fused
    for name, module in model.named_modules():
        if module in inside:
            continue
        if module in untouched:
            yield name, module, Entry(WRAPPED, REFUSED, f"it is {_wrapped_by(wrappers[module])}", _class_name(module))
            inside.update(module.modules())
            continue
        if isinstance(module, FusedStage):
            continue
        entry = _judge(module, name, matched.get(module))
        if entry is None or (module in covered and entry.kind == UNKNOWN):
            continue
        if entry.kind == CHAINS:
            covered.update(module.modules())
        elif module in covered and entry.status == REFUSED:
            entry = Entry(BLOCK_CHAINS, CONVERTED)
        if entry.status == CONVERTIBLE and module in wrappers:
            entry = Entry(entry.kind, REFUSED, f"it is {_wrapped_by(wrappers[module])}")
        yield name, module, replace(entry, class_name=_class_name(module))
        if entry.kind == STEM and entry.status != REFUSED:
            inside.update(recognise.parts_of_stem(module))
        elif entry.kind not in (STEM, UNKNOWN, CHAINS):
            inside.update(module.modules())
        elif entry.kind != STEM and name:
            inside.update(recognise.parts_of(module))


def _class_name(module: nn.Module) -> str:
    return recognise.class_name(getattr(module, "_eager_class", type(module)))


def _judge(module: nn.Module, path: str, matched: recognise.Matched | None) -> Entry | None:
    recogniser = recognise.find(module)
    if recogniser is not None:
        if recogniser.kind == CHAINS:
            kind = BLOCK_CHAINS if recognise.is_residual(module) else CHAINS
            eager = recognise.why_eager(module)
            return _converted(kind, None if eager is None else eager.at(path))
        if type(module) is recogniser.fused:
            kind = recognise.kind_of(module) if isinstance(module, recognise.MatchedBlock) else recogniser.kind
            return _converted(kind, recogniser.reason(module, path, converted=True))
        reason = recogniser.reason(module, path)
        if reason is not None:
            return Entry(recogniser.kind, REFUSED, reason)
        return Entry(recogniser.kind, CONVERTIBLE, "not converted yet; call resnet_fused.convert")
    if matched is not None and matched.is_block and matched.reason is None:
        return Entry(matched.kind, CONVERTIBLE, "not converted yet; call resnet_fused.convert")
    base = recognise.find_base(module)
    if base is not None:
        reason = recognise.overridden(type(module), base)
        if isinstance(module, base.fused):  # a user's subclass of a fused class, or FSDP's
            return _converted(base.kind, reason or base.reason(module, path, converted=True))
        return Entry(base.kind, REFUSED, reason or "")
    if matched is not None and matched.is_block:
        return Entry(matched.kind, REFUSED, _with_hint(matched.reason.at(path) if matched.reason else "", module))
    if recognise.looks_like_a_block(module) or (matched is not None and _is_named_block(module)):
        reason = "" if matched is None or matched.reason is None else f": {matched.reason.at(path)}"
        return Entry(UNKNOWN, REFUSED, _with_hint(f"it is no residual block{reason}", module))
    return None


def _is_named_block(module: nn.Module) -> bool:
    """Whether the name of a class that cannot be traced says that it is a block."""
    convs = sum(isinstance(part, nn.Conv2d) for part in module.modules())
    return convs > 1 and re.search("block|bottleneck|unit", type(module).__name__, re.IGNORECASE) is not None


def _with_hint(reason: str, module: nn.Module) -> str:
    return f"{reason}; {_HINT}" if recognise.has_chains(module) else reason


def _converted(kind: str, reason: str | None) -> Entry:
    return Entry(kind, CONVERTED, "" if reason is None else f"converted, but runs eagerly: {reason}")


_HINTS: dict[type, str] = {
    type(None): "some libraries' eval() and train() return None: pass the model itself",
    str: "load the file first and pass the model",
    Path: "load the file first and pass the model",
    dict: "load the state_dict into a model and pass the model",
    list: "pass one model at a time",
    tuple: "pass one model at a time",
    type: "pass an instance of it",
}


def check_model(model: object, function: str) -> None:
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        hint = next((f"; {text}" for kind, text in _HINTS.items() if isinstance(model, kind)), "")
        raise TypeError(f"resnet_fused.{function} expects a torch.nn.Module, but got {what}{hint}")


def _wrapped_modules(model: nn.Module) -> tuple[dict[nn.Module, str], set[nn.Module]]:
    """A map from each module inside a wrapper to the wrapper's name, and the wrapped modules to report as refused.

    The latter contain convolutions and no fused module.
    """
    wrappers: dict[nn.Module, str] = {}
    untouched: set[nn.Module] = set()
    for module in model.modules():
        wrapper = None if module in wrappers else _wrapper(module)
        if wrapper is not None:
            parts = list(module.modules())
            wrappers.update(dict.fromkeys(parts, wrapper))
            if any(map(_is_convolution, parts)) and not any(isinstance(part, OwnsPackedWeights) for part in parts):
                untouched.add(module)
    return wrappers, untouched


def _is_convolution(module: nn.Module) -> bool:
    # TorchScript replaces the class of modules.
    return isinstance(module, nn.Conv2d) or getattr(module, "original_name", None) == "Conv2d"


def _wrapped_by(wrapper: str) -> str:
    return f"wrapped by {wrapper}; convert the bare model first, then wrap the result"


def _wrapper(module: nn.Module) -> str | None:
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return "DistributedDataParallel"
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    # A library that wraps anything has been imported already.
    dynamo, fsdp = sys.modules.get("torch._dynamo.eval_frame"), sys.modules.get("torch.distributed.fsdp")
    if module._compiled_call_impl is not None or (dynamo is not None and isinstance(module, dynamo.OptimizedModule)):
        return "torch.compile"
    if fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)):
        return "FSDP"
    return None
