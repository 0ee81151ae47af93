"""Blocks that the user describes: ``register_block``."""

import types
from typing import Any

from torch import nn

from ..chain.layers import Spec, resolve
from ..chain.spec import BlockSpec, Reason, class_name
from ..modules import FusedBlock
from ..modules._eager import original_methods
from . import _forward
from ._blocks import Recogniser
from ._subclasses import RESERVED, reduce_by_eager_class

_registered: dict[type[nn.Module], Recogniser] = {}


def register_block(kind: type[nn.Module], spec: Spec) -> None:
    """Lets :func:`resnet_fused.convert` fuse blocks of your own class, such as a copied and edited ``BasicBlock``.

    For example::

        resnet_fused.register_block(
            MyBlock,
            resnet_fused.BlockSpec(convs=("conv_a", "conv_b"), norms=(None, "norm_a", "norm_b"), shortcut="proj"),
        )

    ``convert`` compares each block with its spec before it converts it: ``forward`` of the class and the fused block
    get the same random float64 inputs, in eval and training mode, and must agree in outputs, gradients and buffers. A
    block is refused if they differ, if ``forward`` draws random numbers, or if the spec leaves out a module that is not
    ``nn.Identity``; :func:`resnet_fused.report` gives the reason. Later changes of named modules, hooks and methods are
    seen; ``forward`` must not depend on anything else that may change, such as a number that the block holds, a global
    variable, the dtype or the batch size. Subclasses that override no computation convert too;
    :func:`resnet_fused.revert` restores the class.

    In channels_last (``model.to(memory_format=torch.channels_last)``) no activation is copied between blocks.

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
    if isinstance(spec, BlockSpec) and (
        not all(isinstance(names, tuple | list) for names in spec[:3])
        or len(spec.norms) != len(spec.convs) + 1
        or not spec.convs
    ):
        raise ValueError(
            f"the spec has convs {spec.convs!r} and norms {spec.norms!r}; tuples of names expected, a norm (or None) "
            "before each convolution and one after the last"
        )
    known = find_class(kind)
    if known is not None or issubclass(kind, FusedBlock):
        raise ValueError(f"{class_name(kind)} is already known{'' if known is None else f' as a {known.kind}'}")
    taken = next((name for name in sorted(RESERVED) if hasattr(kind, name)), None)
    if taken is not None:
        raise ValueError(f"{class_name(kind)} defines {taken}, which fused blocks use; rename it")
    _registered[kind] = recogniser(kind.__name__, kind, _complete(spec))


def recogniser(name: str, kind: type[nn.Module], spec: Any, calls: tuple[type[nn.Module], ...] = ()) -> Recogniser:
    """A recogniser of a class whose instances are compared with their ``spec``.

    ``name``: for the report. ``calls``: classes of submodules whose ``forward`` the spec replaces.
    """
    attributes: dict[str, Any] = {
        "_eager_class": kind,
        "_eager_methods": original_methods(kind, "forward", *_methods(kind)),
        "_watched": tuple(each for owner in (kind, *calls) for each in _watched(owner)),
        "_spec": spec,
        "__module__": kind.__module__,
        "__doc__": f":class:`{class_name(kind)}`, converted.",
        "__reduce_ex__": reduce_by_eager_class,
    }
    attributes |= _forward.attributes(kind)
    fused = types.new_class(f"Fused{kind.__name__}", (FusedBlock, kind), {}, lambda space: space.update(attributes))
    return Recogniser(name, kind, fused, probed=True)


def _complete(spec: Spec) -> Any:
    """The spec as class attribute, which has to name all modules."""
    if isinstance(spec, BlockSpec):
        return spec._replace(complete=True)

    def completed(block: nn.Module) -> BlockSpec | Reason:
        names = resolve(block, spec)
        return names if isinstance(names, Reason) else names._replace(complete=True)

    return staticmethod(completed)


def _methods(kind: type[nn.Module]) -> list[str]:
    """The names of the functions that ``forward`` may call on the block, apart from those of ``nn.Module``."""
    own = (each for each in kind.__mro__ if each not in nn.Module.__mro__)
    functions = (types.FunctionType, staticmethod)
    names = {name for each in own for name, value in vars(each).items() if isinstance(value, functions)}
    return sorted(name for name in names if not hasattr(nn.Module, name))


def _watched(kind: type[nn.Module]) -> tuple[tuple[type, str, Any], ...]:
    """All attributes of the class and its bases that ``forward`` may read, apart from those of ``nn.Module``."""
    own = (each for each in kind.__mro__ if each not in nn.Module.__mro__)
    return tuple(
        (each, name, value)
        for each in own
        for name, value in vars(each).items()
        if not name.startswith(("__", "_abc_"))
    )


def recognisers() -> tuple[Recogniser, ...]:
    """Those of all registered classes."""
    return tuple(_registered.values())
