"""Replays a network's fused blocks as one op, where calling them one by one would make the same calls.

The first call runs block by block and captures the ops (:mod:`resnet_fused.chain.program`). Later calls replay them if
x has the same shape, strides and dtype, and nothing that the blocks look at has changed: the attributes, parameters and
buffers of all modules, hooks, and the methods of their classes. What Python cannot see, such as an edited weight, the
ops notice as always.
"""

import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..chain import layers, program, read
from ..chain.policy import Setting, module_setting
from ..chain.spec import BlockSpec
from ._block import FusedBlock, changed_attribute

Output = tuple[Any, bool]  # a tensor, and whether eager's would be channels_last

_MOST = 8  # kinds of input per module
_CALLS_UNTIL_RETRY = 100  # of an input that could not be captured
_SHAPE_AND_DTYPE = operator.attrgetter("shape", "dtype")


class _Replay(NamedTuple):
    program: program.Program
    guard: "_Guard"
    channels_last: bool


def replayed(module: nn.Module, x: Tensor, methods: tuple[str, ...], run: Callable[[], Output]) -> Output:
    """``run()``, which calls fused blocks of ``module``, or the program that it was at an earlier call.

    ``methods``: those of the module that ``run`` calls; they must be this package's own.
    """
    if not _may_replay(x):
        return run()
    memory = module.__dict__.get("_seen")
    if memory is None:
        memory = module.__dict__["_seen"] = read.Memory()
    programs, key = memory.programs, (x.shape, x.stride(), x.dtype)
    known = programs.get(key, 0)
    if isinstance(known, _Replay):
        if known.guard.holds(module):
            return known.program(x), known.channels_last
        programs.clear()
    elif known:
        programs[key] = known - 1
        return run()
    if any(name in module.__dict__ or not _is_ours(getattr(type(module), name)) for name in methods):
        return run()
    if len(programs) >= _MOST:
        programs.clear()
    with program.capture(x) as capture:
        y, last = run()
    programs[key] = _CALLS_UNTIL_RETRY
    guard = _Guard(module, methods)
    captured = capture.program(y, guard.weights)
    if captured is not None and guard.watch(captured):
        programs[key] = _Replay(captured, guard, last)
    return y, last


def _may_replay(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(x) is not Tensor or x.dim() != 4:
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack() or read.is_recording():
        return False
    how = module_setting(x)
    return isinstance(how, Setting) and how.capabilities.replays and not how.autocast and x.numel() > 0


def _is_ours(function: Any) -> bool:
    # functools.wraps copies __module__ but not __globals__
    return isinstance(function, FunctionType) and function.__globals__["__name__"].startswith("resnet_fused.")


class _Guard:
    """What the blocks of a module looked at in a call: whatever else they would look at is the same while it is."""

    def __init__(self, module: nn.Module, methods: tuple[str, ...]) -> None:
        # A module with hooks is outside of what was captured: fused blocks and stages have none, nor do their layers.
        self.modules = [each for each in module.modules() if each is not module and not layers.has_hooks(each)]
        self.types = [*map(type, self.modules)]
        self.own = {name: read.own_copy(name, value) for name, value in vars(module).items()}
        self.copies = [read.copy_of_attributes(each) for each in self.modules]
        blocks = [each for each in self.modules if isinstance(each, FusedBlock)]
        self.classes: list[Any] = list(dict.fromkeys(map(type, blocks)))
        kinds: list[Any] = [type(module), *self.classes]
        self.functions = [(type(module), name, getattr(type(module), name)) for name in methods]
        self.functions += [(kind, name, getattr(kind, name)) for kind in kinds for name in ("forward", "__call__")]
        for kind in kinds:
            self.functions += [(kind._eager_class, *item) for item in getattr(kind, "_eager_methods", {}).items()]
        self.weights = {
            id(t) for each in (module, *self.modules) for t in (*each._parameters.values(), *each._buffers.values())
        }
        self.tensors: list[Tensor] = []

    def watch(self, captured: program.Program) -> bool:
        """Also watches the tensors of a program; False if some change of what it depends on would not be found."""
        self.tensors = tensors = captured.tensors
        self.tensor_types, self.shapes = [*map(type, tensors)], [*map(_SHAPE_AND_DTYPE, tensors)]
        if any(issubclass(kind, nn.SyncBatchNorm) for kind in self.types):
            return False  # whether it synchronises may change
        specs = (kind._spec for kind in self.classes)
        if not all(isinstance(spec, BlockSpec) or _is_ours(spec) for spec in specs):
            return False  # it depends on a user's code
        # A tensor of one element compares equal to another. Weights of torch.func.functional_call are temporary.
        return all(t.numel() > 1 and t.grad_fn is None for t in tensors)

    def holds(self, module: nn.Module) -> bool:
        """Whether nothing has changed."""
        try:
            if vars(module) != self.own or [*map(vars, self.modules)] != self.copies:
                return False
        except Exception:  # another tensor: the result of its comparison has no truth value
            return False
        if [*map(type, self.modules)] != self.types or [*map(type, self.tensors)] != self.tensor_types:
            return False
        if [*map(_SHAPE_AND_DTYPE, self.tensors)] != self.shapes:
            return False
        if any(getattr(owner, name) is not function for owner, name, function in self.functions):
            return False
        return not any(map(changed_attribute, self.classes))
