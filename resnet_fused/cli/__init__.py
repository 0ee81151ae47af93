"""The four commands: ``python -m resnet_fused info | explain | demo | bench``."""

from ._main import main

__all__ = ["main"]
