"""Fused conv + BatchNorm + ReLU + residual blocks for ResNets: ``model = resnet_fused.convert(model)``."""

try:
    from . import _library  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"cannot load the compiled library resnet_fused/_C: {error}. "
        "In a source checkout, build it with: python setup.py build_ext --inplace"
    ) from error

from . import functional, models
from .chain.spec import BlockSpec
from .convert import Coverage, Entry, Report, convert, report, revert
from .explain import Explanation, Run, explain
from .freeze import freeze, unfreeze
from .modules import FusedBasicBlock, FusedBottleneck, FusedPreActBlock, FusedPreActBottleneck
from .recognise import register_block
from .tracer import Tracer

__version__ = "0.1.0"

__all__ = [
    "BlockSpec",
    "Coverage",
    "Entry",
    "Explanation",
    "FusedBasicBlock",
    "FusedBottleneck",
    "FusedPreActBlock",
    "FusedPreActBottleneck",
    "Report",
    "Run",
    "Tracer",
    "convert",
    "explain",
    "freeze",
    "functional",
    "models",
    "register_block",
    "report",
    "revert",
    "unfreeze",
]
