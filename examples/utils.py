"""Shared by the examples: imports of other libraries, and the comparison with eager."""

import importlib
import importlib.util

import torch

from resnet_fused.cli import _errors, _torchvision
from resnet_fused.criterion import ULPS, allowed_error, largest_error


def library(name):
    """Returns the imported library, or ends the script with a sentence that says what to install.

    Your own code needs only ``import name``. These examples also run with a CPU-only torch and PyPI's torchvision,
    whose compiled part then does not load. timm and transformers import torchvision too.
    """
    try:
        if importlib.util.find_spec("torchvision") is not None:
            _torchvision.import_torchvision_models()
        return importlib.import_module(name)
    except (ImportError, RuntimeError, _errors.CommandError) as error:
        raise SystemExit(f"This example needs {name} (pip install {name}), but importing it failed: {error}") from error


def compare(name, actual, eager, exact):
    """Asserts resnet_fused's criterion: the largest error is at most twice eager's, plus 4 ulps.

    ``actual`` and ``eager`` are tensors of one dtype, ``exact`` is what the eager model returns in float64.
    """
    judged = torch.isfinite(exact)
    error, allowed = largest_error(actual, exact, judged), allowed_error(eager, exact, judged, exact)
    verdict = "agrees with eager" if error <= allowed else "differs from eager"
    print(f"{name} {verdict}: error {error:.1e}, allowed {allowed:.1e} (twice eager's, plus {ULPS} ulps)")
    assert error <= allowed
