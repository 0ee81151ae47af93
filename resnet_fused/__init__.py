"""Fused conv + BatchNorm + ReLU + residual blocks for ResNets: ``model = resnet_fused.convert(model)``."""

try:
    from . import _library  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"cannot load the compiled library resnet_fused/_C: {error}. "
        "In a source checkout, build it with: python setup.py build_ext --inplace"
    ) from error

from . import functional, models
from .convert import Entry, Report, convert, report, revert
from .freeze import freeze, unfreeze
from .modules import FusedBasicBlock, FusedBottleneck, FusedPreActBlock, FusedPreActBottleneck

__version__ = "0.1.0"

__all__ = [
    "Entry",
    "FusedBasicBlock",
    "FusedBottleneck",
    "FusedPreActBlock",
    "FusedPreActBottleneck",
    "Report",
    "convert",
    "freeze",
    "functional",
    "models",
    "report",
    "revert",
    "unfreeze",
]
