"""Matches the shortcut of a block: a projection, or any function of the block's input."""

import functools
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..chain.layers import is_library_code
from ..chain.spec import Branch, Reason
from .nodes import CONV, NORM, Steps, inputs
from .trace import Trace, call_attribute

#: What a shortcut may call: functions whose result does not depend on the memory format of their input.
_FUNCTIONS = {
    F.pad,
    F.avg_pool2d,
    F.max_pool2d,
    F.adaptive_avg_pool2d,
    F.interpolate,
    F.conv2d,
    F.relu,
    torch.relu,
    torch.as_tensor,
    torch.cat,
    torch.zeros_like,
    torch.add,
    torch.mul,
    operator.add,
    operator.mul,
    operator.sub,
    operator.truediv,
    operator.getitem,
    call_attribute,
}
_METHODS = {"add", "mul", "sub", "relu"}


class Sides:
    """Shortcuts of a block with the input ``x`` and the first activation ``act0`` (x without pre-activation)."""

    def __init__(self, trace: Trace, steps: Steps, x: fx.Node, act0: fx.Node) -> None:
        self.trace, self.steps, self.x, self.act0 = trace, steps, x, act0

    def branch(self, side: fx.Node, argument: str) -> Branch | Reason:
        """The shortcut whose value is that of ``side``, which has to be ``argument`` if that is given."""
        if argument:
            is_argument = side.op == "placeholder" and side.target == argument
            return Branch(function=_itself) if is_argument else Reason("{} is not its shortcut", "", argument)
        end, norm = side, None
        if self.steps[end].kind == NORM and not self.steps[end].relu:
            norm, end = self.steps[end].path, self._before(end)
        if self.steps[end].kind == CONV:
            source = self._before(end)
            read = Branch() if source is self.act0 else self._function(source)
            if isinstance(read, Reason) or self._is_shared(side, end):
                return read if isinstance(read, Reason) else Reason("its shortcut's tensors have several readers")
            return read._replace(conv=self.steps[end].path, norm=norm)
        return self._function(side)

    def _before(self, node: fx.Node) -> fx.Node:
        return self.steps.source(next(inputs(node)))

    def _is_shared(self, side: fx.Node, end: fx.Node) -> bool:
        return side is not end and len(self.steps.readers(end)) > 1

    def _function(self, end: fx.Node) -> Branch | Reason:
        """The nodes up to ``end`` as a function of x or ``act[0]``."""
        pre = self.act0 is not self.x
        if end is self.x:
            return Branch(reads_x=pre)
        if end is self.act0:
            return Branch(function=_itself)
        nodes, roots, waiting = set(), set(), [end]
        while waiting:
            node = waiting.pop()
            if self.steps.source(node) in (self.x, self.act0):
                roots.add(self.steps.source(node))
            elif node not in nodes:
                nodes.add(node)
                waiting += inputs(node)
        for node in nodes:
            reason = self._refusal(node)
            if reason is not None:
                return reason
        if len(roots) != 1:
            return Reason("its shortcut reads {} tensors", "", len(roots))
        root = roots.pop()
        calls_user_code = any(node.target is call_attribute for node in nodes)
        if calls_user_code and root is not self.x:
            return Reason("its shortcut calls a function that is an attribute with relu(bn(x))")
        return Branch(
            function=self._compile(end, nodes, root), reads_x=pre and root is self.x, calls_user_code=calls_user_code
        )

    def _refusal(self, node: fx.Node) -> Reason | None:
        if node.op == "get_attr":
            return None
        if node.op == "call_module":
            module = self.trace.modules[str(node.target)]
            return None if is_library_code(type(module)) else Reason("its shortcut calls {name}", str(node.target))
        allowed = _FUNCTIONS if node.op == "call_function" else _METHODS
        if node.target in allowed:
            return None
        return Reason("its shortcut calls {}", "", getattr(node.target, "__name__", str(node.target)))

    def _compile(self, end: fx.Node, nodes: set[fx.Node], root: fx.Node) -> Any:
        """A function of the block and the root's value. It finds modules by their paths on each call."""
        graph = fx.Graph()
        values = {root: graph.placeholder("x")}
        for node in self.trace.graph.nodes:
            source = self.steps.source(node)
            if source is root:
                values[node] = values[root]
            elif node in nodes:
                values[node] = graph.node_copy(node, lambda old: values[old])
        graph.output(values[end])
        return compiled(graph)


def compiled(graph: fx.Graph) -> Any:
    """The function of a graph, whose first argument is the module."""
    code = graph.python_code("self")
    return _function(code.src, tuple(sorted((name, _Unhashed(value)) for name, value in code.globals.items())))


class _Unhashed:
    """A value that is a key of a cache by its identity."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Unhashed) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __lt__(self, other: object) -> bool:
        return False


@functools.lru_cache(maxsize=1024)
def _function(source: str, names: tuple[tuple[str, _Unhashed], ...]) -> Any:
    """The function of fx's source code. Equal code is one function, so that specs can be compared."""
    space = {name: each.value for name, each in names}
    exec(compile(source, "<shortcut of a fused block>", "exec"), space)
    return space["forward"]


def _itself(block: nn.Module, x: Tensor) -> Tensor:
    return x
