"""Kernels launched on a GPU match the plan and the documented number of launches."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from gpu_case import block_of, conv_args, each_block, randn
from support import randomise
from torch import nn

from resnet_fused import modules, plans
from resnet_fused.cli import _gpus

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ops = torch.ops.resnet_fused
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif("RESNET_FUSED_CUDA_ENGINE" in os.environ, reason="the plan's own choice is asked for"),
]


def kernels_of(call):
    """Returns the names of the kernels that a call launches."""
    call()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    names = [e.name for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    if not names:
        pytest.skip("this machine's profiler sees no kernels")
    return [name for name in names if "Memset" not in name]


def test_launches_match_the_plan():
    args, _ = conv_args((1, 512, 7, 7, 512, 3, 1, 1, 1), torch.bfloat16, torch.channels_last)
    geometry = ([1, 512, 7, 7], [512, 512, 3, 3], [1, 1], [1, 1], [1, 1], 1, "bfloat16", "plain", [], [1, 1])
    plan = plans.read(ops.explain_cuda(*geometry, False, True, True, _gpus.numbers("auto")))
    assert plan.kernel == "sm80/conv_fwd", plan.text
    assert plan.fields["splits"] > 1
    first, second = kernels_of(lambda: ops.conv_bn_act(*args, None, True, False, False))
    assert "conv_fwd_kernel" in first
    assert "conv_finish_kernel" in second


def assert_one_launch_a_convolution(block, x, convolutions):
    with torch.no_grad():
        names = kernels_of(lambda: block(x))
    ours = [name for name in names if "conv_fwd_kernel" in name]
    if not ours:
        pytest.skip("the plan prefers torch's convolution on this GPU")
    assert len(names) == len(ours) == convolutions, names


@each_block
def test_blocks_launch_once_per_convolution(cls, planes, convolutions, stride):
    """The projection and the pre-activation need no launch of their own."""
    block = block_of(cls, planes, stride).to(torch.bfloat16)
    x = randn(32, planes[0], 28, 28, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert_one_launch_a_convolution(block, x, convolutions)


def test_preact_block_with_projection_norm_is_two_launches():
    side = nn.Sequential(nn.Conv2d(64, 128, 1, bias=False), nn.BatchNorm2d(128))
    block = randomise(modules.FusedPreActBlock(64, 128, 1, side)).eval().cuda()
    x = randn(8, 64, 28, 28, dtype=torch.bfloat16, memory_format=torch.channels_last)
    assert_one_launch_a_convolution(block.to(torch.bfloat16, memory_format=torch.channels_last), x, 2)


def test_identity_basic_block_is_one_launch():
    """With RESNET_FUSED_CUDA_ENGINE=sm90:block, which is read once per process."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("sm90/block_fwd is Hopper's alone")
    code = (
        "import torch; from resnet_fused import modules\n"
        "with torch.no_grad():\n"
        "  for c in (64, 128):\n"
        "    block = modules.FusedBasicBlock(c, c).eval().cuda().half().to(memory_format=torch.channels_last)\n"
        "    x = torch.randn(1, c, 28, 28, device='cuda').half().contiguous(memory_format=torch.channels_last)\n"
        "    block(x)\n"
        "    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:\n"
        "      block(x); torch.cuda.synchronize()\n"
        "    print([e.name for e in p.events() if e.device_type == torch.autograd.DeviceType.CUDA])"
    )
    environment = {**os.environ, "RESNET_FUSED_CUDA_ENGINE": "sm90:block"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("kernel<") == done.stdout.count("block_fwd_kernel<") == 2, done.stdout
