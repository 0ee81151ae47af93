"""Every kernel waits for the previous grids (docs/kernels/overlap.md); the emulator reports a missing wait."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import bn_add_act, conv_fwd
from cuda_on_cpu.conv_fwd import is_mode
from cuda_on_cpu.tensors import BatchNorm
from mutation import each_mutation, mutations_of, order

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
WAIT = "  ptx::griddepcontrol_wait();\n"


FORGETS = {
    "bn_add_act": order("cuda/kernels/bn/bn_add_act.cuh", WAIT, ""),
    "conv_fwd_bf16": order("cuda/kernels/sm80/conv_fwd.cuh", WAIT, ""),
    "conv_finish": order("cuda/kernels/sm80/conv_finish.cuh", WAIT, ""),
    "conv_sm90_bf16": order("cuda/kernels/sm90/conv_sm90.cuh", WAIT, ""),
}
VARIANTS = {
    "bn_add_act": "v.dtype == Dtype::kBFloat16 && v.vector == 8 && v.layout == Layout::kNHWC && "
    "v.shortcut == Shortcut::kNone",
    "conv_fwd_bf16": f"v.tile_m == 64 && {is_mode('plain')}",
    "conv_finish": "true",
    "conv_sm90_bf16": f"v.tile_m == 128 && {is_mode('plain')}",
}


def run(source, kernels, schedule):
    """Launches the kernel of `source` once and returns the report."""
    dtype = torch.bfloat16

    def image(*shape):
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    bn = BatchNorm(*(torch.rand(64) + 0.5 for _ in range(4)))
    if source == "bn_add_act":
        return bn_add_act.run(kernels, image(1, 64, 4, 4), bn, sm_count=2, schedule=schedule)[1]
    conv = conv_fwd.Conv(image(1, 64, 4, 4), image(64, 64, 3, 3), bn, padding=(1, 1))
    if source == "conv_sm90_bf16":
        return conv_fwd.run(kernels, (128, 128), conv, family="conv_sm90", schedule=schedule)[1]
    return conv_fwd.run(kernels, (64, 64), conv, splits=2 if source == "conv_finish" else 1, schedule=schedule)[1]


def check_found(source, kernels, schedule):
    found = {hazard for hazard, _ in run(source, kernels, schedule)["hazards"]}
    assert {"global memory before griddepcontrol.wait", "no griddepcontrol.wait"} <= found


@each_mutation(
    *(
        mutations_of({f"{source}: no wait": edit}, functools.partial(check_found, source), (source,), VARIANTS[source])
        for source, edit in FORGETS.items()
    )
)
def test_missing_wait_is_found(mutant, mutation):
    mutation.assert_caught(mutant)


@pytest.mark.parametrize("source", FORGETS)
def test_unmodified_kernels_have_no_hazards(kernels, source):
    assert run(source, kernels, "stay")["errors"] == []


def test_dependent_kernels_wait_once():
    """Each kernel launched by LAUNCH_DEPENDENT waits exactly once."""
    launching = [p for p in CUDA.rglob("*.cu*") if re.search(r"\bLAUNCH_DEPENDENT\(", p.read_text())]
    assert launching
    for path in launching:
        for kernel in re.findall(r"LAUNCH_DEPENDENT\((\w+)<", path.read_text()):
            homes = [p for p in CUDA.rglob("*.cuh") if re.search(rf"\b{kernel}\(const", p.read_text())]
            assert len(homes) == 1, kernel
            body = homes[0].read_text().split(f"{kernel}(const", 1)[1]
            assert body.count(WAIT) == 1, f"{kernel} must wait once, for every thread of every block"
