"""``explain``: shows what convert() does to a model, why eager runs, and the kernel of each convolution."""

import argparse

import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

import resnet_fused

from .. import ops, plans
from ..explain import EAGER, Run, record, runs
from . import _gpus
from ._cuda_plans import cuda_plan
from ._errors import CommandError
from ._load_model import load_model
from ._shapes import ConvCall, conv_calls

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FOR_CPU = "This is the plan for this CPU; --gpu NAME shows the plan for a GPU."
FOR_GPU = "Times are predictions of a cost model; bytes are counted."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``MODEL [--input N,C,H,W] [--dtype DTYPE] [--channels-last] [--gpu NAME] [--why]``."""
    parser.add_argument(
        "model", metavar="MODEL", help="resnet50, another model of ours or torchvision, module:callable"
    )
    parser.add_argument("--input", default="1,3,224,224", metavar="N,C,H,W", help="input shape (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    parser.add_argument("--channels-last", action="store_true", help="use a channels_last input")
    gpus = f"show the plan for a GPU instead of this CPU: {', '.join(_gpus.GPUS)}, or auto for this machine's GPU"
    parser.add_argument("--gpu", choices=[*_gpus.GPUS, _gpus.AUTO], metavar="NAME", help=gpus)
    parser.add_argument("--why", action="store_true", help="also show why the other kernels were rejected")


def main(args: argparse.Namespace) -> int:
    """Prints how each module runs in eval and training mode, then a table of convolutions."""
    shape = _shape(args.input)
    gpu = None if args.gpu is None else _gpus.numbers(args.gpu)
    model = load_model(args.model)
    calls = conv_calls(model, shape, DTYPES[args.dtype], args.channels_last)
    try:
        report = resnet_fused.report(resnet_fused.convert(model))
    except ValueError as error:
        raise CommandError(f"{args.model} cannot be converted: {error}") from error

    how = _runs(model, report, shape, DTYPES[args.dtype], args.channels_last)
    console = Console()
    console.print(_report_table(report, how))
    if gpu is None:
        found = [_cpu_plan(call, report, args.dtype) for call in calls]
        console.print(_cpu_table(calls, found, "channels_last input" if args.channels_last else "contiguous input"))
        for summary in dict.fromkeys(plan.summary for plan in found):
            console.print(escape(summary))
    else:
        found = [_gpu_plan(call, calls, report, model, args.dtype, gpu) for call in calls]
        console.print(_gpu_table(calls, found, f"{args.gpu}, batch {shape[0]}, {args.dtype}"))
    if args.why:
        for call, plan in zip(calls, found, strict=True):
            console.print(escape(f"\n{call.name}: {plan.text}"))
    console.print(f"\n{FOR_CPU if gpu is None else FOR_GPU}")
    return 0


MODES = ("eval", "training")


def _runs(
    model: torch.nn.Module, report: resnet_fused.Report, shape: list[int], dtype: torch.dtype, channels_last: bool
) -> dict[str, dict[str, Run]]:
    """How each module of the report runs in each mode, found with fake tensors (nothing is computed)."""
    found: dict[str, dict[str, Run]] = {}
    for mode in MODES:
        model.train(mode == "training")
        # Batch statistics need more than one value.
        batch = max(shape[0], 2) if mode == "training" else shape[0]
        with torch.set_grad_enabled(mode == "training"), FakeTensorMode(allow_non_fake_inputs=True):
            x = torch.empty([batch, *shape[1:]], dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
            try:
                found[mode] = runs(model, report, record(model, x))
            except Exception as error:  # an arbitrary model may raise anything, for example without targets
                reason = f"the model raises {type(error).__name__}: {' '.join(str(error).split())[:200]}"
                found[mode] = {name: Run(entry.kind, EAGER, reason) for name, entry in report.items()}
    model.eval()
    return found


def _shape(text: str) -> list[int]:
    try:
        shape = [int(part) for part in text.split(",")]
    except ValueError:
        shape = []
    if len(shape) != 4 or min(shape) < 1:
        raise CommandError(f"--input expects four positive sizes such as 1,3,224,224, but got {text!r}")
    return shape


NOT_FUSED = plans.of_text("torch: not in a converted module, not fused")


def _cpu_plan(call: ConvCall, report: resnet_fused.Report, dtype: str) -> plans.Plan:
    if _owner(call.name, report) is None:
        return NOT_FUSED
    geometry = (call.stride, call.padding, call.dilation, call.groups)
    return plans.read(ops.explain_cpu(call.input, call.weight, *geometry, dtype))


def _gpu_plan(
    call: ConvCall,
    calls: list[ConvCall],
    report: resnet_fused.Report,
    model: torch.nn.Module,
    dtype: str,
    gpu: list[int],
) -> plans.Plan:
    owner = _owner(call.name, report)
    return NOT_FUSED if owner is None else cuda_plan(model, owner, call, calls, dtype, gpu)


def _owner(name: str, report: resnet_fused.Report) -> str | None:
    """The nearest module of the report that contains this convolution, if it is converted and runs fused."""
    parent = name.rpartition(".")[0]
    while parent not in report and parent:
        parent = parent.rpartition(".")[0]
    entry = report.get(parent)
    if entry is None or entry.status != "converted" or entry.runs_eagerly:
        return None
    if entry.kind == "stem" and name.rpartition(".")[0] != parent:  # a stem owns only its own convolution
        return None
    return parent


def _report_table(report: resnet_fused.Report, how: dict[str, dict[str, Run]]) -> Table:
    table = Table("module", "kind", "status", *MODES, "reason", box=box.SIMPLE_HEAD, pad_edge=False, title="Modules")
    for name, entry in report.items():
        modes = {mode: how[mode][name] for mode in MODES}
        reasons = [f"{mode}: {run.reason}" for mode, run in modes.items() if run.reason]
        cells = ["eager" if run.how == EAGER else "fused" for run in modes.values()]
        reason = entry.reason or "; ".join(reasons)
        table.add_row(escape(name or "(root)"), entry.kind, entry.status, *cells, escape(reason))
    table.caption = ", ".join(report.counted(status) for status in ("converted", "refused"))
    return table


def _cpu_table(calls: list[ConvCall], found: list[plans.Plan], title: str) -> Table:
    table = _table("convolution", "shape", "kernel", title=title)
    for call, plan in zip(calls, found, strict=True):
        table.add_row(escape(call.name), str(call), plan.kernel)
    return table


def _gpu_table(calls: list[ConvCall], found: list[plans.Plan], title: str) -> Table:
    table = _table("convolution", "shape", "kernel", "splits", "predicted us", "MB moved", title=title)
    for call, plan in zip(calls, found, strict=True):
        numbers = [
            form.format(plan.fields[name] / unit) if name in plan.fields else ""
            for name, unit, form in (("splits", 1, "{:.0f}"), ("microseconds", 1, "{:.1f}"), ("bytes", 1e6, "{:.2f}"))
        ]
        table.add_row(escape(call.name), str(call), plan.fields.get("name", plan.kernel), *numbers)
    return table


def _table(*columns: str, title: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, title=f"Convolutions, {title}")
