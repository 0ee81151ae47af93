"""``explain``: how each converted block runs for a given input, and why eager runs where it does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .chain import read
from .chain.spec import Reason
from .convert import BLOCK_CHAINS, CONVERTED, Report, aligned, check_model, report

INFERENCE, TRAINING, EAGER = "inference", "training", "eager"


@dataclass(frozen=True)
class Run:
    """How a module ran.

    Attributes:
        kind: as in :class:`Entry`.
        how: "inference" (fused, constant statistics), "training" (one differentiable op), or "eager".
        reason: why eager ran.
    """

    kind: str
    how: str
    reason: str = ""


@dataclass(frozen=True)
class Explanation(Mapping[str, Run]):
    """Maps fully qualified module names to :class:`Run`; ``str()`` gives a table. The root's name is "".

    Attributes:
        runs: the same as a dictionary.
        hint: the last line of the table, or "".
    """

    runs: dict[str, Run]
    hint: str = ""

    def __getitem__(self, name: str) -> Run:
        return self.runs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __str__(self) -> str:
        rows = [("module", "kind", "runs", "reason")]
        rows += [(name or "(root)", run.kind, run.how, run.reason) for name, run in self.runs.items()]
        eager = sum(run.how == EAGER for run in self.runs.values())
        count = f"{len(self.runs) - eager} fused, {eager} eager"
        return "\n".join([*aligned(rows), count, *([self.hint] if self.hint else [])])


def explain(model: nn.Module, *args: Any, **kwargs: Any) -> Explanation:
    """Calls ``model(*args, **kwargs)`` once and says how each block and stem ran, and why eager ran.

    The answer holds for the current mode of the model, for autocast, gradients and hooks as they are now, and for
    inputs of these shapes, dtypes and devices. :func:`resnet_fused.report` needs no input and says what
    :func:`resnet_fused.convert` does. Buffers and the CPU's random state are restored afterwards.

    >>> import torch, resnet_fused
    >>> model = resnet_fused.convert(resnet_fused.models.small_resnet().eval())
    >>> with torch.no_grad():
    ...     print(explain(model, torch.randn(1, 3, 32, 32)))
    module    kind         runs       reason
    (root)    stem         inference
    layer1.0  basic block  inference
    layer2.0  basic block  inference
    3 fused, 0 eager

    Args:
        model: a model, or one block, converted or not.
        args: what ``forward`` takes, as a rule one tensor ``(N, C, H, W)``.
        kwargs: the same by name.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
    """
    check_model(model, "explain")
    found = report(model)
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with torch.random.fork_rng(devices=[]):
            records = record(model, *args, **kwargs)
    finally:
        for module, name, buffer, before in buffers:
            buffer.data.copy_(before)
            module._buffers[name] = buffer
    found_runs = runs(model, found, records)
    trains = any(run.how == TRAINING and not model.get_submodule(name).training for name, run in found_runs.items())
    return Explanation(found_runs, _HINT if trains and torch.is_grad_enabled() else "")


_HINT = (
    "The model is in eval mode and gradients are enabled: inference needs torch.no_grad() or torch.inference_mode()."
)


def record(model: nn.Module, *args: Any, **kwargs: Any) -> list[Any]:
    """Calls the model; returns each read of a block, in the order of the calls."""
    with read.recording() as records:
        model(*args, **kwargs)
    return records


def runs(model: nn.Module, found: Report, records: list[Any]) -> dict[str, Run]:
    """The :class:`Run` of each entry of a report. A block that ran several times is eager if it once was."""
    outcomes: dict[nn.Module, dict[str, Any]] = {}
    for module, name, how in records:  # a network has several parts; of a stem that is read twice, the last read counts
        part = name.partition(" ")[0]
        before = outcomes.setdefault(module, {}).get(part)
        if part or not isinstance(before, Reason):
            outcomes[module][part] = how
    names = dict(model.named_modules(remove_duplicate=False))
    result: dict[str, Run] = {}
    for name, entry in found.items():
        path = name
        if entry.kind == BLOCK_CHAINS:  # it may run as part of a network's chains
            while names[path] not in outcomes and path:
                path = path.rpartition(".")[0]
        hows = outcomes.get(names[path], {}).values()
        reason = next((how.at(path) for how in hows if isinstance(how, Reason)), None)
        if entry.status != CONVERTED or not hows:
            reason = entry.reason.removeprefix("converted, but runs eagerly: ") or "it was not called"
        trains = any(isinstance(how, read.Read | read.Fused) and how.trains for how in hows)
        how = EAGER if reason is not None else TRAINING if trains else INFERENCE
        result[name] = Run(entry.kind, how, reason or "")
    return result
