"""Modules that are no residual blocks, whose convolutions with BatchNorm and ReLU run as one op each in inference."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from ..chain import layers, read, runs
from ..chain.layers import is_library_code
from ..chain.runs import Rewrite
from ..chain.spec import Reason
from ..match.runs import rewrite, rewrite_of
from ..match.trace import copy_of
from ..modules._packing import OwnsPackedWeights
from ..modules.stem import RunsStages, parts_of_stem
from . import _forward
from ._subclasses import class_of, reduced
from .matched import why_unsuited

MAX_CONVS = 64  # of a module, so that whole networks of other kinds are not traced


class FusedChains(OwnsPackedWeights):
    """First base of the classes created here; see :func:`resnet_fused.convert` for ``chains``."""

    _eager_class: Any

    def forward(self, x: Tensor) -> Any:
        found = runs.scope(self, rewrite_of, x)
        if isinstance(found, Reason):
            read.note(self, "", found)
            return self._eager_class.forward(self, x)
        function, scope = found
        y = function(scope, x)
        read.note(self, "", scope.rf_outcome())
        return y

    def _kernel_weights(self) -> Iterator[Any]:
        yield from (module._parameters.get("weight") for module in self.modules() if isinstance(module, nn.Conv2d))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduced(self, protocol, FusedChains)

    @staticmethod
    def fused_class(kind: Any) -> Any:
        """The fused class of an eager class, created if necessary."""
        return class_of(kind, FusedChains, FusedChains, kind, **_forward.attributes(kind, FusedChains.forward))


def modules_with_chains(model: nn.Module, accepts: Callable[[nn.Module], bool]) -> list[nn.Module]:
    """The outermost modules that have both the convolution and the BatchNorm of a chain, but not in one child."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if module in inside:
            continue
        if isinstance(module, RunsStages):
            inside.update(parts_of_stem(module, module._spec))
        elif isinstance(module, OwnsPackedWeights):
            inside.update(module.modules())
        elif accepts(module) and has_chains(module):
            found.append(module)
            inside.update(module.modules())
    return found


def has_chains(module: nn.Module) -> bool:
    """Whether ``forward`` of a module has a chain that is in none of its children."""
    kind = type(module)
    if (is_library_code(kind) and kind is not nn.Sequential) or why_unsuited(module, kind) is not None:
        return False
    fused = {part for each in module.modules() if isinstance(each, OwnsPackedWeights) for part in each.modules()}
    convs = sum(isinstance(part, nn.Conv2d) and part not in fused for part in module.modules())
    if not 0 < convs <= MAX_CONVS:
        return False
    try:
        found = rewrite(copy_of(module, kind, mode=False))
    except Exception:  # the user's classes may raise anything
        return False
    # Measured (benchmarks/results/cpu-kernels): fewer do not pay for watching the whole module on each call.
    if not isinstance(found, Rewrite) or 2 * len(found.specs) < convs:
        return False
    return any(_child(spec.convs[0]) != _child(spec.norms[-1] or "") for spec in found.specs)


def why_eager(module: Any) -> Reason | None:
    """Why a converted module always runs eagerly as it is now."""
    chain = layers.read(module, runs.ALL, [])
    found = chain if isinstance(chain, Reason) else rewrite_of(module)
    return found if isinstance(found, Reason) else None


def _child(path: str) -> str:
    return path.partition(".")[0]
