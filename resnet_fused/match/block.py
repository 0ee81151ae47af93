"""Matches the dataflow of a trace against a chain with a shortcut, and names its parts in a :class:`BlockSpec`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx, nn

from ..chain.spec import BlockSpec, Reason, class_name
from . import shortcut
from .nodes import ADD, CONV, INPUT, NORM, RELU, SAME, Step, Steps, changes_input, inputs
from .trace import Trace, call_attribute

#: What may be computed without use: shapes.
_CHECKS, _CHECK_METHODS = ("getattr", "getitem"), ("size", "dim")


class Mismatch(NamedTuple):
    """Why a block is no chain. ``residual``: whether it nevertheless adds a shortcut to convolutions of its input."""

    reason: Reason
    residual: bool = False


class _Refused(Exception):
    def __init__(self, text: str, name: str = "", *values: Any, residual: bool = True) -> None:
        super().__init__(text)
        self.mismatch = Mismatch(Reason(text, name, *values), residual)


def match(trace: Trace, argument: str = "") -> BlockSpec | Mismatch:
    """The spec of the block; the mismatch if the block is no chain with a shortcut.

    ``argument``: the argument of ``forward`` that has to be the shortcut.
    """
    try:
        return _Matcher(trace, argument).match()
    except _Refused as refused:
        return refused.mismatch


class _Path(NamedTuple):
    """The steps of a chain in the order of their calls, each with its node, and the node that the first one reads."""

    start: fx.Node
    steps: list[tuple[Step, fx.Node]]

    def convs(self) -> list[str]:
        return [step.path for step, _ in self.steps if step.kind == CONV]


class _Matcher:
    def __init__(self, trace: Trace, argument: str) -> None:
        self.trace, self.steps, self.argument = trace, Steps(trace), argument
        self.order = {node: i for i, node in enumerate(trace.graph.nodes)}
        self.output = next(node for node in trace.graph.nodes if node.op == "output")

    def match(self) -> BlockSpec:
        found = self.output.args[0]
        if not isinstance(found, fx.Node):
            raise _Refused("its output is not one tensor", residual=False)
        end, relu = self.steps.source(found), False
        self.live = live = self._above(self.output)
        used = sorted((node for node in live if node.op == "placeholder"), key=self.order.__getitem__)
        if len(used) != (2 if self.argument else 1):
            raise _Refused("it reads {} inputs", "", len(used), residual=False)
        self.x = used[0]
        if self.steps[end].kind == RELU:
            end, relu = self._only_input(end), True
        if self.steps[end].kind != ADD:
            self._require_no_inner_addition(end, live)
        main, side = self._main_and_shortcut(end)
        self._check_dead(live)
        self._check_in_place()
        convs, norms, act0 = self._chain(main, side)
        found = shortcut.Sides(self.trace, self.steps, self.x, act0).branch(side, self.argument)
        if isinstance(found, Reason):
            raise _Refused(found.text, found.name, *found.values)
        function = set() if found.function is None else self._modules_above(side)
        own_norms = norms if norms[0] is None or found.reads_x else norms[1:]  # the function reads relu(norms[0](x))
        main_path = map(id, map(self.trace.modules.get, (*convs, *filter(None, own_norms))))
        if function.intersection(main_path):
            raise _Refused("a module is both on its main path and in its shortcut")
        leads = self.steps.source(end.args[0]) is side  # type: ignore[arg-type]
        in_place = changes_input(end, self.trace.modules) and not leads
        return BlockSpec(convs, norms, (), found._replace(leads=leads, in_place=in_place), relu, derived=True)

    def _only_input(self, node: fx.Node) -> fx.Node:
        return self.steps.source(next(inputs(node)))

    def _require_no_inner_addition(self, end: fx.Node, live: set[fx.Node]) -> None:
        """Raises: the block does not end with an addition."""
        step = self.steps[end]
        sums = [node for node in live if self.steps[node].kind == ADD and self._is_residual(node)]
        if len(sums) == 1 and self._is_elementwise_after(sums[0], end):
            raise _Refused("{} follows the addition; only a ReLU is supported", "", self._text(step, end))
        raise _Refused("it does not end with the addition of a shortcut", residual=False)

    def _is_elementwise_after(self, addition: fx.Node, end: fx.Node) -> bool:
        node = end
        while node is not addition:
            before = list(inputs(node))
            if len(before) != 1 or self.steps[node].kind == CONV:
                return False
            node = self.steps.source(before[0])
        return True

    def _is_residual(self, node: fx.Node) -> bool:
        """Whether an addition sums two tensors that depend on x, at least one through a convolution."""
        terms = [each for each in node.args if isinstance(each, fx.Node)]
        if len(terms) != 2:
            return False
        above = [self._above(each) for each in terms]
        has_x = all(any(each.op == "placeholder" for each in nodes) for nodes in above)
        return has_x and any(self._count_convs(nodes) for nodes in above)

    def _above(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that a node depends on, and the node itself."""
        found, waiting = set(), [node]
        while waiting:
            each = waiting.pop()
            if each not in found:
                found.add(each)
                waiting += inputs(each)
        return found

    def _modules_above(self, node: fx.Node) -> set[int]:
        called = (each for each in self._above(node) if each.op == "call_module")
        return {id(self.trace.modules[str(each.target)]) for each in called}

    def _count_convs(self, nodes: set[fx.Node]) -> int:
        return sum(self.steps[node].kind == CONV for node in nodes)

    def _main_and_shortcut(self, addition: fx.Node) -> tuple[_Path, fx.Node]:
        """The operand with more convolutions as a chain from x, and the other one."""
        if not self._is_residual(addition):
            raise _Refused("it does not add a shortcut", residual=False)
        terms = [self.steps.source(each) for each in addition.args if isinstance(each, fx.Node)]
        paths = [self._path(each) for each in terms]
        counts = [
            (self._count_convs(self._above(end)), path.start is self.x) for end, path in zip(terms, paths, strict=True)
        ]
        which = counts.index(max(counts))
        main, side = paths[which], terms[1 - which]
        if main.start is not self.x:
            self._explain(main)
        is_in_place = changes_input(addition, self.trace.modules) and terms[0] is side
        if is_in_place and self.steps[side].kind not in (CONV, NORM):
            raise _Refused("it adds to its shortcut in place")
        return main, side

    def _path(self, end: fx.Node) -> _Path:
        """The steps before ``end``, as far as they are a chain."""
        steps: list[tuple[Step, fx.Node]] = []
        node = end
        while self.steps[node].kind in (CONV, NORM, RELU):
            step = self.steps[node]
            if step.kind == NORM and step.relu:
                steps.append((Step(RELU), node))
            steps.append((step, node))
            node = self._only_input(node)
        return _Path(node, steps[::-1])

    def _explain(self, main: _Path) -> None:
        """Raises: why the main path is no chain from x."""
        text = self._text(self.steps[main.start], main.start)
        if not main.convs():
            raise _Refused("{} comes right before the addition", "", text)
        raise _Refused("{} comes before {name}", main.convs()[0], text)

    def _text(self, step: Step, node: fx.Node) -> str:
        """A node in words: the module of a library that it belongs to, or the function."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        custom = next(((path, kind) for path, kind in stack if path and _is_named(kind)), None)
        if custom is not None:
            return f"{custom[0]} ({class_name(custom[1])})"
        if step.kind == ADD:
            return "another addition"
        if step.kind == INPUT:
            return "its input"
        if step.path:
            return f"{step.path} ({step.text})" if step.text else step.path  # a convolution or norm has no text
        return step.text or str(node.target)

    def _chain(self, main: _Path, side: fx.Node) -> tuple[tuple[str, ...], tuple[str | None, ...], fx.Node]:
        """Names of convolutions and norms, and the node of ``act[0]``."""
        convs: list[str] = []
        norms: list[str | None] = []
        act0, steps = self.x, list(main.steps)
        while steps:
            norm = None
            if steps[0][0].kind == NORM and len(steps) > 1:
                norm, activation = steps.pop(0)[0].path, steps.pop(0)
                if activation[0].kind != RELU:
                    raise _Refused("no ReLU follows {name}", norm)
                if not convs:
                    act0 = activation[1]
            if steps and steps[0][0].kind == NORM and not convs and norm is None:
                raise _Refused("it begins with {name}", steps[0][0].path)
            if not steps or steps[0][0].kind != CONV:
                self._misplaced(steps, norm)
            norms.append(norm)
            convs.append(steps.pop(0)[0].path)
            if len(steps) == 1 and steps[0][0].kind == NORM:
                norms.append(steps.pop(0)[0].path)
        if len(norms) == len(convs):
            norms.append(None)
        self._check_readers(main, act0, side)
        if len({*convs}) < len(convs):
            raise _Refused("it calls {name} twice", next(name for name in convs if convs.count(name) > 1))
        return tuple(convs), tuple(norms), act0

    def _misplaced(self, steps: Sequence[tuple[Step, fx.Node]], norm: str | None) -> None:
        if not steps:
            raise _Refused("a ReLU comes right before the addition")
        step = steps[0][0]
        if step.kind == RELU:
            raise _Refused("a ReLU follows no BatchNorm")
        raise _Refused("two BatchNorms follow each other: {name}", norm or step.path)

    def _check_readers(self, main: _Path, act0: fx.Node, side: fx.Node) -> None:
        """The main path's tensors, except x and ``act[0]``, have one reader each."""
        nodes = list(dict.fromkeys(node for _, node in main.steps))
        for node in nodes:
            readers = [each for each in self.steps.readers(node) if each in self.live]
            if node is not act0 and len(readers) > 1:
                raise _Refused("the output of {} has several readers", "", self._text(self.steps[node], node))

    def _check_dead(self, live: set[fx.Node]) -> None:
        for node in self.trace.graph.nodes:
            if node not in live and node.op not in ("placeholder", "get_attr") and not is_check(node):
                raise _Refused("it computes {} without using it", "", self._text(self.steps[node], node))

    def _check_in_place(self) -> None:
        """No tensor is read after it was modified in place, except through the result; x is never modified."""
        modules = self.trace.modules
        alias: dict[fx.Node, fx.Node] = {}
        members: dict[fx.Node, list[fx.Node]] = {}
        for node in self.trace.graph.nodes:
            before = list(inputs(node))
            if not before:
                alias[node] = node
                members[node] = [node]
                continue
            first = alias.get(before[0], before[0])
            in_place = changes_input(node, modules)
            if in_place:
                if first.op in ("placeholder", "get_attr"):
                    raise _Refused("it modifies its input in place", residual=True)
                late = (
                    user
                    for member in members.get(first, [])
                    for user in member.users
                    if user is not node and self.order[user] > self.order[node]
                )
                if next(late, None) is not None:
                    raise _Refused("it reads a tensor that was modified in place before")
            shares = in_place or self.steps[node].kind == SAME or _may_view(node, modules)
            alias[node] = first if shares else node
            members.setdefault(alias[node], []).append(node)


def is_check(node: fx.Node) -> bool:
    """Whether a node that does not contribute to the output has no effect either."""
    if node.op == "call_function":
        return getattr(node.target, "__name__", "") in _CHECKS
    return node.op == "call_method" and node.target in _CHECK_METHODS


def _may_view(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the result may share memory with the first input."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], nn.Flatten | nn.Unflatten)
    name = getattr(node.target, "__name__", str(node.target))
    if node.target is call_attribute:
        return True
    return any(
        word in name for word in ("view", "reshape", "getitem", "narrow", "chunk", "split", "permute", "flatten")
    )


def _is_named(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, nn.Module) and not kind.__module__.startswith("torch.nn")
