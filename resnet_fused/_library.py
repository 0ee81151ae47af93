"""Loads the compiled libraries; ``torch.ops.resnet_fused.*`` exists afterwards.

``_C`` holds the schemas and the CPU kernels and must load. ``_C_cuda`` is imported only beside a CUDA
build of torch; where it does not load, :data:`CUDA_LOAD_ERROR` says why and CUDA tensors are refused.
"""

import os

import torch

# For those who develop: other builds of the libraries than the package's own (CONTRIBUTING.md, "Flavours").
LIBRARY = os.environ.get("RESNET_FUSED_LIBRARY") or None
CUDA_LIBRARY = os.environ.get("RESNET_FUSED_CUDA_LIBRARY") or None


def _load(variable: str, path: str) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{variable}={path!r} does not load ({error}); build it (CONTRIBUTING.md, Flavours), or unset the variable."
        ) from error


if LIBRARY is None:
    from . import _C  # type: ignore[attr-defined]  # noqa: F401
else:
    _load("RESNET_FUSED_LIBRARY", LIBRARY)

CUDA_LOADED = False
CUDA_LOAD_ERROR: str | None = "this torch was built without CUDA"

if torch.version.cuda is not None:
    try:
        if CUDA_LIBRARY is None:
            from . import _C_cuda  # type: ignore[attr-defined]  # noqa: F401
        else:
            _load("RESNET_FUSED_CUDA_LIBRARY", CUDA_LIBRARY)

        CUDA_LOADED, CUDA_LOAD_ERROR = True, None
    except ImportError as error:
        CUDA_LOAD_ERROR = str(error)
