"""The blocks of a ``CifarResNet``, residual or plain: exchanged in place, in eager and in fused networks alike."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from resnet_fused.reference import PlainBlock, ZeroPadShortcut


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All blocks, from input to output."""
    return [block for stage in model.stages for block in getattr(model, stage)]


def keeps_shape(block: nn.Module) -> bool:
    return block.stride == 1 and block.conv1.in_channels == block.conv2.out_channels


def without_branch(block: nn.Module) -> nn.Module:
    """What remains of a block without its convolutions. A plain block that changes shape gets the shortcut of option A.

    The ReLU after the addition is omitted: its input is not negative then.
    """
    if keeps_shape(block):
        return nn.Identity()
    if isinstance(block, PlainBlock):
        return ZeroPadShortcut(block.conv1.in_channels, block.conv2.out_channels, block.stride)
    return block.downsample


@contextmanager
def arranged(model: nn.Module, blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, ``blocks`` stand in place of the model's blocks, of which there must be as many."""
    before = blocks_of(model)
    try:
        _put(model, blocks)
        yield
    finally:
        _put(model, before)


def deleted(model: nn.Module, chosen: Sequence[int]) -> list[nn.Module]:
    """The blocks of ``model``, those at ``chosen`` without their branch: an argument of ``arranged``."""
    return [without_branch(block) if i in chosen else block for i, block in enumerate(blocks_of(model))]


def _put(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    remaining = iter(blocks)
    for stage in model.stages:
        sequence = getattr(model, stage)
        for i in range(len(sequence)):
            sequence[i] = next(remaining)
