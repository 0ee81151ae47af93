"""Programs: the op calls of a network's blocks, captured once and replayed as one op, as CUDA graphs are.

Between two kernels Python and the dispatcher take 20 to 100 microseconds at batch 1; ``run_program``
(csrc/cpu/program.h) takes about ten. A program holds the arguments of calls and makes the same calls again. Whether
it may be replayed is decided in :mod:`resnet_fused.modules._replay`.
"""

import contextlib
import functools
import struct
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from . import memory_format

_CHANNELS_LAST = "channels_last"  # a copy, which is no op of ours
#: The ops that a program may call, and their numbers in its code.
_NUMBERS = {getattr(ops, name, name): number for number, name in enumerate(ops.program_ops().split(", "))}
_CALLED = [(name, getattr(ops, name)) for name in ops.program_ops().split(", ") if name != _CHANNELS_LAST]
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # kDtypes in csrc/cpu/program.cpp


def ops_are_patched() -> bool:
    """Whether a function of :mod:`resnet_fused.ops` was replaced, which a program would not call."""
    return any(getattr(ops, name) is not op for name, op in _CALLED)


@functools.cache
def _kinds(op: Any) -> tuple[str, ...]:
    return ("Tensor",) if op == _CHANNELS_LAST else tuple(str(arg.type) for arg in op._schema.arguments)


class Program:
    """Calls in the format of csrc/cpu/program.h, and the parameters and buffers that they read."""

    def __init__(self, calls: list[int], tensors: list[Tensor]) -> None:
        shapes = [number for t in tensors for number in (_DTYPES.index(t.dtype), t.dim(), *t.shape, *t.stride())]
        self.code, self.tensors = torch.tensor(shapes + calls, dtype=torch.int64), tensors

    def __call__(self, x: Tensor) -> Tensor | None:
        """The result for an ``x`` of the shape, strides and dtype of the one that was captured.

        None if a parameter or buffer has another shape, other strides or another dtype than it had.
        """
        return ops.run_program(x, self.tensors, self.code)


class Capture:
    """The calls made since :func:`capture`, from x to the last result."""

    def __init__(self, x: Tensor) -> None:
        # By id. Values are x and results, which are forgotten as they are freed; the other tensors were given.
        self._x, self._values = x, {id(x): 0}
        self._results: list[weakref.ref[Tensor]] = []
        self._given, self._tensors = dict[int, int](), list[Tensor]()
        self._calls: list[tuple[list[int], set[int]]] = []  # a call's code, and the values that it reads
        self._is_complete = True

    def abandon(self) -> None:
        """Called where code runs that a program would leave out."""
        self._is_complete = False

    def note(self, op: Any, args: tuple[Any, ...], result: Tensor) -> None:
        """Appends a call."""
        number = _NUMBERS.get(op)
        if number is None:
            return self.abandon()
        code, reads = [number], set()
        for kind, arg in zip(_kinds(op), args, strict=True):
            if isinstance(arg, Tensor):
                value = self._values.get(id(arg))
                if value is None:
                    code.append(2 * self._number_of(arg) + 1)
                else:
                    reads.add(value)
                    code.append(2 * value)
            elif arg is None:
                code.append(-1)
            elif kind == "float":
                code += struct.unpack("q", struct.pack("d", arg))
            elif kind == "List[int]":
                code += [len(arg), *map(int, arg)]
            else:
                code.append(int(arg))
        self._calls.append((code, reads))
        self._values[id(result)] = len(self._calls)
        forget = functools.partial(self._values.pop, id(result), None)
        self._results.append(weakref.ref(result, lambda _: forget()))

    def _number_of(self, given: Tensor) -> int:
        if id(given) not in self._given:
            self._given[id(given)] = len(self._tensors)
            self._tensors.append(given)
        return self._given[id(given)]

    def program(self, result: Any, weights: set[int]) -> Program | None:
        """The calls that computed ``result``; None if they read a tensor besides x and those of the ids ``weights``."""
        if not self._calls or not self._is_complete or self._values.get(id(result)) != len(self._calls):
            return None
        if not weights.issuperset(self._given) or not {t.dtype for t in self._tensors}.issubset(_DTYPES):
            return None
        return Program(self._code(), self._tensors)

    def _code(self) -> list[int]:
        last_use = {value: i for i, (_, reads) in enumerate(self._calls) for value in reads}
        code: list[int] = []
        for i, (call, _) in enumerate(self._calls):
            ended = [value for value, last in last_use.items() if last == i and value]  # the caller holds x
            code += [*call, len(ended), *ended]
        return code


class _Current(threading.local):
    def __init__(self) -> None:
        self.captures: list[Capture] = []  # a network's, and those of its parts


_current = _Current()


@contextlib.contextmanager
def capture(x: Tensor) -> Iterator[Capture]:
    """Captures the calls of this thread. ``x``: their input."""
    made = Capture(x)
    _current.captures.append(made)
    try:
        yield made
    finally:
        _current.captures.remove(made)


def is_capturing() -> bool:
    """Whether this thread captures."""
    return bool(_current.captures)


def abandon() -> None:
    """Ends all captures without a program: something other than an op runs."""
    if not torch.compiler.is_compiling():
        for each in _current.captures:
            each.abandon()


def _note(op: Any, args: tuple[Any, ...], result: Tensor) -> None:
    if not torch.compiler.is_compiling():
        for each in _current.captures:
            each.note(op, args, result)


def call(op: Any, *args: Any) -> Tensor:
    """``op(*args)``, captured if a capture is active."""
    y: Tensor = op(*args)
    _note(op, args, y)
    return y


def nhwc(x: Tensor) -> Tensor:
    """:func:`.memory_format.nhwc`, captured like :func:`call`."""
    y = memory_format.nhwc(x)
    if y is not x:
        _note(_CHANNELS_LAST, (x,), y)
    return y
