"""The six commands: ``python -m resnet_fused info | explain | demo | verify | bench | study``."""

from ._main import main

__all__ = ["main"]
