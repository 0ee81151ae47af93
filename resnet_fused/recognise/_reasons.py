"""Why a module cannot be fused, in plain words with the offending values; None where it can."""

from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from ..modules._read import touched
from ..modules.stem import is_plain_pool
from ..reference import ZeroPadShortcut

SHORTCUTS = (ZeroPadShortcut, nn.Identity, nn.Sequential, nn.Conv2d)


def first(reasons: Iterable[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def conv(owner: nn.Module, name: str) -> str | None:
    module = getattr(owner, name, None)
    reason = _exactly(module, nn.Conv2d, name)
    if reason is not None:
        return reason
    if module.padding_mode != "zeros":  # type: ignore[union-attr]
        return f"{name} has padding_mode {module.padding_mode!r}, not 'zeros'"  # type: ignore[union-attr]
    if isinstance(module.padding, str):  # type: ignore[union-attr]
        return f"{name} has padding {module.padding!r}, not a number of pixels"  # type: ignore[union-attr]
    return None


def batch_norm(owner: nn.Module, name: str) -> str | None:
    module = getattr(owner, name, None)
    reason = _exactly(module, nn.BatchNorm2d, name)
    if reason is not None:
        return reason
    if module.running_mean is None or module.running_var is None:  # type: ignore[union-attr]
        return f"{name} keeps no running statistics (track_running_stats=False), so eval mode normalises by the batch"
    return None


def relu(owner: nn.Module, name: str = "relu") -> str | None:
    return _exactly(getattr(owner, name, None), nn.ReLU, name)


def shortcut(owner: nn.Module, name: str = "downsample") -> str | None:
    module = getattr(owner, name, None)
    if module is None:
        return None
    if type(module) not in SHORTCUTS:
        kinds = ", ".join(kind.__name__ for kind in SHORTCUTS)
        return f"{name} is {type(module).__name__}; {kinds} or None expected"
    for child_name, child in module.named_modules():
        full = f"{name}.{child_name}" if child_name else name
        reason = _hook(child, full)
        if reason is not None:
            return reason
        if isinstance(child, nn.Conv2d | nn.modules.batchnorm._BatchNorm):
            exact = nn.Conv2d if isinstance(child, nn.Conv2d) else nn.BatchNorm2d
            reason = _exactly(child, exact, full)
            if reason is not None:
                return reason
    return None


def pool(owner: nn.Module, name: str) -> str | None:
    module = getattr(owner, name, None)
    if isinstance(module, nn.Identity):
        return _exactly(module, nn.Identity, name)
    reason = _exactly(module, nn.MaxPool2d, name)
    if reason is None and not is_plain_pool(module):  # type: ignore[arg-type]
        return f"{name} is {module}; the fused stem pools without dilation, ceil_mode or return_indices"
    return reason


def own_forward(module: nn.Module) -> str | None:
    if "forward" in module.__dict__:
        return "its forward was replaced on this instance"
    return None


def _exactly(module: object, kind: type[nn.Module], name: str) -> str | None:
    if not isinstance(module, nn.Module):
        return f"{name} is {module!r}, not a {kind.__name__} module"
    if parametrize.is_parametrized(module):
        return f"{name} is parametrised (torch.nn.utils.parametrize)"
    if type(module) is not kind:
        return f"{name} is {type(module).__name__}, not {kind.__name__}"
    return _hook(module, name)


def _hook(module: nn.Module, name: str) -> str | None:
    kinds = {
        "forward pre-hook": module._forward_pre_hooks,
        "forward hook": module._forward_hooks,
        "backward hook": module._backward_hooks,
        "backward pre-hook": module._backward_pre_hooks,
    }
    for kind, hooks in kinds.items():
        if hooks:
            return f"a {kind} is registered on {name}"
    if touched(module):
        return f"forward, weight or bias of {name} was replaced by a plain attribute"
    return None
