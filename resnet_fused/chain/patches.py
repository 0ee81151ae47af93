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


def _is_torch_method(function: Any) -> bool:
    """Whether a method is torch's own: ``functools.wraps`` copies names but not globals."""
    return isinstance(function, FunctionType) and function.__globals__["__name__"].startswith("torch.nn.modules.")


def _methods() -> list[tuple[type, str, Any]]:
    named = [(cls, "forward") for cls in _CLASSES] + [(nn.Conv2d, "_conv_forward")]
    found = [(cls, name, getattr(cls, name)) for cls, name in named]
    # None never matches: a method that was patched before this module was imported counts as patched.
    return [(cls, name, function if _is_torch_method(function) else None) for cls, name, function in found]


_METHODS = _methods()
_OWNERS = [*(cls for cls, _, _ in _METHODS), *(F for _ in _FUNCTIONS)]
_NAMES = [*(name for _, name, _ in _METHODS), *_FUNCTIONS]
_ORIGINALS = [*(function for _, _, function in _METHODS), *(getattr(F, name) for name in _FUNCTIONS)]
_CALLS = [(name, getattr(nn.Module, name)) for name in ("__call__", "_call_impl", "__getattr__")]


@constant_while_tracing
def _torch_layers_patched() -> bool:
    # Identity, not ==: wrappers such as wrapt's compare equal to what they wrap.
    return any(map(operator.is_not, map(getattr, _OWNERS, _NAMES), _ORIGINALS))


def layers_are_patched() -> bool:
    """Whether any of torch's layer methods, functions or module calls is monkey-patched globally."""
    if _torch_layers_patched():
        return True
    # fx and some profilers patch nn.Module's call methods. So does torch.export, but it can trace our ops.
    return not torch.compiler.is_compiling() and any(getattr(nn.Module, name) is not call for name, call in _CALLS)


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
