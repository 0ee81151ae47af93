"""``explain``: what convert() does to a model, and the kernel that runs each convolution."""

import argparse

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import resnet_fused

from .. import ops
from ._errors import CommandError
from ._load_model import load_model
from ._shapes import ConvCall, conv_calls

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ON_CUDA = "On a GPU, every converted convolution runs as torch's convolution + bn_add_act."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``MODEL [--input N,C,H,W] [--dtype DTYPE] [--channels-last] [--why]``."""
    parser.add_argument("model", metavar="MODEL", help="resnet50, another of torchvision or ours, or module:callable")
    parser.add_argument("--input", default="1,3,224,224", metavar="N,C,H,W", help="the input's shape (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="the input's memory format")
    parser.add_argument("--why", action="store_true", help="also say why each other kernel was not picked")


def main(args: argparse.Namespace) -> int:
    """Prints the report, then a table of convolutions."""
    shape = _shape(args.input)
    model = load_model(args.model)
    calls = conv_calls(model, shape, DTYPES[args.dtype], args.channels_last)
    try:
        report = resnet_fused.report(resnet_fused.convert(model))
    except ValueError as error:
        raise CommandError(f"{args.model} cannot be converted: {error}") from error

    console = Console()
    console.print(_report_table(report))
    plans = [_plan(call, report, args.dtype) for call in calls]
    console.print(_conv_table(calls, plans, args.channels_last))
    for plan in dict.fromkeys(plan.splitlines()[0] for plan in plans):
        console.print(escape(plan))
    if args.why:
        for call, plan in zip(calls, plans, strict=True):
            console.print(escape(f"\n{call.name}: {plan}"))
    console.print(f"\nThis is for the CPU here. {ON_CUDA}")
    return 0


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if len(shape) != 4 or min(shape) < 1:
        raise CommandError(f"--input takes four positive sizes such as 1,3,224,224, got {text!r}")
    return shape


def _plan(call: ConvCall, report: resnet_fused.Report, dtype: str) -> str:
    """The kernel's name, a colon, what it is; further lines say why not another."""
    if not _is_fused(call.name, report):
        return "torch: not in a converted module, runs as it is"
    return ops.explain_cpu(call.input, call.weight, call.stride, call.padding, call.dilation, call.groups, dtype)


def _is_fused(name: str, report: resnet_fused.Report) -> bool:
    """Whether the nearest module of the report that holds this convolution is converted."""
    parent = name.rpartition(".")[0]
    while parent not in report and parent:
        parent = parent.rpartition(".")[0]
    entry = report.get(parent)
    if entry is None or entry.status != "converted":
        return False
    return entry.kind != "stem" or name.rpartition(".")[0] == parent  # a stem owns its own conv only


def _report_table(report: resnet_fused.Report) -> Table:
    table = Table("module", "kind", "status", "reason", box=box.SIMPLE_HEAD, pad_edge=False, title="Modules")
    for name, entry in report.items():
        table.add_row(escape(name or "(root)"), entry.kind, entry.status, escape(entry.reason))
    table.caption = ", ".join(f"{report.count(status)} {status}" for status in ("converted", "refused"))
    return table


def _conv_table(calls: list[ConvCall], plans: list[str], channels_last: bool) -> Table:
    format_name = "channels_last" if channels_last else "contiguous"
    table = Table(
        "convolution",
        "shape",
        "kernel",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"Convolutions, {format_name} input",
    )
    for call, plan in zip(calls, plans, strict=True):
        table.add_row(escape(call.name), str(call), plan.partition(":")[0])
    return table
