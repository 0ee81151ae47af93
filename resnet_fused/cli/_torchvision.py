"""Imports torchvision, also where its compiled part does not load.

PyPI's wheel beside a CPU-only torch is such a case.
"""

import importlib
import importlib.util
from types import ModuleType

import torch

from ._errors import CommandError

_kept_alive: list[torch.library.Library] = []  # a Library that is collected takes its definitions along


def import_torchvision_models() -> ModuleType:
    """The module ``torchvision.models``; raises :class:`CommandError` where it cannot be had."""
    if importlib.util.find_spec("torchvision") is None:
        raise CommandError("torchvision is not installed; install it with: pip install torchvision")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise CommandError(f"torchvision does not import: {error}") from error
    _define_missing_ops()
    try:
        return importlib.import_module("torchvision.models")
    except (RuntimeError, ImportError) as error:
        raise CommandError(f"torchvision does not import: {error}") from error


def _define_missing_ops() -> None:
    """Its import registers fake kernels of these, or dies: "operator ... does not exist"."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _kept_alive.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
