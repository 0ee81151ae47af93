"""Blocks that the user describes: ``register_block``."""

import types
from typing import Any

from torch import nn

from ..chain.layers import Spec
from ..chain.spec import BlockSpec, class_name
from ..modules import FusedBlock
from ..modules._eager import original_methods
from ._blocks import Recogniser
from ._subclasses import reduce_by_eager_class

_registered: dict[type[nn.Module], Recogniser] = {}


def register_block(kind: type[nn.Module], spec: Spec) -> None:
    """Lets :func:`resnet_fused.convert` fuse blocks of your own class, such as a copied and edited ``BasicBlock``.

    For example::

        resnet_fused.register_block(
            MyBlock,
            resnet_fused.BlockSpec(convs=("conv_a", "conv_b"), norms=(None, "norm_a", "norm_b"), shortcut="proj"),
        )

    ``convert`` compares each block with its spec before it converts it: ``forward`` of the class and the fused block
    get the same random float64 input, in eval and training mode, and must agree in the output, the input's gradient
    and all buffers. A block that differs is refused, and :func:`resnet_fused.report` says how it differs. Subclasses
    that override no computation convert too; :func:`resnet_fused.revert` restores the class.

    Args:
        kind: the class of the blocks.
        spec: a :class:`BlockSpec`, or a function from a block to its BlockSpec for classes whose structure depends on
            the instance.

    Raises:
        TypeError: ``kind`` is not a class of modules, or ``spec`` is neither a BlockSpec nor callable.
        ValueError: ``kind`` is fused, known or registered already, or ``spec`` has not one norm more than convolutions.
    """
    from . import find_class  # here to avoid a circular import

    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise TypeError(f"register_block expects a class derived from torch.nn.Module, but got {kind!r}")
    if not isinstance(spec, BlockSpec) and not callable(spec):
        raise TypeError(f"register_block expects a BlockSpec or a function that returns one, but got {spec!r}")
    if isinstance(spec, BlockSpec) and (len(spec.norms) != len(spec.convs) + 1 or not spec.convs):
        raise ValueError(
            f"the spec has {len(spec.convs)} convs and {len(spec.norms)} norms; a norm (or None) before each "
            "convolution and one after the last expected"
        )
    known = find_class(kind)
    if known is not None or issubclass(kind, FusedBlock):
        raise ValueError(f"{class_name(kind)} is already known{'' if known is None else f' as a {known.kind}'}")
    taken = [name for name in vars(FusedBlock) if not name.startswith("__") and hasattr(kind, name)]
    taken = [name for name in taken if not hasattr(nn.Module, name)]
    if taken:
        raise ValueError(f"{class_name(kind)} defines {taken[0]}, which fused blocks use; rename it")
    attributes: dict[str, Any] = {
        "_eager_class": kind,
        "_eager_methods": original_methods(kind, "forward"),
        "_spec": spec if isinstance(spec, BlockSpec) else staticmethod(spec),
        "__module__": kind.__module__,
        "__doc__": f":class:`{class_name(kind)}`, converted.",
        "__reduce_ex__": reduce_by_eager_class,
    }
    fused = types.new_class(
        f"Fused{kind.__name__}", (FusedBlock, kind), exec_body=lambda space: space.update(attributes)
    )
    _registered[kind] = Recogniser(kind.__name__, kind, fused, probed=True)


def recognisers() -> tuple[Recogniser, ...]:
    """Those of all registered classes."""
    return tuple(_registered.values())
