"""Notices layers that somebody has patched: fused blocks read them and never call them, so theirs would not run."""

import functools
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_CLASSES = (nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm, nn.ReLU, nn.MaxPool2d, nn.Identity, nn.Sequential)
_FUNCTIONS = ("conv2d", "batch_norm", "relu", "max_pool2d")


def _is_torchs(function: Any) -> bool:
    """Whether a method is the one that torch defines: ``functools.wraps`` copies names, but not globals."""
    return isinstance(function, FunctionType) and function.__globals__["__name__"].startswith("torch.nn.modules.")


def _methods() -> list[tuple[type, str, Any]]:
    named = [(cls, "forward") for cls in _CLASSES] + [(nn.Conv2d, "_conv_forward")]
    found = [(cls, name, getattr(cls, name)) for cls, name in named]
    # None, which no class has, where somebody was here before this file: then eager is right from the beginning.
    return [(cls, name, function if _is_torchs(function) else None) for cls, name, function in found]


_METHODS = _methods()
_OWNERS = [*(cls for cls, _, _ in _METHODS), *(F for _ in _FUNCTIONS)]
_NAMES = [*(name for _, name, _ in _METHODS), *_FUNCTIONS]
_ORIGINALS = [*(function for _, _, function in _METHODS), *(getattr(F, name) for name in _FUNCTIONS)]
_CALLS = [(name, getattr(nn.Module, name)) for name in ("__call__", "_call_impl", "__getattr__")]


# torch.compile takes the answer while it traces.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _layers_differ() -> bool:
    return list(map(getattr, _OWNERS, _NAMES)) != _ORIGINALS


def layers_are_patched() -> bool:
    """Whether calling torch's layers may do other than what they are known for, everywhere."""
    if _layers_differ():
        return True
    # fx and some profilers look on from here; so does torch.export, which sees our ops as they are.
    return not torch.compiler.is_compiling() and any(getattr(nn.Module, name) is not call for name, call in _CALLS)


def is_patched(module: nn.Module) -> bool:
    """Whether an attribute of this one module stands before one of its class: ``module.forward = f`` and the like."""
    cls: Any = type(module)
    attributes = _attributes_of(cls)
    if torch.compiler.is_compiling():  # torch 2.11 cannot trace a set's methods with a module's __dict__
        return any(name in module.__dict__ for name in attributes)
    return not attributes.isdisjoint(module.__dict__)


_SETTINGS = {"recompute", "fused_training"}  # of fused blocks, made to be set on an instance


# torch.compile would trace into the cached function, and warn that it does.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _attributes_of(cls: Any) -> frozenset[str]:
    return _cached_attributes_of(cls)


@functools.cache
def _cached_attributes_of(cls: Any) -> frozenset[str]:
    tensors = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return frozenset({*dir(cls), *tensors}) - _SETTINGS
