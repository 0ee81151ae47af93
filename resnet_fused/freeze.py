"""``freeze`` and ``unfreeze``: skip the per-call check that weights are unchanged."""

from typing import TypeVar

from torch import Tensor, nn

from . import ops
from .modules._packing import OwnsPackedWeights

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Uses the packed weights of a converted ``model`` without checking the weights on each call.

    The CPU kernels keep a packed copy of each convolution's weight. By default, every call computes a digest of the
    whole weight to detect changes, which is measurable at batch size 1. A frozen weight is packed once for each layout
    that its kernels need, and no digest is computed. BatchNorm tensors are still read on every call. The state_dict,
    the Parameters and training are unaffected: only inference uses packed weights.

    Do not change the weights until :func:`unfreeze`. An in-place operation on a weight, such as an optimiser step,
    bumps its version counter, and the next inference raises ``RuntimeError``. Edits that bypass the version counter
    (``weight.data``, numpy, another process, an optimiser with ``fused=True``) are **not** detected.

    Freezing applies to the weights' memory. It ends for a block that is moved (``.to``, ``.half``), loaded into or
    reverted, and when the memory is freed. A tensor that replaces a weight is not frozen, and neither is a deep copy.
    On CUDA no weights are packed, so ``freeze`` has no effect.

    >>> import resnet_fused
    >>> model = resnet_fused.convert(resnet_fused.models.small_resnet().eval())
    >>> resnet_fused.unfreeze(resnet_fused.freeze(model)) is model
    True

    Args:
        model: a module with converted blocks, in any mode, on any device.

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
        ValueError: ``model`` contains no converted block or stem.
    """
    weights = _weights(model, "freeze")
    ops.freeze_packed([w for w in weights if w.device.type == "cpu"])
    return model


def unfreeze(model: Model) -> Model:
    """Undoes :func:`freeze`: weights may change at any time again.

    Returns:
        The same ``model``.

    Raises:
        TypeError: ``model`` is not a ``torch.nn.Module``.
        ValueError: ``model`` contains no converted block or stem.
    """
    ops.forget_packed(_weights(model, "unfreeze"))
    return model


def _weights(model: nn.Module, function: str) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"resnet_fused.{function} expects a torch.nn.Module, but got {type(model).__name__}")
    owners = [module for module in model.modules() if isinstance(module, OwnsPackedWeights)]
    if not owners:
        raise ValueError(
            f"resnet_fused.{function}: {type(model).__name__} has no converted block; call resnet_fused.convert first"
        )
    return [w for owner in owners for w in owner.packable_weights()]
