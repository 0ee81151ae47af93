"""Fused residual blocks: the eager block's submodules and Parameters, with one kernel per convolution."""

from ._block import FusedBlock
from .basic import FusedBasicBlock
from .bottleneck import FusedBottleneck
from .plain import FusedPlainBlock, FusedPlainPreActBlock
from .preact import FusedPreActBlock, FusedPreActBottleneck
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
    "FusedStem",
]
