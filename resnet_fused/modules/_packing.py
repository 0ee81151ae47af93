"""Who drops the weights that kernels keep in their own order: the block that the weights belong to."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .. import ops


class OwnsPackedWeights(nn.Module):
    """Forgets packed copies when the module is moved, loaded into or reverted.

    A weight that is freed takes its copies along, with or without its module. A copy is used only while the weight's
    bytes are those it was made of, so forgetting is about memory, never about results. Nothing is stored on the
    instance: class swap, deepcopy and pickle have nothing to carry over.
    """

    def forget_packed(self) -> None:
        """Frees the reordered weights kept for this module; the next call makes them again."""
        weights = self.packable_weights()
        if weights:
            # A model may be moved while somebody traces: stay out of their graph.
            with _disable_current_modes():
                ops.forget_packed(weights)

    def packable_weights(self) -> list[Tensor]:
        """The weights of this module's convolutions that kernels may keep in their own order."""
        # Not fake ones, which have no bytes: a model may be moved while somebody traces.
        return [w for w in self._kernel_weights() if type(w) in (Tensor, nn.Parameter) and not w.is_meta]

    def _kernel_weights(self) -> Iterator[Any]:
        children = self._modules
        shortcut = children.get("downsample")
        for module in (*children.values(), *(shortcut.children() if shortcut is not None else ())):
            if isinstance(module, nn.Conv2d):
                yield module._parameters.get("weight")

    def __prepare_scriptable__(self) -> Any:
        """Called by torch.jit.script, which compiles Python and finds none that it understands."""
        raise RuntimeError(
            "torch.jit.script cannot compile fused modules: script what resnet_fused.revert(model) returns, "
            "then convert the model again"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.forget_packed()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_packed()  # before load_state_dict(assign=True) puts other tensors in their place
        super()._load_from_state_dict(*args, **kwargs)
