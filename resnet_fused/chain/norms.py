"""Reads BatchNorms and frozen BatchNorms, torch's and those of other libraries, into a :class:`Norm`."""

from typing import Any, NamedTuple

from torch import nn

from .policy import PLAIN_TENSORS
from .spec import Norm, Reason
from .statistics import synchronises

_TORCH = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Frozen(NamedTuple):
    """How a frozen BatchNorm computes: ``(x - mean) / sqrt(var + eps) * weight + bias`` with buffers."""

    eps: float | None = None  # None: the module's attribute
    promotes: bool = True  # whether the output of bfloat16 x and float32 buffers is float32


_DETECTRON2 = "detectron2.layers.batch_norm.FrozenBatchNorm2d"
#: By full class name: a library is imported before its modules exist.
_FROZEN = {
    "torchvision.ops.misc.FrozenBatchNorm2d": Frozen(),
    _DETECTRON2: Frozen(promotes=False),
    "timm.layers.norm_act.FrozenBatchNormAct2d": Frozen(),
}
#: transformers has a copy for each detector, such as DetrFrozenBatchNorm2d.
_TRANSFORMERS = Frozen(eps=1e-5)
_WITH_ACTIVATION = {
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
}


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def frozen(kind: type) -> Frozen | None:
    """How a frozen BatchNorm of this class computes; None for other classes."""
    if kind.__module__.startswith("transformers.") and kind.__name__.endswith("FrozenBatchNorm2d"):
        return _TRANSFORMERS
    return _FROZEN.get(_name(kind))


def is_norm(module: Any) -> bool:
    """Whether :func:`read_norm` knows the class of a module."""
    kind = type(module)
    return kind in _TORCH or _name(kind) in _WITH_ACTIVATION or frozen(kind) is not None


def activation(module: Any) -> Any:
    """The activation that a norm applies to its output: a module, or None."""
    return module._modules.get("act") if _name(type(module)) in _WITH_ACTIVATION else None


def read_norm(norm: Any, name: str) -> Norm | Reason:
    """The tensors and eps of a norm; without mean and var if it uses batch statistics."""
    buffers = norm._buffers
    known = frozen(type(norm))
    given: dict[str, Any] = {**norm._parameters, **buffers}
    gamma, beta, mean, var = (given.get(each) for each in ("weight", "bias", "running_mean", "running_var"))
    if not PLAIN_TENSORS.issuperset(type(t) for t in (gamma, beta, mean, var) if t is not None):
        return Reason("a parameter or buffer of {name} is not a plain tensor", name)
    if (mean is None) != (var is None):
        return Reason("{name} lacks its weight, running_mean or running_var", name)
    if known is not None:
        eps = norm.eps if known.eps is None else known.eps
        if mean is None or not isinstance(eps, int | float) or eps < 0:
            return Reason("{name} lacks its running_mean, or has eps {}", name, eps)
        return Norm(gamma, beta, mean, var, float(eps), promotes=known.promotes)
    if norm.affine and gamma is None:
        return Reason("{name} lacks its weight, running_mean or running_var", name)
    if norm.training and norm.track_running_stats and mean is None:
        return Reason("{name} tracks running statistics but has no buffers for them", name)
    eps, momentum = norm.eps, norm.momentum
    if not isinstance(eps, int | float) or eps <= 0 or not (momentum is None or isinstance(momentum, int | float)):
        return Reason("{name} has eps {} and momentum {}", name, eps, momentum)
    if norm.training or mean is None:
        return Norm(gamma, beta, None, None, float(eps), norm, synchronises(norm))
    return Norm(gamma, beta, mean, var, float(eps), norm)
