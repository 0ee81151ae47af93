"""Loads the compiled libraries and registers ``torch.ops.resnet_fused.*``.

``_C`` holds the schemas and the CPU kernels and is required. ``_C_cuda`` is imported only with a CUDA build of torch.
If that import fails, :data:`CUDA_LOAD_ERROR` holds the reason, and the ops reject CUDA tensors.
"""

import importlib.util
import os
from typing import Any

import torch

# For development: load these files instead of the package's own libraries (CONTRIBUTING.md, "Flavours").
LIBRARY = os.environ.get("RESNET_FUSED_LIBRARY") or None
CUDA_LIBRARY = os.environ.get("RESNET_FUSED_CUDA_LIBRARY") or None


def _load(variable: str, path: str, name: str) -> Any:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"cannot load {variable}={path!r}: {error}. Build it (CONTRIBUTING.md, Flavours) or unset the variable."
        ) from error
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if LIBRARY is None:
    from . import _C  # type: ignore[attr-defined]
else:
    _C = _load("RESNET_FUSED_LIBRARY", LIBRARY, "_C")

#: Whether objects still have the attributes that they had (csrc/unchanged.c).
unchanged = _C.unchanged

CUDA_LOADED = False
CUDA_LOAD_ERROR: str | None = "this torch was built without CUDA"

if torch.version.cuda is not None:
    try:
        if CUDA_LIBRARY is None:
            from . import _C_cuda  # type: ignore[attr-defined]  # noqa: F401
        else:
            _load("RESNET_FUSED_CUDA_LIBRARY", CUDA_LIBRARY, "_C_cuda")

        CUDA_LOADED, CUDA_LOAD_ERROR = True, None
    except ImportError as error:
        CUDA_LOAD_ERROR = str(error)
