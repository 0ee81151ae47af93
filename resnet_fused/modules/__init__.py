"""Fused residual blocks: the eager block's submodules and Parameters, with one kernel per convolution."""

from ._block import FusedBlock
from ._stages import FusedStage
from .blocks import (
    FusedBasicBlock,
    FusedBottleneck,
    FusedPlainBlock,
    FusedPlainPreActBlock,
    FusedPreActBlock,
    FusedPreActBottleneck,
)
from .stem import FusedPreActEnds, FusedStem

__all__ = [
    "FusedBasicBlock",
    "FusedBlock",
    "FusedBottleneck",
    "FusedPlainBlock",
    "FusedPlainPreActBlock",
    "FusedPreActBlock",
    "FusedPreActBottleneck",
    "FusedPreActEnds",
    "FusedStage",
    "FusedStem",
]
