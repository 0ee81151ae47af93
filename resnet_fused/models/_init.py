"""Weight initialisation shared by all networks (torchvision's)."""

from torch import nn


def initialise(model: nn.Module, zero_init_residual: bool = False) -> None:
    """He-normal convolutions, norms with weight 1 and bias 0.

    With ``zero_init_residual`` the weight of the last norm of each residual branch is zero, so that each block starts
    as the identity (arXiv:1706.02677, section 5.1).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            last = getattr(module, "bn3", getattr(module, "bn2", None))
            if last is not None and last.weight is not None:
                nn.init.zeros_(last.weight)
