"""``forward`` of fused classes whose eager class takes other arguments than ``x``."""

import inspect
from typing import Any

from torch import Tensor

from ..modules import FusedBlock


def attributes(kind: Any, forward: Any = FusedBlock.forward, shortcut: str = "") -> dict[str, Any]:
    """The attribute ``forward`` of the fused class of ``kind``; nothing where ``forward``, that of its base, fits.

    The function has the same signature, which tracers read. It runs the fused path if all arguments but the first have
    their defaults, or all but the first and ``shortcut``.
    """
    try:
        signature = inspect.signature(kind.forward)
    except (TypeError, ValueError):
        return {"forward": _with_any_arguments(forward)}
    names = list(signature.parameters)
    if names == ["self", "x"]:
        return {}
    others = list(signature.parameters.values())[2:]
    kinds = {each.kind for each in signature.parameters.values()}
    if len(names) < 2 or kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        return {"forward": _with_any_arguments(forward)}
    if any(each.default is inspect.Parameter.empty for each in others):
        return {"forward": _with_any_arguments(forward)}
    return {"forward": _with_signature(forward, names[0], names[1], others, shortcut)}


def _with_signature(forward: Any, self: str, x: str, others: list[inspect.Parameter], shortcut: str) -> Any:
    space: dict[str, Any] = {"fused": forward, "Tensor": Tensor}
    space |= {f"default_{each.name}": each.default for each in others}
    keywords = [each for each in others if each.kind is inspect.Parameter.KEYWORD_ONLY]
    positional = [each for each in others if each not in keywords]
    declared = [self, x, *(f"{each.name}=default_{each.name}" for each in positional)]
    declared += ["*", *(f"{each.name}=default_{each.name}" for each in keywords)] if keywords else []
    passed = [self, x, *(each.name for each in positional), *(f"{each.name}={each.name}" for each in keywords)]
    rest = "".join(f" and {each.name} is default_{each.name}" for each in others if each.name != shortcut)
    given = (
        f"    if isinstance({shortcut}, Tensor){rest}:\n        return {self}.forward_with_shortcut({x}, {shortcut})\n"
    )
    condition = " and ".join(f"{each.name} is default_{each.name}" for each in others) or "True"
    source = (
        f"def forward({', '.join(declared)}):\n"
        f"    if {condition}:\n"
        f"        return fused({self}, {x})\n"
        f"{given if shortcut else ''}"
        f"    return {self}._eager_class.forward({', '.join(passed)})\n"
    )
    exec(compile(source, "<forward of a fused block>", "exec"), space)
    made = space["forward"]
    made.runs_fused = True  # for one argument, as FusedBlock.forward
    return made


def _with_any_arguments(forward: Any) -> Any:
    def of_any_arguments(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and not kwargs:
            return forward(self, args[0])
        return self._eager_class.forward(self, *args, **kwargs)

    return of_any_arguments
