"""Imports torchvision even if its compiled part does not load, as with PyPI's wheel and a CPU-only torch."""

import importlib
import importlib.util
from types import ModuleType

import torch

from ._errors import CommandError

_libraries: list[torch.library.Library] = []  # keeps the definitions registered


def import_torchvision_models() -> ModuleType:
    """The module ``torchvision.models``.

    Raises:
        CommandError: torchvision is not installed or does not import.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise CommandError("torchvision is not installed; install it with: pip install torchvision")
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise CommandError(f"cannot import torchvision: {error}") from error
    _define_missing_ops()
    try:
        return importlib.import_module("torchvision.models")
    except (RuntimeError, ImportError) as error:
        raise CommandError(f"cannot import torchvision: {error}") from error


def _define_missing_ops() -> None:
    """Defines the ops whose fake kernels torchvision registers; without them its import fails ("does not exist")."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _libraries.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
