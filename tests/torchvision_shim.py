"""Makes ``import torchvision`` work if its compiled part does not load (PyPI's wheel with a CPU-only torch).

On import torchvision registers fake kernels of its ops, and fails with "operator torchvision::nms does not exist" if
the ops are not defined.
"""

import torch

_kept_alive: list[torch.library.Library] = []  # collecting a Library removes its ops


def install() -> None:
    """Defines the missing ops, without kernels. Does nothing if torchvision works or was already imported."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
    except ImportError:
        return
    else:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    _kept_alive.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
