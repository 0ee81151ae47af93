"""Loads a model by name: ours, torchvision's, or ``module:callable``."""

import importlib
import inspect
import os
import sys

from torch import nn

from .. import models
from ._errors import CommandError
from ._torchvision import import_torchvision_models

OURS = [name for name in models.__all__ if name.islower() and name != "cifar_resnet"]


def load_model(name: str) -> nn.Module:
    """The model in eval mode, with the weights that its constructor sets."""
    model = _called(name) if ":" in name else _named(name)
    return model.eval()


def _named(name: str) -> nn.Module:
    if name in OURS:
        return getattr(models, name)()
    unknown = f"unknown model {name!r}: use one of {', '.join(OURS)}, a torchvision model, or module:callable"
    try:
        zoo = import_torchvision_models()
    except CommandError as error:
        raise CommandError(f"{unknown} ({error})") from error
    if name not in zoo.list_models():
        raise CommandError(unknown)
    # Only shapes and classes matter: do not download weights.
    options = {"weights": None, "weights_backbone": None}
    accepted = inspect.signature(zoo.get_model_builder(name)).parameters
    return zoo.get_model(name, **{k: v for k, v in options.items() if k in accepted})


def _called(name: str) -> nn.Module:
    """Loads ``package.module:callable``; the module may be in the current folder."""
    module_name, _, attribute = name.partition(":")
    if module_name.partition(".")[0] == "torchvision":
        import_torchvision_models()
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = importlib.import_module(module_name)
        for part in attribute.split("."):
            make = getattr(make, part)
        model = make() if callable(make) and not isinstance(make, nn.Module) else make
    except Exception as error:  # the user's code may raise anything
        raise CommandError(f"cannot load a model from {name}: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise CommandError(f"{name} is not a model: expected a torch.nn.Module, but got {type(model).__name__}")
    return model
