"""Detects monkey-patched torch layers: fused blocks read layers without calling them, so a patch would be ignored."""

import functools
import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_while_tracing(function: Function) -> Function:
    """Compilers use the function's result at trace time.

    ``torch.compiler.assume_constant_result`` would import all of torch._dynamo, which takes more than a second.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


#: Names of the parameters and buffers of torch's layers.
TENSORS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_CLASSES = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.MaxPool2d, nn.Identity, nn.Sequential)
_FUNCTIONS = ("conv2d", "batch_norm", "relu", "max_pool2d")
# Those of a network's head, which blocks do not call.
_HEAD_CLASSES = (nn.AdaptiveAvgPool2d, nn.Linear)
_HEAD_FUNCTIONS = ("adaptive_avg_pool2d", "linear")


def _is_torch_method(function: Any) -> bool:
    """Whether a method is torch's own: ``functools.wraps`` copies names but not globals."""
    return isinstance(function, FunctionType) and function.__globals__["__name__"].startswith("torch.nn.modules.")


Originals = tuple[list[Any], list[str], list[Any]]  # owners, names and functions


def _originals(methods: list[tuple[type, str]], functions: tuple[str, ...]) -> Originals:
    """torch's own methods and functions of these names."""
    found = [getattr(cls, name) for cls, name in methods]
    # None never matches: a method that was patched before this module was imported counts as patched.
    own = [function if _is_torch_method(function) else None for function in found]
    owners = [*(cls for cls, _ in methods), *(F for _ in functions)]
    return owners, [*(name for _, name in methods), *functions], [*own, *(getattr(F, name) for name in functions)]


_LAYERS = _originals([*((cls, "forward") for cls in _CLASSES), (nn.Conv2d, "_conv_forward")], _FUNCTIONS)
_HEAD = _originals([(cls, name) for cls in _HEAD_CLASSES for name in ("forward", "__call__")], _HEAD_FUNCTIONS)
_CALLS = [(name, getattr(nn.Module, name)) for name in ("__call__", "_call_impl", "__getattr__")]


def _any_patched(originals: Originals) -> bool:
    owners, names, functions = originals
    # Identity, not ==: wrappers such as wrapt's compare equal to what they wrap.
    return any(map(operator.is_not, map(getattr, owners, names), functions))


@constant_while_tracing
def _torch_layers_patched() -> bool:
    return _any_patched(_LAYERS)


def layers_are_patched() -> bool:
    """Whether any of torch's layer methods, functions or module calls is monkey-patched globally."""
    if _torch_layers_patched():
        return True
    # fx and some profilers patch nn.Module's call methods. So does torch.export, but it can trace our ops.
    return not torch.compiler.is_compiling() and any(getattr(nn.Module, name) is not call for name, call in _CALLS)


def head_is_patched() -> bool:
    """The same for the layers of a network's head; :func:`layers_are_patched` covers calls of ``nn.Module``."""
    return _any_patched(_HEAD)


def is_patched(module: nn.Module) -> bool:
    """Whether an attribute of this instance shadows one of its class, as after ``module.forward = f``."""
    cls: Any = type(module)
    attributes = _class_attributes(cls)
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace a set's methods with a module's __dict__
        return any(name in module.__dict__ for name in attributes)
    return not attributes.isdisjoint(module.__dict__)


_SETTINGS = {"recompute", "fused_training"}  # attributes of fused blocks that users may set on an instance


# torch.compile would trace into the cached function and warn about it.
@constant_while_tracing
def _class_attributes(cls: Any) -> frozenset[str]:
    return _cached_class_attributes(cls)


@functools.cache
def _cached_class_attributes(cls: Any) -> frozenset[str]:
    return frozenset({*dir(cls), *TENSORS}) - _SETTINGS
