"""Reads modules or tensors into a :class:`Chain`, on every call; or gives the :class:`Reason` why eager must run.

A block's chain is used again while its modules hold the same parameters, buffers and settings, which one comparison of
dictionaries tells.
"""

import contextlib
import functools
import operator
import threading
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._indexing import indexable, window
from . import layers
from .geometry import output_shape
from .policy import PLAIN_TENSORS, Setting, module_setting, setting
from .spec import BlockSpec, Chain, Conv, Norm, Reason, Shortcut
from .statistics import process_groups

_CODE = operator.attrgetter("__code__", "__defaults__", "__kwdefaults__")
#: Attributes that conversion adds to a module.
OURS = ("_seen", "_matches")
_SHAPE_AND_DTYPE = operator.attrgetter("shape", "dtype")


class Read(NamedTuple):
    """A chain in the dtype of its :class:`Setting`, and whether it runs as one differentiable op."""

    chain: Chain
    setting: Setting
    trains: bool
    recompute: bool = False


class Fused(NamedTuple):
    """A module whose chains run fused, without gradients (:mod:`.runs`)."""

    trains: bool = False


FUSED = Fused()


class _Recording(threading.local):
    records: list[tuple[nn.Module, str, Read | Fused | Reason]] | None = None  # see :func:`recording`


_recording = _Recording()


def block(module: nn.Module, spec: layers.Spec, x: Tensor, how: Setting | Reason | None = None) -> Read | Reason:
    """How the fused path runs ``module`` for the input ``x``, or why eager must run. ``how``: x's setting, if known."""
    found = _block(module, spec, x, module_setting(x) if how is None else how)
    if not torch.compiler.is_compiling():
        record(module, spec, found)
    return found


def record(module: nn.Module, spec: layers.Spec, how: Read | Reason) -> None:
    """Notes how a block runs if :func:`recording` asks for it."""
    if _recording.records is not None:
        names = layers.resolve(module, spec)
        _recording.records.append((module, names.part if isinstance(names, BlockSpec) else "", how))


def is_recording() -> bool:
    """Whether :func:`recording` is active in this thread."""
    return _recording.records is not None


def note(module: nn.Module, part: str, reason: Reason | None) -> None:
    """:func:`record` of a module that runs fused without gradients, or eagerly for a reason."""
    if _recording.records is not None:
        _recording.records.append((module, part, reason or FUSED))


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[nn.Module, str, Read | Fused | Reason]]]:
    """Collects how blocks run, in the order of their calls: module, part of its spec, and how it runs."""
    before, _recording.records = _recording.records, []
    try:
        yield _recording.records
    finally:
        _recording.records = before


def _block(module: nn.Module, spec: layers.Spec, x: Tensor, how: Setting | Reason) -> Read | Reason:
    if isinstance(how, Reason):
        return how
    is_traced = type(x) is not Tensor or torch.compiler.is_compiling()  # sizes may be symbols
    seen = None if is_traced else last_seen(module, spec)
    if isinstance(seen, Reason):
        return seen
    chain = layers.described(module, spec) if seen is None else seen.chain
    if isinstance(chain, Reason):
        return chain
    if isinstance(spec, layers.Derived) and not is_traced and x.numel() == 0:
        return Reason("the input is empty")  # forward may ask for that
    if not chain.convs:
        how = how._replace(dtype=x.dtype)  # autocast changes the dtype of convolutions only
    trains = _uses_batch_statistics(chain) if seen is None else seen.uses_batch_statistics
    trains = trains or (torch.is_grad_enabled() and _learns(x, chain))
    if trains and not getattr(module, "fused_training", True):
        return Reason("fused_training is False")
    checked = _check(x, chain, how, trains) if seen is None else seen.check(x, how, trains)
    if isinstance(checked, Reason):
        return checked
    return Read(checked, how, trains, trains and bool(getattr(module, "recompute", False)))


def may_train(module: nn.Module, how: Setting | Reason) -> bool:
    """Whether ``module`` may train fused, before looking at its submodules."""
    return isinstance(how, Setting) and how.capabilities.trains and getattr(module, "fused_training", True)


def tensors(x: Tensor, chain: Chain) -> Read | Reason:
    """How the fused path runs a chain of given tensors, or why eager must run. Ops report wrong shapes and dtypes."""
    how = setting(x)
    if isinstance(how, Reason):
        return how
    given = chain.tensors()
    if not PLAIN_TENSORS.issuperset(map(type, given)):
        return Reason("an argument is a tensor subclass")
    if not chain.convs:
        how = how._replace(dtype=x.dtype)
    trains = torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in given))
    if any(conv.weight.dim() != 4 for conv in chain.convs):
        return Read(chain, how, trains=False)  # the op raises the error
    if trains and not (how.capabilities.trains and (chain.convs or chain.norms[0] is not None)):
        return Reason("there are no training kernels for this function or device")
    if not indexable(x, _windows(chain)):
        return _TOO_LARGE
    source = None if chain.shortcut is None else chain.shortcut.source
    if source is not None and (trains or (source.dim() == 4 and not indexable(source))):
        return Reason("the projection of another tensor is too large or needs a gradient")
    if trains and not _adds_same_shape(x, chain):
        return Reason("the shortcut has another shape than the output")  # eager broadcasts it, or raises
    if trains or how.autocast:
        checked = _in_dtype(x, chain, how, trains)
        return checked if isinstance(checked, Reason) else Read(checked, how, trains)
    return Read(chain, how, trains)


def _adds_same_shape(x: Tensor, chain: Chain) -> bool:
    shortcut = chain.shortcut
    if shortcut is None or shortcut.conv is not None:
        return True
    return tuple((x if shortcut.residual is None else shortcut.residual).shape) == output_shape(x, chain.convs)


_TOO_LARGE = Reason("a tensor has more than 2^31 - 1 elements")


def _learns(x: Tensor, chain: Chain) -> bool:
    if x.requires_grad or any(t.requires_grad for t in chain.tensors()):
        return True
    shortcut = chain.shortcut or Shortcut()
    called = (shortcut.module, shortcut.transform)
    if any(isinstance(each, layers.Function) and each.requires_grad() for each in called):
        return True
    modules = (each for each in called if isinstance(each, nn.Module))
    return any(p.requires_grad for each in modules for p in each.parameters())


def _check(x: Tensor, chain: Chain, how: Setting, trains: bool) -> Chain | Reason:
    """``chain`` with its weights in the setting's dtype and the shortcut that fits x; a reason if eager must run."""
    if trains and not how.capabilities.trains:
        return Reason("there are no training kernels for device {}", "", x.device.type)
    if not indexable(x, _windows(chain)):
        return _TOO_LARGE
    fitting = _with_fitting_shortcut(x, chain, how, trains)
    return fitting if isinstance(fitting, Reason) else _in_dtype(x, fitting, how, trains)


def _projection(chain: Chain) -> Sequence[Conv]:
    return () if chain.shortcut is None or chain.shortcut.conv is None else (chain.shortcut.conv,)


def _windows(chain: Chain) -> list[Any]:
    windows = [window(conv.weight, conv.stride, conv.padding, conv.dilation) for conv in chain.convs]
    if chain.pool is not None:
        windows.append((chain.convs[-1].weight.shape[0], *chain.pool.kernel, chain.pool.stride, chain.pool.padding, 1))
    return windows


def _with_fitting_shortcut(x: Tensor, chain: Chain, how: Setting, trains: bool) -> Chain | Reason:
    """``chain`` with the form of its shortcut that gives the main path's shape; a reason if there is none."""
    shortcut = chain.shortcut
    if shortcut is None:
        return chain
    out = output_shape(x, chain.convs)
    if shortcut.is_identity:
        # Other shapes broadcast or raise in eager, and eager adds before rounding to autocast's dtype.
        if x.dtype is how.dtype and tuple(x.shape) == out:
            return chain
        return Reason("the shortcut adds x, {} {}, to {} {}", "", x.dtype, list(x.shape), how.dtype, list(out))
    if shortcut.transform is not None or shortcut.reads_x:
        if x.dtype is not how.dtype and shortcut.conv is None:
            return Reason("the shortcut runs as a module, in {} and not in {}", "", x.dtype, how.dtype)
        return chain
    if shortcut.conv is not None and output_shape(x, (shortcut.conv,)) == out:
        return chain if shortcut.module is None else chain._replace(shortcut=shortcut._replace(module=None))
    if shortcut.module is None:
        return Reason("the shortcut has another shape than {}", "", list(out))
    if x.dtype is not how.dtype:
        return Reason("the shortcut runs as a module, in {} and not in {}", "", x.dtype, how.dtype)
    return chain._replace(shortcut=shortcut._replace(conv=None, norm=None))


def _in_dtype(x: Tensor, chain: Chain, how: Setting, trains: bool) -> Chain | Reason:
    """``chain`` with its convolutions in the setting's dtype, or why eager would compute something else."""
    dtype, shortcut = how.dtype, chain.shortcut
    if any(norm is not None and norm.promotes and _promotes(norm, dtype) for norm in chain.all_norms()):
        return Reason("a frozen BatchNorm has parameters of a wider dtype than {}", "", dtype)
    residual = None if shortcut is None else shortcut.residual
    # Under autocast, eager adds in the wider dtype; in training it must also normalise before rounding.
    if residual is not None and residual.dtype is not dtype and (how.autocast or trains):
        return Reason("the residual has dtype {}, and convolutions run in {}", "", residual.dtype, dtype)
    if trains and x.dtype is not dtype and (chain.norms[0] is not None or (shortcut and shortcut.is_identity)):
        return Reason("under autocast eager normalises and adds {} before it rounds to {}", "", x.dtype, dtype)
    convs = []
    for conv in (*chain.convs, *_projection(chain)):
        cast = _cast(conv, dtype, how.autocast, trains)
        if cast is None:
            return Reason("a weight or bias has dtype {}, and convolutions run in {}", "", conv.weight.dtype, dtype)
        convs.append(cast)
    if trains:
        norms = [norm for norm in chain.all_norms() if norm is not None]
        if len(process_groups(norms)) > 1:
            return Reason("its BatchNorms synchronise over different process groups")
        for norm in norms:
            if not _is_supported(dtype, norm):
                return Reason("a BatchNorm has parameters or statistics of an unsupported dtype or with a gradient")
    if all(a is b for a, b in zip(convs, (*chain.convs, *_projection(chain)), strict=True)):
        return chain
    count = len(chain.convs)
    if shortcut is not None and shortcut.conv is not None:
        shortcut = shortcut._replace(conv=convs[count])
    return chain._replace(convs=tuple(convs[:count]), shortcut=shortcut)


def _promotes(norm: Norm, dtype: torch.dtype) -> bool:
    return any(t is not None and torch.promote_types(t.dtype, dtype) is not dtype for t in norm[:4])


def _cast(conv: Conv, dtype: torch.dtype, autocast: bool, trains: bool) -> Conv | None:
    """``conv`` in ``dtype``; None if eager would not cast to it. The inference kernels take a bias of any dtype."""
    weight, bias = conv.weight, conv.bias
    if weight.dtype is dtype and (bias is None or bias.dtype is dtype or not trains):
        return conv
    if not autocast or weight.dtype is torch.float64:
        return None
    bias = bias if bias is None or not trains else bias.to(dtype)
    return conv._replace(weight=weight.to(dtype), bias=bias)


def _is_supported(dtype: torch.dtype, norm: Norm) -> bool:
    """Whether training supports the BatchNorm's tensors: x's dtype or float32, all the same; constant statistics."""
    given = [t for t in norm[:4] if t is not None]
    dtypes = {t.dtype for t in given}
    if len(dtypes) > 1 or not dtypes <= {dtype, *(() if dtype is torch.float64 else (torch.float32,))}:
        return False
    return not any(t is not None and t.requires_grad for t in (norm.mean, norm.var))


class Seen:
    """A block's chain as last read, and what its modules held then."""

    def __init__(self, module: nn.Module, spec: BlockSpec) -> None:
        parts: list[nn.Module] = []
        self.spec = spec
        self.own_shortcut = _own_attribute(module, spec.shortcut)
        self.chain = chain = layers.read(module, spec, parts)
        self.verdict: tuple[Any, Any] = None, None  # shapes and dtypes, and the chain that runs for them or a reason
        self.runs: Any = None  # see :mod:`.runs`
        if isinstance(chain, Reason):
            return
        self.uses_batch_statistics = _uses_batch_statistics(chain)
        self.weights = [conv.weight for conv in (*chain.convs, *_projection(chain))]
        self.tensors = chain.tensors()
        parts = [part for part in parts if part is not module]  # which would keep itself alive
        self.parts, self.kinds, self.types = parts, [*map(type, parts)], [*map(type, self.tensors)]
        self.own_modules = dict(module._modules)
        self.copies = [{name: _copy(name, value) for name, value in vars(part).items()} for part in parts]
        # A derived spec holds while nothing that forward reads has changed: attributes, and the code of the classes.
        self.own: dict[str, Any] | None = None
        self.classes: list[type] = []
        if spec.derived:
            self.own = {name: _own_copy(name, value) for name, value in vars(module).items()}
            self.classes = list(dict.fromkeys(c for p in (module, *parts) for c in layers.own_classes(type(p))))
        self.contents = [dict(vars(kind)) for kind in self.classes]
        self.functions = [
            each for content in self.contents for each in content.values() if isinstance(each, FunctionType)
        ]
        self.code = [*map(_CODE, self.functions)]
        self.globals = layers.globals_of(self.functions)

    def is_current(self, module: nn.Module, spec: BlockSpec) -> bool:
        """Whether the modules hold the same parameters, buffers, modules and settings, and no hooks."""
        if isinstance(self.chain, Reason):
            return False
        if spec != self.spec or _own_attribute(module, spec.shortcut) is not self.own_shortcut:
            return False
        try:
            is_same = module._modules == self.own_modules and [*map(vars, self.parts)] == self.copies
            if self.own is not None:
                is_same = is_same and vars(module) == self.own and [*map(vars, self.classes)] == self.contents
                is_same = is_same and [*map(_CODE, self.functions)] == self.code
                is_same = is_same and all(space.get(name, layers.ABSENT) is v for space, name, v in self.globals)
        except Exception:  # another tensor: the result of its comparison has no truth value
            return False
        return is_same and [*map(type, self.parts)] == self.kinds and [*map(type, self.tensors)] == self.types

    def check(self, x: Tensor, how: Setting, trains: bool) -> Chain | Reason:
        """:func:`_check`, remembered for the last shapes and dtypes."""
        assert isinstance(self.chain, Chain)
        if how.autocast:  # casts weights on every call
            return _check(x, self.chain, how, trains)
        question = [x.shape, x.dtype, how, trains, *map(_SHAPE_AND_DTYPE, self.weights)]
        if trains:
            question += [(t.dtype, t.requires_grad) for t in self.tensors]
        known, checked = self.verdict
        if question != known:
            checked = _check(x, self.chain, how, trains)
            self.verdict = question, checked  # one assignment: other threads may read it
        return checked  # type: ignore[no-any-return]

    def is_reusable(self) -> bool:
        """Whether :meth:`is_current` finds every change, and keeping the tensors until then does no harm."""
        if isinstance(self.chain, Reason) or any(issubclass(kind, nn.SyncBatchNorm) for kind in self.kinds):
            return False  # whether it synchronises may change
        # A tensor of one element compares equal to another. Weights of torch.func.functional_call are temporary.
        is_lasting = all(type(w) is nn.Parameter for w in self.weights) and all(t.grad_fn is None for t in self.tensors)
        return is_lasting and all(t.numel() > 1 for t in self.tensors)


def _copy(name: str, value: Any) -> Any:
    """An attribute of a torch layer as it is compared: what may be edited, by its content; hooks, with none."""
    if name in layers.HOOKS:
        return {}
    if name in ("_parameters", "_buffers", "_modules"):
        return dict(value)
    return _content(value)


class _Anything:
    """Equal to every value."""

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


class _Partial:
    """Equal to a ``functools.partial`` while it holds the same arguments."""

    def __init__(self, value: "functools.partial[Any]") -> None:
        self.value, self.args, self.keywords = value, _content(value.args), _content(value.keywords)

    def __eq__(self, other: object) -> bool:
        return self.value is other and (self.value.args, self.value.keywords) == (self.args, self.keywords)

    __hash__ = None  # type: ignore[assignment]


def _own_copy(name: str, value: Any) -> Any:
    """An attribute of the block itself, whose hooks run when it is called."""
    return _Anything() if name in layers.HOOKS or name in OURS else _copy(name, value)


def _content(value: Any) -> Any:
    """A copy of a list, such as a stride, or of a dictionary; other values as they are."""
    if type(value) in (list, tuple):
        return type(value)(_content(each) for each in value)
    if type(value) is dict:
        return {key: _content(each) for key, each in value.items()}
    if type(value) is functools.partial:
        return _Partial(value)
    return set(value) if type(value) is set else value


def _own_attribute(module: nn.Module, name: Any) -> Any:
    return None if not isinstance(name, str) else module.__dict__.get(name, BlockSpec)  # BlockSpec: there is none


class Memory(dict[str, Seen]):
    """What is known of a module, by part of its spec. It lives in the module's ``__dict__``; copies are empty.

    ``programs``: see :mod:`resnet_fused.modules._replay`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.programs: dict[Any, Any] = {}

    def __reduce__(self) -> Any:
        return Memory, ()


def memory_of(module: nn.Module) -> Memory:
    """The module's :class:`Memory`, added if it has none."""
    memory: Memory | None = module.__dict__.get("_seen")
    if memory is None:
        memory = module.__dict__["_seen"] = Memory()
    return memory


def last_seen(module: nn.Module, spec: layers.Spec) -> Seen | Reason:
    memory = memory_of(module)
    if isinstance(spec, layers.Derived):
        seen = memory.get(spec.part)
        if seen is not None and seen.is_current(module, seen.spec):
            return seen  # type: ignore[no-any-return]
    names = layers.resolve(module, spec)
    if isinstance(names, Reason):
        return names
    seen = memory.get(names.part)
    if seen is None or not seen.is_current(module, names):
        memory.pop(names.part, None)
        seen = Seen(module, names)
        if seen.is_reusable():
            memory[names.part] = seen
    return seen  # type: ignore[no-any-return]


def names(module: nn.Module, spec: layers.Spec) -> BlockSpec | Reason:
    """The names of a block's parts, as of its last call if the spec is derived."""
    seen = module.__dict__.get("_seen", {}).get(spec.part) if isinstance(spec, layers.Derived) else None
    return layers.resolve(module, spec) if seen is None else seen.spec  # type: ignore[no-any-return]


def forget(module: nn.Module) -> None:
    """Drops what is remembered of the block, and thereby references to its tensors."""
    module.__dict__.pop("_seen", None)


def _uses_batch_statistics(chain: Chain) -> bool:
    return any(norm is not None and norm.mean is None for norm in chain.all_norms())
