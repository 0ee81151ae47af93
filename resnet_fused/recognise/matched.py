"""Recognisers of blocks of any class, from what their ``forward`` computes."""

import weakref
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from .. import match
from ..chain import layers
from ..chain.layers import is_library_code, own_classes
from ..chain.spec import BlockSpec, Reason
from ..match import Mismatch
from ..modules import FusedBlock
from ..modules._packing import OwnsPackedWeights
from . import _forward, _probe
from ._blocks import Recogniser
from ._subclasses import METACLASSES, RESERVED, SPECIAL, class_of, reduced

MAX_CONVS = 16  # of a block: tracing whole networks would take time


class MatchedBlock(FusedBlock):
    """First base of the classes created here, which cannot be imported: instances are pickled by eager class."""

    _eager_methods = {}  # noqa: RUF012
    _spec = layers.Derived(match.spec_of)
    _spec_with_shortcut = layers.Derived(match.spec_with_shortcut, "with a shortcut")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self, protocol, MatchedBlock)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # Now, since torch.compile cannot trace the tracer; and only what was compared with forward may run fused.
        fused = type(self)
        self.__class__ = self._eager_class  # type: ignore[assignment]
        matches = match.in_modes(self, type(self))
        if any(isinstance(each.found, BlockSpec) for each in matches):
            found = {self: Matched("", None, True, matches)}
            _compare(found)  # type: ignore[arg-type]
            matches = found[self].matches
        self.__class__ = fused  # type: ignore[assignment]
        match.remember(self, matches)

    @staticmethod
    def fused_class(kind: Any) -> Any:
        """The fused class of an eager class, created if necessary."""
        attributes = _forward.attributes(kind, shortcut=match.shortcut_argument(kind))
        return class_of(kind, MatchedBlock, MatchedBlock, kind, **attributes)


@dataclass(frozen=True)
class Matched:
    """A residual block that no class is registered for, or a module that is none (``is_block``)."""

    kind: str
    reason: Reason | None
    is_block: bool
    matches: tuple[match.Match, ...] = ()

    def convert(self, module: nn.Module) -> None:
        """Sets the class of the block to its fused class."""
        module.__class__ = MatchedBlock.fused_class(type(module))
        match.remember(module, self.matches)


def recogniser(kind: Any) -> Recogniser | None:
    """The recogniser of a fused class made here, or of a subclass that a library such as FSDP2 made of it."""
    made = next((each for each in kind.__mro__ if MatchedBlock in each.__bases__), None)
    return None if made is None else Recogniser("residual block", made._eager_class, kind)


def revert_outdated(model: nn.Module) -> None:
    """Restores the class of blocks that changed since they were converted, so that they are examined again."""
    for module in model.modules():
        if isinstance(module, MatchedBlock) and match.is_outdated(module):
            module.__dict__.pop("_matches", None)
            module.forget_packed()
            module.__class__ = module._eager_class  # type: ignore[assignment]


def is_residual(module: Any) -> bool:
    """Whether a converted module is a residual block, and not a network of blocks."""
    if any(isinstance(part, OwnsPackedWeights) for part in module.modules() if part is not module):
        return False
    found = match.in_modes(module, module._eager_class)[0].found
    return isinstance(found, BlockSpec) or found.residual


def kind_of(module: nn.Module) -> str:
    """The kind of a converted block, for the report."""
    found = (each.found for each in module.__dict__.get("_matches", ()))
    return next((_kind(spec) for spec in found if isinstance(spec, BlockSpec)), "residual block")


def blocks_in(model: nn.Module, skip: Any) -> dict[nn.Module, Matched]:
    """The residual blocks of unknown classes in ``model``, innermost first: a module that contains one is none.

    ``skip(module)``: whether a module is known otherwise.
    """
    found: dict[nn.Module, Matched] = {}
    contains: set[nn.Module] = set()  # modules with a block inside
    for module in reversed([*model.modules()]):  # children before their parents
        if skip(module) or any(child in contains for child in module.children()):
            contains.add(module)
        elif _is_candidate(module):
            found[module] = examined = examine(module)
            if examined.is_block:
                contains.add(module)
    _compare(found)
    return found


def _is_candidate(module: nn.Module) -> bool:
    if is_library_code(type(module)):
        return False
    return 0 < sum(isinstance(part, nn.Conv2d) for part in module.modules()) <= MAX_CONVS


def examine(module: nn.Module) -> Matched:
    """What a module computes, in eval and training mode."""
    try:
        return _examine(module, type(module))
    except Exception as error:  # the user's classes may raise anything
        text = " ".join(str(error).split())[:160]
        return Matched("residual block", Reason("examining it raises {}: {}", "", type(error), text), False)


def _examine(module: nn.Module, kind: type[nn.Module]) -> Matched:
    reason = why_unsuited(module, kind)
    if reason is not None:
        return Matched("residual block", reason, False)
    matches = match.in_modes(module, kind)
    specs = [each.found for each in matches if not isinstance(each.found, Mismatch)]
    if specs:
        chain = layers.read(module, specs[0], [])
        return Matched(_kind(specs[0]), chain if isinstance(chain, Reason) else None, True, matches)
    first = matches[0].found
    assert isinstance(first, Mismatch)
    return Matched("residual block", first.reason, first.residual)


def why_unsuited(module: nn.Module, kind: type[nn.Module]) -> Reason | None:
    """Why the class of a module cannot be replaced."""
    for path, part in module.named_modules():
        if part is not module and isinstance(part, OwnsPackedWeights):  # already fused
            continue
        cls = kind if part is module else type(part)
        if type(cls) not in METACLASSES:
            return Reason("{} has the metaclass {}", path, cls, type(cls))
        for owner in own_classes(cls):
            name = next((name for name in vars(owner) if name in SPECIAL or name in RESERVED), None)
            if name is not None:
                return Reason("{} defines {}", path, owner, name)
        if _is_fake(part):
            return Reason("{name} has fake tensors", path)
        if part is not module and layers.has_hooks(part):
            return layers.hook_reason(part, path)
    return None


def _is_fake(part: nn.Module) -> bool:
    return any(isinstance(t, FakeTensor) for t in (*part._parameters.values(), *part._buffers.values()))


def _kind(spec: BlockSpec) -> str:
    is_pre = spec.norms[0] is not None
    names = {(2, False): "basic block", (3, False): "bottleneck"}
    names |= {(2, True): "pre-activation block", (3, True): "pre-activation bottleneck"}
    return names.get((len(spec.convs), is_pre), "residual block")


def _compare(found: dict[nn.Module, Matched]) -> None:
    """Refuses blocks whose fused form differs from ``forward``: of blocks with the same code, the smallest is run."""
    groups: dict[Any, list[nn.Module]] = {}
    for module, each in found.items():
        if each.matches and each.reason is None:
            key = type(module), tuple(m.code() for m in each.matches)
            groups.setdefault(key, []).append(module)
    for (kind, code), modules in groups.items():
        equal = _equal.setdefault(kind, set())
        if code in equal:
            continue
        # By size: one that is called with a shortcut only may need other shapes.
        tried = {_size(module): module for module in modules}
        for size in sorted(tried):
            mismatch = _mismatch(tried[size], found)
            if mismatch is None or not mismatch.startswith(_probe.NOT_COMPARED):
                break
        if mismatch is None:
            if not any(match.calls_user_code(m) for m in found[modules[0]].matches):  # else it is this object's code
                equal.add(code)
            continue
        for module in modules:
            found[module] = Matched(found[module].kind, Reason("{}", "", mismatch), True)


#: The code of blocks that were compared, by class. Weak: it must not keep classes alive.
_equal: "weakref.WeakKeyDictionary[type, set[Any]]" = weakref.WeakKeyDictionary()


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _mismatch(module: nn.Module, found: dict[nn.Module, Matched]) -> str | None:
    if any(map(_is_fake, module.modules())):  # copying fake tensors can crash
        return "it has fake tensors"
    spec = next(m.found for m in found[module].matches if isinstance(m.found, BlockSpec))
    chain = layers.read(module, spec, [])
    if isinstance(chain, Reason):
        return str(chain)
    return _probe.mismatch(module, MatchedBlock.fused_class(type(module)), chain, found[module].matches)
