"""Recognises residual blocks by what they compute: traces ``forward`` of one block and matches its dataflow.

:mod:`.trace` records the graph with ``torch.fx``, :mod:`.nodes` says what each node computes, :mod:`.block` and
:mod:`.shortcut` name the parts of the chain, :mod:`.structure` says what else the trace depends on.
"""

from .block import Mismatch
from .derive import (
    Match,
    calls_user_code,
    in_modes,
    is_outdated,
    of_copy,
    remember,
    shortcut_argument,
    spec_of,
    spec_with_shortcut,
)

__all__ = [
    "Match",
    "Mismatch",
    "calls_user_code",
    "in_modes",
    "is_outdated",
    "of_copy",
    "remember",
    "shortcut_argument",
    "spec_of",
    "spec_with_shortcut",
]
