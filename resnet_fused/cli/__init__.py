"""The five commands: ``python -m resnet_fused info | explain | demo | verify | bench``."""

from ._main import main

__all__ = ["main"]
