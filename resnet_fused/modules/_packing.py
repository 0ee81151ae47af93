"""Mixin that frees the packed copies of a module's weights."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .. import ops
from ..chain import read


class OwnsPackedWeights(nn.Module):
    """Drops packed copies when the module is moved, loaded into or reverted.

    Freeing a weight also frees its packed copies. A copy is used only while the weight's bytes match those it was
    packed from, so dropping it only frees memory and never changes a result. The instance stores nothing, so class
    swaps, deepcopy and pickle need no special handling.
    """

    def forget_packed(self) -> None:
        """Frees the packed weights of this module; the next call packs them again."""
        read.forget(self)
        weights = self.packable_weights()
        if weights:
            # A model may be moved during tracing: keep the op out of the traced graph.
            with _disable_current_modes():
                ops.forget_packed(weights)

    def packable_weights(self) -> list[Tensor]:
        """The weights of this module's convolutions, for which kernels may cache packed copies."""
        # Skip fake tensors, which have no data: a model may be moved during tracing.
        return [w for w in self._kernel_weights() if type(w) in (Tensor, nn.Parameter) and not w.is_meta]

    def _kernel_weights(self) -> Iterator[Any]:
        for module in self._modules.values():
            if isinstance(module, nn.Conv2d):
                yield module._parameters.get("weight")

    def __prepare_scriptable__(self) -> Any:
        """Raises an error when torch.jit.script is called on a fused module."""
        raise RuntimeError(
            "torch.jit.script cannot compile fused modules: call resnet_fused.revert(model), script the result, "
            "then convert the model again"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget_packed()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_packed()  # before load_state_dict(assign=True) replaces the tensors
        super()._load_from_state_dict(*args, **kwargs)
