"""What a node of a trace computes: a step of a chain, or something else."""

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from ..chain import norms
from ..chain.spec import class_name
from .trace import IN_PLACE, Trace

INPUT, CONV, NORM, RELU, ADD, SAME, OTHER = "input", "conv", "norm", "relu", "add", "same", "other"

_RELU = (F.relu, torch.relu, F.relu_, torch.relu_)
_ADD = (operator.add, operator.iadd, torch.add)
_DROPS_WITH_P = {F.dropout: 0.5, F.dropout2d: 0.5, F.alpha_dropout: 0.5}
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_SAME_METHODS = ("clone",)


class Step(NamedTuple):
    """What a node computes. ``path``: of its convolution or norm; ``relu``: whether a norm applies a ReLU as well."""

    kind: str
    path: str = ""
    relu: bool = False
    text: str = ""  # of something else


class Steps:
    """The steps of a trace's nodes."""

    def __init__(self, trace: Trace) -> None:
        self.trace, self.modules = trace, trace.modules
        self._known: dict[fx.Node, Step] = {}

    def __getitem__(self, node: fx.Node) -> Step:
        if node not in self._known:
            self._known[node] = self._step(node)
        return self._known[node]

    def source(self, node: fx.Node) -> fx.Node:
        """The node whose value this node has, behind ``nn.Identity``, unused dropout and the like."""
        while self[node].kind == SAME:
            node = next(iter(inputs(node)))
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that read this node's value and contribute to the output, apart from those of the same value."""
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if user.op != "output" and self[user].kind == SAME else [user]
        return found

    def _step(self, node: fx.Node) -> Step:
        if node.op == "placeholder":
            return Step(INPUT)
        if node.op == "call_module":
            return self._module(node, self.modules[str(node.target)])
        if node.op == "call_function":
            return self._function(node)
        if node.op == "call_method":
            return self._method(node)
        return Step(OTHER, text=str(node.target))

    def _module(self, node: fx.Node, module: nn.Module) -> Step:
        path, kind = str(node.target), type(module)
        if len(node.args) != 1 or node.kwargs:
            return Step(OTHER, path, text=class_name(kind))
        if norms.is_norm(module):
            return self._norm(path, module)
        if kind is nn.Conv2d:
            return Step(CONV, path)
        if kind is nn.ReLU:
            return Step(RELU, path)
        if kind is nn.Identity or (isinstance(module, _DROPOUT) and (module.p == 0 or not module.training)):
            return Step(SAME)
        return Step(OTHER, path, text=class_name(kind))

    def _norm(self, path: str, module: Any) -> Step:
        act, drop = norms.activation(module), module._modules.get("drop")
        if drop is not None and type(drop) is not nn.Identity:
            return Step(OTHER, path, text=class_name(type(drop)))
        if act is not None and type(act) not in (nn.ReLU, nn.Identity):
            return Step(OTHER, path, text=class_name(type(act)))
        return Step(NORM, path, type(act) is nn.ReLU)

    def _function(self, node: fx.Node) -> Step:
        target, name = node.target, getattr(node.target, "__name__", str(node.target))
        if target in _RELU:
            return Step(RELU)
        if target in _ADD and len(node.args) == 2 and not node.kwargs:
            return Step(ADD)
        if target is torch.as_tensor:
            return Step(SAME)
        if target is F.conv2d:
            return self._conv2d(node)
        if target in _DROPS_WITH_P:
            return self._dropout(node, argument(node, 1, "p", 0.5), argument(node, 2, "training", True))
        return Step(OTHER, text=name)

    def _dropout(self, node: fx.Node, p: Any, training: Any) -> Step:
        return Step(SAME) if p == 0 or training is False else Step(OTHER, text=str(node.target))

    def _conv2d(self, node: fx.Node) -> Step:
        """A call of F.conv2d with the tensors and settings of one module, as in a subclass of nn.Conv2d."""
        names = ("weight", "bias", "stride", "padding", "dilation", "groups")
        defaults = (None, None, 1, 0, 1, 1)
        given = [argument(node, i + 1, name, default) for i, (name, default) in enumerate(zip(names, defaults))]  # noqa: B905
        weight = given[0]
        path = str(weight.target).rpartition(".")[0] if isinstance(weight, fx.Node) and weight.op == "get_attr" else ""
        module: Any = self.modules.get(path)
        if not path or not isinstance(module, nn.Conv2d) or str(weight.target) != f"{path}.weight":
            return Step(OTHER, text="torch.nn.functional.conv2d of a tensor that is no module's weight")
        bias = given[1]
        named = bias.target if isinstance(bias, fx.Node) else bias
        own = (None if module.bias is None else f"{path}.bias", *map(_pair, map(module.__getattribute__, names[2:5])))
        if (named, *map(_pair, given[2:5])) != own or given[5] != module.groups or module.padding_mode != "zeros":
            return Step(OTHER, path, text="torch.nn.functional.conv2d with other settings than its module's")
        return Step(CONV, path)

    def _method(self, node: fx.Node) -> Step:
        name = str(node.target)
        if name in ("relu", "relu_"):
            return Step(RELU)
        if name in ("add", "add_") and len(node.args) == 2 and not node.kwargs:
            return Step(ADD)
        return Step(SAME) if name in _SAME_METHODS and not node.kwargs else Step(OTHER, text=f".{name}()")


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


def argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    """A positional or keyword argument of a call."""
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that a node reads, in the order of its arguments."""
    yield from node.all_input_nodes


def changes_input(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node modifies the tensor it reads first."""
    if node.op == "call_module":
        module: Any = modules[str(node.target)]
        act = norms.activation(module) if norms.is_norm(module) else None
        return bool(getattr(module, "inplace", False)) and act is None
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        in_place = node.kwargs.get("inplace", False) or (node.target is F.relu and len(node.args) > 1 and node.args[1])
        return bool(in_place) or name.endswith("_") or node.target in IN_PLACE or node.kwargs.get("out") is not None
    return False
