"""Why :func:`resnet_fused.convert` refuses a module, with the offending values; None if it does not.

``path`` is the owner's name in the model. A converted module runs eagerly less often (:mod:`resnet_fused.chain.read`).
"""

from collections.abc import Iterable

from torch import nn
from torch.nn.utils import parametrize

from ..chain.geometry import of_pool
from ..chain.layers import SHORTCUTS, find, has_hooks_or_patches, hook_reason, shortcut_of
from ..chain.spec import class_name


def first(reasons: Iterable[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def conv(owner: nn.Module, name: str, path: str) -> str | None:
    module = find(owner, name)
    full = _join(path, name)
    reason = _exactly(module, full, nn.Conv2d)
    if reason is not None:
        return reason
    if module.padding_mode != "zeros":
        return f"{full} has padding_mode {module.padding_mode!r}, not 'zeros'"
    if isinstance(module.padding, str):
        return f"{full} has padding {module.padding!r}, not an int or a pair of ints"
    return None


def batch_norm(owner: nn.Module, name: str, path: str) -> str | None:
    module = find(owner, name)
    full = _join(path, name)
    reason = _exactly(module, full, nn.BatchNorm2d)
    if reason is not None:
        return reason
    if module.running_mean is None or module.running_var is None:
        return f"{full} has no running statistics (track_running_stats=False), so eval mode uses batch statistics"
    return None


def relu(owner: nn.Module, name: str, path: str) -> str | None:
    return _exactly(find(owner, name), _join(path, name), nn.ReLU)


def shortcut(owner: nn.Module, name: str, path: str) -> str | None:
    module = shortcut_of(owner, name)
    full = _join(path, name)
    if module is None:
        return None
    if type(module) not in SHORTCUTS:
        kinds = ", ".join(class_name(kind) for kind in SHORTCUTS)
        return f"{full} is {class_name(type(module))}; {kinds} or None expected"
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
    return None


def pool(owner: nn.Module, name: str, path: str) -> str | None:
    module = find(owner, name)
    full = _join(path, name)
    if isinstance(module, nn.Identity):
        return _exactly(module, full, nn.Identity)
    reason = _exactly(module, full, nn.MaxPool2d)
    if reason is None and of_pool(module) is None:
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
    return hook_reason(module, full).at("") if has_hooks_or_patches(module) else None


def _join(path: str, name: str) -> str:
    return ".".join(part for part in (path, name) if part)
