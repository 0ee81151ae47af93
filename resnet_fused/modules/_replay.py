"""Replays a network's fused blocks as one op, where calling them one by one would make the same calls.

The first call runs block by block and captures the ops (:mod:`resnet_fused.chain.program`). Later calls replay them if
x has the same shape, strides and dtype, and nothing that the blocks look at has changed: the attributes, parameters and
buffers of all modules, hooks, and the methods of their classes. What Python cannot see, such as an edited weight, the
ops notice as always.
"""

from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from .._library import unchanged
from ..chain import layers, program, read
from ..chain.patches import head_is_patched
from ..chain.policy import Setting, module_setting
from ..chain.spec import BlockSpec
from ._block import FusedBlock, changed_attribute

Output = tuple[Any, bool]  # a tensor, and whether eager's would be channels_last

_MOST = 16  # parts and kinds of input per module
_SETTINGS = ("eager_memory_format",)  # of a network, which its class may have
_CALLS_UNTIL_RETRY = 100  # of an input that could not be captured
# Dictionaries of every module that matter only if one of layers.HOOKS is not empty, or not to a call.
_WITHOUT_EFFECT = {name for name in vars(nn.Module()) if name.endswith(("_hooks", "_with_kwargs", "_always_called"))}
_WITHOUT_EFFECT -= {*layers.HOOKS}


class _Replay:
    def __init__(self, captured: program.Program, guard: "_Guard", channels_last: bool) -> None:
        self.program, self.guard, self.channels_last = captured, guard, channels_last
        self.was_used = False


def replayed(module: nn.Module, x: Tensor, part: str, methods: tuple[str, ...], run: Callable[[], Output]) -> Output:
    """``run()``, which calls fused blocks of ``module``, or the program that it was at an earlier call.

    ``part``: which part of the module it runs. ``methods``: those of the module that it calls; they must be this
    package's own.
    """
    if not _may_replay(x):
        return run()
    programs, key = read.memory_of(module).programs, (part, x.shape, x.stride(), x.dtype)
    known = programs.get(key, 0)
    if known and program.is_capturing():
        return run()  # the network's capture needs every call
    if isinstance(known, _Replay):
        if known.guard.holds(module):
            y = known.program(x)
            if y is not None:
                known.was_used = True
                return y, known.channels_last
        programs.clear()
        if not known.was_used:  # something changes in every call
            programs[key] = known = _CALLS_UNTIL_RETRY
    if isinstance(known, int) and known > 0:
        programs[key] = known - 1
        return run()
    if any(name in module.__dict__ or not _is_ours(getattr(type(module), name)) for name in methods):
        return run()
    replays = [each for each in list(programs.values()) if isinstance(each, _Replay)]
    if not all(each.guard.holds(module) for each in replays):
        programs.clear()  # outdated ones would keep weights alive
    elif len(programs) >= _MOST:
        programs.pop(next(iter(programs)), None)  # the oldest
    guard = _Guard(module, methods)
    with program.capture(x) as capture:
        y, last = run()
    programs[key] = _CALLS_UNTIL_RETRY
    captured = capture.program(y, guard.weights)
    if captured is not None and guard.covers(captured) and guard.holds(module):  # other threads may have changed it
        programs[key] = _Replay(captured, guard, last)
        ops.release_pool()  # replays keep intermediate results in an arena, not in the blocks that this call used
    return y, last


def _may_replay(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor or x.dim() != 4:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if read.is_recording():
        return False
    how = module_setting(x)
    if not isinstance(how, Setting) or not how.capabilities.replays or how.autocast:
        return False
    return x.numel() > 0 and not program.ops_are_patched() and not head_is_patched()


def _is_ours(function: Any) -> bool:
    # functools.wraps copies __module__ but not __globals__
    return isinstance(function, FunctionType) and function.__globals__["__name__"].startswith("resnet_fused.")


class _Guard:
    """What the blocks of a module look at in a call: whatever else they would look at is the same while it is."""

    def __init__(self, module: nn.Module, methods: tuple[str, ...]) -> None:
        for each in module.modules():
            if isinstance(each, FusedBlock):
                read.memory_of(each)  # not an attribute that the call adds
        # A module with hooks is outside of what was captured: fused blocks and stages have none, nor do their layers.
        parts = [each for each in module.modules() if each is not module and not layers.has_hooks(each)]
        self.parts = tuple(parts)
        self.types = (type(module), *map(type, parts))
        self.attributes = (_attributes(module, layers.HOOKS), *(_attributes(each) for each in parts))
        blocks = [each for each in parts if isinstance(each, FusedBlock)]
        self.has_hidden_modules = any(isinstance(value, nn.Module) for each in blocks for value in vars(each).values())
        self.classes: list[Any] = list(dict.fromkeys(map(type, blocks)))
        kinds: list[Any] = [type(module), *self.classes]
        self.functions = [(type(module), name, getattr(type(module), name)) for name in methods]
        self.functions += [(kind, name, getattr(kind, name)) for kind in kinds for name in ("forward", "__call__")]
        self.functions += [(type(module), name, getattr(type(module), name, None)) for name in _SETTINGS]
        for kind in kinds:
            self.functions += [(kind._eager_class, *item) for item in getattr(kind, "_eager_methods", {}).items()]
        held = [each for part in (module, *parts) for each in (part._parameters, part._buffers)]
        self.weights = {id(tensor) for each in held for tensor in each.values()}

    def covers(self, captured: program.Program) -> bool:
        """Whether every change of what the program depends on would be found, by this or by the op."""
        if any(issubclass(kind, nn.SyncBatchNorm) for kind in self.types):
            return False  # whether it synchronises may change
        specs = (kind._spec for kind in self.classes)
        if not all(isinstance(spec, BlockSpec) or _is_ours(spec) for spec in specs):
            return False  # it depends on a user's code
        if self.has_hidden_modules:
            return False  # whose hooks and attributes this does not compare
        # The weights of torch.func.functional_call are temporary.
        if any(type(t) is not nn.Parameter for t in captured.tensors if t.dim() == 4):
            return False
        return all(type(t) in (Tensor, nn.Parameter) and t.grad_fn is None for t in captured.tensors)

    def holds(self, module: nn.Module) -> bool:
        """Whether nothing has changed."""
        if not unchanged((module, *self.parts), self.types, self.attributes):
            return False
        if any(getattr(owner, name, None) is not function for owner, name, function in self.functions):
            return False
        return not any(map(changed_attribute, self.classes))


def _attributes(module: nn.Module, ignored: Iterable[str] = ()) -> tuple[Any, ...]:
    """The attributes of a module as ``unchanged`` expects them: names, values, and what dictionaries and lists hold."""
    expected: list[Any] = []
    for name, value in vars(module).items():
        if name in ignored or name in read.OURS:
            contents: Any = False
        elif isinstance(value, dict) and name not in _WITHOUT_EFFECT:
            contents = tuple(each for item in value.items() for each in item)
        else:
            contents = tuple(value) if isinstance(value, list) else None
        expected += [name, None if contents is False else value, contents]
    return tuple(expected)
