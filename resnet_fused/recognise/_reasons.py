"""Reasons why a module cannot be fused, with the offending values; None if it can.

``path`` is the owner's name in the model. With ``converted`` the functions explain why a fused module runs eagerly,
which is the case less often than :func:`resnet_fused.convert` refuses a module.
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from ..modules._read import can_precompute, has_hooks_or_patches
from ..modules.stem import is_plain_pool
from ..reference import ZeroPadShortcut

SHORTCUTS = (ZeroPadShortcut, nn.Identity, nn.Sequential, nn.Conv2d)


def first(reasons: Iterable[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def class_name(kind: type) -> str:
    """The class name with its package as users import it: ``torch.nn.Conv2d``, not ``torch.nn.modules.conv.Conv2d``."""
    if getattr(nn, kind.__name__, None) is kind:
        return f"torch.nn.{kind.__name__}"
    return f"{kind.__module__}.{kind.__qualname__}"


def conv(owner: nn.Module, name: str, path: str) -> str | None:
    module = getattr(owner, name, None)
    full = _join(path, name)
    reason = _exactly(module, full, nn.Conv2d)
    if reason is not None:
        return reason
    if module.padding_mode != "zeros":  # type: ignore[union-attr]
        return f"{full} has padding_mode {module.padding_mode!r}, not 'zeros'"  # type: ignore[union-attr]
    if isinstance(module.padding, str):  # type: ignore[union-attr]
        return f"{full} has padding {module.padding!r}, not an int or a pair of ints"  # type: ignore[union-attr]
    return None


def batch_norm(owner: nn.Module, name: str, path: str, converted: bool = False) -> str | None:
    module = getattr(owner, name, None)
    full = _join(path, name)
    reason = _exactly(module, full, nn.BatchNorm2d, *((nn.SyncBatchNorm,) if converted else ()))
    if reason is not None or converted:
        return reason
    if module.running_mean is None or module.running_var is None:  # type: ignore[union-attr]
        return f"{full} has no running statistics (track_running_stats=False), so eval mode uses batch statistics"
    return None


def relu(owner: nn.Module, path: str) -> str | None:
    return _exactly(getattr(owner, "relu", None), _join(path, "relu"), nn.ReLU)


def shortcut(owner: nn.Module, path: str, converted: bool = False) -> str | None:
    module = getattr(owner, "downsample", None)
    full = _join(path, "downsample")
    if module is None:
        return None
    if type(module) not in SHORTCUTS:
        kinds = ", ".join(class_name(kind) for kind in SHORTCUTS)
        return f"{full} is {class_name(type(module))}; {kinds} or None expected"
    if converted and type(module) is nn.Conv2d:
        return conv(owner, "downsample", path)
    if converted and can_precompute(module):  # runs as a module, not in a kernel
        return None
    for child_name, child in module.named_modules():
        child_path = _join(full, child_name)
        reason = _hook(child, child_path)
        if reason is not None:
            return reason
        if isinstance(child, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
            exact = nn.Conv2d if isinstance(child, nn.Conv2d) else nn.BatchNorm2d
            reason = _exactly(child, child_path, exact)
            if reason is not None:
                return reason
    return f"{full} may modify its input in place or contains a module that is not torch's own" if converted else None


def pool(owner: nn.Module, name: str, path: str) -> str | None:
    module = getattr(owner, name, None)
    full = _join(path, name)
    if isinstance(module, nn.Identity):
        return _exactly(module, full, nn.Identity)
    reason = _exactly(module, full, nn.MaxPool2d)
    if reason is None and not is_plain_pool(module):  # type: ignore[arg-type]
        return f"{full} is {module}; the fused stem does not support dilation, ceil_mode or return_indices"
    return reason


def parametrised(module: nn.Module) -> str | None:
    return "it is parametrised (torch.nn.utils.parametrize)" if parametrize.is_parametrized(module) else None


def _exactly(module: object, full: str, *kinds: type[nn.Module]) -> str | None:
    expected = class_name(kinds[0])
    if not isinstance(module, nn.Module):
        return f"{full} is {module!r}, not a {expected} module"
    if parametrize.is_parametrized(module):
        return f"{full} is parametrised (torch.nn.utils.parametrize)"
    if type(module) not in kinds:
        return f"{full} is {class_name(type(module))}, not {expected}"
    return _hook(module, full)


def _hook(module: nn.Module, full: str) -> str | None:
    kinds = {
        "forward pre-hook": module._forward_pre_hooks,
        "forward hook": module._forward_hooks,
        "backward hook": module._backward_hooks,
        "backward pre-hook": module._backward_pre_hooks,
    }
    for kind, hooks in kinds.items():
        if hooks:
            return f"a {kind} is registered on {full}"
    if has_hooks_or_patches(module):
        return f"forward, weight or bias of {full} was replaced by a plain attribute"
    return None


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
