"""Every kernel waits for the grids before it: docs/kernels/overlap.md. Without the wait the emulator says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import Plant, bn_add_act, conv_fwd
from cuda_on_cpu.tensors import BatchNorm

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
WAIT = "  ptx::griddepcontrol_wait();\n"


# What is planted, and the source that is compiled with it.
BUGS = {
    "bn_add_act-forgets": (Plant("cuda/bn/bn_add_act.cuh", WAIT, ""), "bn_add_act"),
    "conv_fwd-forgets": (Plant("cuda/sm80/conv_fwd.cuh", WAIT, ""), "conv_fwd_bf16"),
    "conv_finish-forgets": (Plant("cuda/sm80/conv_finish.cuh", WAIT, ""), "conv_finish"),
    "conv_sm90-forgets": (Plant("cuda/sm90/conv_sm90.cuh", WAIT, ""), "conv_sm90_bf16"),
}


def plant(bug):
    planted, source = BUGS[bug]
    return planted, (source,)


def run(kernels, source):
    dtype = torch.bfloat16

    def image(*shape):
        return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)

    bn = BatchNorm(*(torch.rand(64) + 0.5 for _ in range(4)))
    if source == "bn_add_act":
        return bn_add_act.run(kernels, image(1, 64, 4, 4), bn, sm_count=2)[1]
    conv = conv_fwd.Conv(image(1, 64, 4, 4), image(64, 64, 3, 3), bn, padding=(1, 1))
    if source == "conv_sm90_bf16":
        return conv_fwd.run(kernels, (128, 128), conv, family="conv_sm90")[1]
    return conv_fwd.run(kernels, (64, 64), conv, splits=2 if source == "conv_finish" else 1)[1]


@pytest.mark.parametrize("bug", BUGS)
def test_a_forgotten_wait_is_found(planted, bug):
    found = {hazard for hazard, _ in run(planted(bug), BUGS[bug][1])["hazards"]}
    assert {"global memory before griddepcontrol.wait", "no griddepcontrol.wait"} <= found


@pytest.mark.parametrize("source", ["bn_add_act", "conv_fwd_bf16", "conv_finish", "conv_sm90_bf16"])
def test_with_it_nothing_is_found(kernels, source):
    assert run(kernels, source)["errors"] == []


def test_every_kernel_that_is_launched_dependent_waits():
    """Written down once for each: the include, and the instruction in a file of the kernel's own family."""
    launching = [p for p in CUDA.rglob("*.cu*") if re.search(r"\bLAUNCH_DEPENDENT\(", p.read_text())]
    assert launching
    for path in launching:
        for kernel in re.findall(r"LAUNCH_DEPENDENT\((\w+)<", path.read_text()):
            homes = [p for p in CUDA.rglob("*.cuh") if re.search(rf"\b{kernel}\(const", p.read_text())]
            assert len(homes) == 1, kernel
            body = homes[0].read_text().split(f"{kernel}(const", 1)[1]
            assert body.count(WAIT) == 1, f"{kernel} must wait once, for every thread of every block"
