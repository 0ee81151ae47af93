"""Changes of a converted block: of its layers, settings, attributes, methods and hooks."""

import types

import torch
import torch.nn.functional as F
from handwritten_blocks import (
    Basic,
    Bodied,
    Checkpointed,
    ConvBNReLU,
    Flagged,
    FunctionAsAttribute,
    Helpers,
    ListedOrder,
    Loop,
    NamesOfNorms,
    SharedReLU,
    Units,
    body,
    conv1,
    conv3,
    part,
    projection,
)  # fmt: skip
from handwritten_shortcuts import PreActivation, WideResNet, option_a
from handwritten_traps import DoublingNorm, DropsOut, DropsPath, StandardisedConv, weight_norm
from torch import nn
from torch.nn.utils import parametrize, prune


def sequential():
    return Bodied(body())


def put(path, make):
    """A change that sets an attribute of a module."""
    owner, _, name = path.rpartition(".")
    return lambda block: setattr(block.get_submodule(owner), name, make())


def method(path, function):
    """A change that replaces a method of one instance."""
    owner, _, name = path.rpartition(".")

    def change(block):
        module = block.get_submodule(owner)
        original = getattr(type(module), name)
        setattr(module, name, types.MethodType(lambda self, x: function(original(self, x)), module))

    return change


def hook(path, register="register_forward_hook"):
    """A change that lets a hook double the output, or a pre-hook the input."""

    def change(block):
        doubled = {
            "register_forward_hook": lambda module, inputs, output: 2 * output,
            "register_forward_pre_hook": lambda module, inputs: (2 * inputs[0],),
            "register_full_backward_hook": lambda module, inputs, outputs: tuple(
                None if g is None else 2 * g for g in inputs
            ),
            "register_full_backward_pre_hook": lambda module, outputs: tuple(2 * g for g in outputs),
        }
        getattr(block.get_submodule(path), register)(doubled[register])

    return change


class Doubles(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Doubling(nn.Module):
    def forward(self, weight):
        return 2 * weight


def doubled(x):
    return 2 * x


def swap_convs(block):
    block.conv1, block.conv2 = block.conv2, block.conv1


def tie_convs(block):
    block.conv2 = block.conv1


def tie_norms(block):
    block.bn2 = block.bn1


def change_weight(block):
    with torch.no_grad():
        block.conv1.weight.mul_(1.5)


def replace_data(block):
    block.conv1.weight.data = 1.5 * block.conv1.weight.data


def replace_weight(block):
    block.conv1.weight = nn.Parameter(1.5 * block.conv1.weight.detach())


def change_statistics(block):
    block.bn1.running_mean += 1


def add_bias(block):
    block.conv2.bias = nn.Parameter(torch.linspace(-1, 1, 6))


def remove_gamma(block):
    block.bn1.weight = None


def remove_statistics(block):
    block.bn1.running_mean = block.bn1.running_var = None


def dilate(block):
    block.conv2.dilation, block.conv2.padding = (2, 2), (2, 2)


def insert_conv(block):
    block.body.insert(3, conv3(6, 6))


def remove_relu(block):
    del block.body[2]


def append_layer(block):
    block.body.append(nn.Tanh())


def reorder_body(block):
    block.body[3], block.body[0] = block.body[0], block.body[3]


def lengthen(block):
    block.convs.append(conv3(4, 4))
    block.norms.append(nn.BatchNorm2d(4))


def shorten(block):
    del block.convs[-1], block.norms[-1]


def reclass_norm(block):
    block.bn1.__class__ = DoublingNorm


def reclass_body(block):
    block.body.__class__ = Doubles


def parametrise(block):
    parametrize.register_parametrization(block.conv1, "weight", Doubling())


def prune_conv(block):
    prune.random_unstructured(block.conv1, "weight", 0.5)


def freeze(block):
    block.requires_grad_(False)


def freeze_weights(block):
    for name, parameter in block.named_parameters():
        parameter.requires_grad_("conv" not in name)


def freeze_norms(block):
    for name, parameter in block.named_parameters():
        parameter.requires_grad_("bn" not in name)


def swap_names(block):
    block.norm1_name, block.norm2_name = block.norm2_name, block.norm1_name


def remove_shortcut(block):
    del block.shortcut


def add_unrelated_module(block):
    block.classifier = nn.Linear(2, 2)


CHANGES = {
    "conv": (Basic, put("conv1", part(conv3, 6, 6))),
    "conv-with-bias": (Basic, put("conv1", part(conv3, 6, 6, bias=True))),
    "conv-dilated": (Basic, put("conv2", part(conv3, 6, 6, dilation=2, padding=2))),
    "conv-circular": (Basic, put("conv1", part(conv3, 6, 6, padding_mode="circular"))),
    "conv-subclass": (Basic, put("conv1", part(StandardisedConv, 6, 6, 3, padding=1))),
    "convs-swapped": (Basic, swap_convs),
    "convs-tied": (Basic, tie_convs),
    "norm": (Basic, put("bn1", part(nn.BatchNorm2d, 6, eps=0.3))),
    "norm-to-identity": (Basic, put("bn1", nn.Identity)),
    "norm-to-group-norm": (PreActivation, put("bn2", part(nn.GroupNorm, 2, 6))),
    "norm-without-gamma": (Basic, put("bn2", part(nn.BatchNorm2d, 6, affine=False))),
    "norms-tied": (Basic, tie_norms),
    "leaky-relu": (SharedReLU, put("relu", part(nn.LeakyReLU, 0.2))),
    "gelu-in-body": (sequential, put("body.2", nn.GELU)),
    "leaky-relu-at-end": (sequential, put("last", nn.LeakyReLU)),
    "relu-in-unit": (Units, put("unit1.act", nn.Tanh)),
    "unit": (Units, put("unit2", part(ConvBNReLU, 8, 8, 1, act=False))),
    "whole-body": (sequential, put("body", lambda: nn.Sequential(*body(), nn.Tanh()))),
    "shortcut": (sequential, put("shortcut", part(projection, 6, 6, 1))),
    "shortcut-to-function": (sequential, put("shortcut", nn.Tanh)),
    "projection": (part(Basic, 6, 8, 2), put("downsample", part(conv1, 6, 8, 2))),
    "projection-appears": (Basic, put("downsample", part(projection, 6, 6, 1))),
    "attribute-appears": (PreActivation, put("shortcut", part(conv1, 6, 6))),
    "lambda": (option_a, put("shortcut.function", lambda: lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 0)))),
    "layer-inserted": (sequential, insert_conv),
    "layer-removed": (sequential, remove_relu),
    "layer-appended": (sequential, append_layer),
    "layers-reordered": (sequential, reorder_body),
    "list-lengthened": (part(Loop, 2), lengthen),
    "list-shortened": (Loop, shorten),
    "depth": (Loop, put("depth", lambda: 2)),
    "flag-skip": (Flagged, put("skip", bool)),
    "flag-relu": (Flagged, put("use_relu", bool)),
    "flag-checkpoint": (Checkpointed, put("with_cp", lambda: True)),
    "scale": (Flagged, put("scale", lambda: 0.5)),
    "scale-parameter": (Flagged, put("scale", lambda: nn.Parameter(torch.tensor(0.5)))),
    "list-mutated": (ListedOrder, lambda block: block.order.remove("relu")),
    "list-replaced": (ListedOrder, put("order", lambda: ["conv1", "bn1", "conv2", "bn2"])),
    "names-swapped": (NamesOfNorms, swap_names),
    "function": (FunctionAsAttribute, put("act", lambda: F.elu)),
    "momentum": (Basic, put("bn1.momentum", lambda: 0.5)),
    "momentum-none": (Basic, put("bn2.momentum", lambda: None)),
    "eps": (Basic, put("bn1.eps", lambda: 0.5)),
    "statistics-not-tracked": (Basic, put("bn1.track_running_stats", bool)),
    "statistics-removed": (Basic, remove_statistics),
    "statistics-changed": (Basic, change_statistics),
    "gamma-removed": (Basic, remove_gamma),
    "dilation": (Basic, dilate),
    "padding-mode": (Basic, put("conv1.padding_mode", lambda: "reflect")),
    "weight-changed": (Basic, change_weight),
    "weight-data": (Basic, replace_data),
    "weight-replaced": (Basic, replace_weight),
    "bias-added": (Basic, add_bias),
    "class-of-norm": (Basic, reclass_norm),
    "class-of-body": (sequential, reclass_body),
    "parametrised": (Basic, parametrise),
    "weight-norm": (Basic, weight_norm),
    "pruned": (Basic, prune_conv),
    "frozen": (Basic, freeze),
    "frozen-weights": (Basic, freeze_weights),
    "frozen-norms": (PreActivation, freeze_norms),
    "dropout": (part(WideResNet, 6, 6, 1), put("dropout.p", lambda: 0.5)),
    "functional-dropout": (part(DropsOut, 0.0), put("p", lambda: 0.5)),
    "drop-path": (part(DropsPath, 0.0), put("drop_path.p", lambda: 0.5)),
    "forward": (Basic, method("forward", doubled)),
    "helper": (Helpers, method("main", doubled)),
    "inherited-helper": (SharedReLU, method("branch", doubled)),
    "forward-of-conv": (Basic, method("conv1.forward", doubled)),
    "forward-of-body": (sequential, method("body.forward", doubled)),
    "forward-of-unit": (Units, method("unit1.forward", doubled)),
    "helper-of-unit": (Units, method("unit1.normalise", doubled)),
    "hook-on-block": (Basic, hook("")),
    "hook-on-conv": (Basic, hook("conv1")),
    "hook-on-norm": (PreActivation, hook("bn1")),
    "hook-on-relu": (SharedReLU, hook("relu")),
    "hook-on-body": (sequential, hook("body")),
    "hook-on-identity": (sequential, hook("shortcut")),
    "hook-on-unit": (Units, hook("unit1")),
    "hook-on-conv-of-unit": (Units, hook("unit2.conv")),
    "hook-on-lambda": (option_a, hook("shortcut")),
    "pre-hook-on-block": (Basic, hook("", "register_forward_pre_hook")),
    "pre-hook-on-conv": (Basic, hook("conv2", "register_forward_pre_hook")),
    "pre-hook-on-body": (sequential, hook("body", "register_forward_pre_hook")),
    "backward-hook-on-conv": (Basic, hook("conv2", "register_full_backward_hook")),
    "backward-hook-on-unit": (Units, hook("unit1", "register_full_backward_hook")),
    "backward-pre-hook-on-norm": (SharedReLU, hook("bn2", "register_full_backward_pre_hook")),
}
HARMLESS = {
    "unrelated-attribute": (Basic, put("note", lambda: "text")),
    "unrelated-module": (Basic, add_unrelated_module),
    "inplace": (SharedReLU, put("relu.inplace", lambda: True)),
}
