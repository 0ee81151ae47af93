"""Makes ``import torchvision`` work where its compiled part does not load (PyPI's wheel beside a CPU-only torch).

torchvision registers fake kernels of its own ops when imported, and dies with "operator torchvision::nms does not
exist" where nothing defined them.
"""

import torch

_kept_alive: list[torch.library.Library] = []  # a Library that is collected takes its definitions along


def install() -> None:
    """Defines the missing ops, without kernels. Does nothing where torchvision works, or was imported already."""
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
