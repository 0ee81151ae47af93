"""Finds convolutions that are followed by a BatchNorm, and perhaps a ReLU, in a trace, and rewrites it to call them."""

from typing import Any

from torch import Tensor, fx, nn

from ..chain.runs import Rewrite
from ..chain.spec import BlockSpec, Reason
from .block import is_check
from .nodes import CONV, NORM, RELU, Steps, inputs
from .shortcut import compiled
from .structure import unseen
from .trace import call_attribute, copy_of, trace


def rewrite_of(module: Any) -> Rewrite | Reason:
    """The rewritten ``forward`` of a converted module as it is now, or why there is none."""
    return rewrite(copy_of(module, module._eager_class))


def rewrite(root: nn.Module) -> Rewrite | Reason:
    """The ``forward`` of ``root``, a :func:`copy_of` a module, with its runs as calls; or why it stays as it is."""
    reason = unseen(root, type(root), compared=False)
    traced = trace(root) if reason is None else reason
    if isinstance(traced, Reason):
        return traced
    steps = Steps(traced)
    used = [node for node in traced.graph.nodes if node.op == "placeholder" and node.users]
    dead = [
        node for node in traced.graph.nodes if not node.users and node.op not in ("placeholder", "output", "get_attr")
    ]
    unused = next((node for node in dead if not is_check(node)), None)
    if len(used) != 1 or unused is not None:
        return (
            Reason("it reads {} inputs", "", len(used))
            if unused is None
            else Reason("it computes {} without use", "", unused)
        )
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    calls = [order[node] for node in order if node.target is call_attribute]
    runs = {
        node: found
        for node in traced.graph.nodes
        if (found := _run(node, steps)) is not None
        and not any(order[node] < call < order[found[1]] for call in calls)  # it may change the BatchNorm
    }
    if not runs:
        return Reason("no BatchNorm follows a convolution")
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    run = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            if node in used:
                values[node] = graph.placeholder("x")
                run = graph.get_attr("rf_run")
        elif node in runs:  # called where the convolution is: its input may be modified later
            _, last = runs[node]
            source = values[next(iter(inputs(node)))]
            values[last] = graph.call_function(_call, (run, list(runs).index(node), source))
        elif node not in values and all(each in values for each in inputs(node)) and not _is_dead_check(node):
            values[node] = graph.node_copy(node, lambda old: values[old])
    return Rewrite(compiled(graph), tuple(spec for spec, _ in runs.values()))


def _is_dead_check(node: fx.Node) -> bool:
    return not node.users and node.op != "output" and is_check(node)


def _call(run: Any, index: int, x: Tensor) -> Tensor:
    return run(index, x)  # type: ignore[no-any-return]


def _run(conv: fx.Node, steps: Steps) -> tuple[BlockSpec, fx.Node] | None:
    """The run that begins with a convolution, and its last node."""
    if steps[conv].kind != CONV or conv.op != "call_module":
        return None
    module: Any = steps.modules[steps[conv].path]
    if module.groups != 1:  # CUDA has no kernel for groups, and depthwise ones gain nothing on the CPU
        return None
    readers = steps.readers(conv)
    if len(readers) != 1 or len(conv.users) != 1 or steps[readers[0]].kind != NORM:
        return None
    last, relu = readers[0], steps[readers[0]].relu
    after = steps.readers(last)
    if not relu and len(after) == 1 and len(last.users) == 1 and steps[after[0]].kind == RELU:
        last, relu = after[0], True
    return BlockSpec((steps[conv].path,), (None, steps[readers[0]].path), (), relu=relu, derived=True), last
