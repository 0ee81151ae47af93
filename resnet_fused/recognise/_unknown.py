"""Detects modules of unknown classes that look like residual blocks, so that a report can name them."""

from collections.abc import Iterator

from torch import nn

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # by exact type: a subclass has a meaningful name


def looks_like_a_block(module: nn.Module) -> bool:
    """Whether a module has convolutions and norms: directly, in plain containers, or in units of one convolution.

    Some libraries' convolution classes contain their norm.
    """
    is_container = type(module) in _CONTAINERS  # its name means nothing: count only its direct children
    parts = list(module.children() if is_container else _children(module))
    convs = [part for part in parts if _is_conv(part)]
    norms = [part for part in (*parts, *(child for conv in convs for child in conv.children())) if _is_norm(part)]
    units = [] if is_container else [part for part in parts if _is_unit(part)]
    return bool(convs and norms) or (len(units) > 0 and len(units) + len(convs) > 1)


def parts_of(block: nn.Module) -> Iterator[nn.Module]:
    """Submodules that belong to a block and are not blocks themselves: containers and units of one convolution."""
    if type(block) in _CONTAINERS:
        return
    for child in _children(block, containers=True):
        if type(child) in _CONTAINERS:
            yield child
        elif _is_unit(child):
            yield from child.modules()


def _children(module: nn.Module, containers: bool = False) -> Iterator[nn.Module]:
    """The children, with plain containers replaced by their contents, or followed by them if ``containers``."""
    for child in module.children():
        is_container = type(child) in _CONTAINERS
        if containers or not is_container:
            yield child
        if is_container:
            yield from _children(child, containers)


def _is_unit(module: nn.Module) -> bool:
    """Whether a module is one convolution with its norm, like the ``ConvNormAct`` of many libraries."""
    if type(module) in _CONTAINERS or _is_conv(module):
        return False
    inside = list(module.modules())
    if any(isinstance(part, nn.Linear) for part in inside):
        return False
    return sum(map(_is_conv, inside)) == 1 and any(map(_is_norm, inside))


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def _is_norm(module: nn.Module) -> bool:
    """Whether the class name says so: norms share no base class. Not ``ConvNorm``, nor ``Normalize`` of images."""
    name = type(module).__name__.lower().replace("normal", "")
    return "norm" in name and not any(map(_is_conv, module.modules()))
