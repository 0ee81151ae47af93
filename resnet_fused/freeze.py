"""``freeze`` and ``unfreeze``: a promise not to change weights, which spares reading them at every call."""

from typing import TypeVar

from torch import Tensor, nn

from . import ops
from .modules._packing import OwnsPackedWeights

Model = TypeVar("Model", bound=nn.Module)


def freeze(model: Model) -> Model:
    """Uses the packed weights of a converted ``model`` without checking that the weights are still those.

    The CPU kernels keep each convolution's weight in an order of their own, and read all of the weight at every call to
    see whether it has changed: a cost that shows at batch 1. A frozen weight is packed once for each order that its
    kernels want and not compared. BatchNorm's tensors are read on every call all the same. The state_dict, the
    Parameters and training stay what they are; only inference looks at packed weights.

    What frozen means: the weights' values do not change until :func:`unfreeze`. An in-place operation on a weight, such
    as an optimiser's step, moves its version, and the next inference raises ``RuntimeError``. An edit that leaves the
    version alone (``weight.data``, numpy, another process, an optimiser with ``fused=True``) is **not** seen.

    The promise is about the weights' memory. It ends where a block is moved (``.to``, ``.half``), loaded into or
    reverted, and where the memory is freed. Another tensor that takes a weight's place, and a deep copy, are not
    frozen. On CUDA nothing is packed, so nothing changes.

    Args:
        model: a module with converted blocks, in any mode, on any device. Returned as it is.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` holds no converted block or stem.
    """
    weights = _weights(model, "freeze")
    ops.freeze_packed([w for w in weights if w.device.type == "cpu"])
    return model


def unfreeze(model: Model) -> Model:
    """Undoes :func:`freeze`: weights may change at any time again. Returns the model.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` holds no converted block or stem.
    """
    ops.forget_packed(_weights(model, "unfreeze"))
    return model


def _weights(model: nn.Module, function: str) -> list[Tensor]:
    if not isinstance(model, nn.Module):
        raise TypeError(f"resnet_fused.{function} takes a torch.nn.Module, got {type(model).__name__}")
    owners = [module for module in model.modules() if isinstance(module, OwnsPackedWeights)]
    if not owners:
        raise ValueError(
            f"resnet_fused.{function}: {type(model).__name__} has no converted block; call resnet_fused.convert first"
        )
    return [w for owner in owners for w in owner.packable_weights()]
