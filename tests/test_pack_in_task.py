"""Small images: each task packs its own weights, so that nothing is cached and no weight can be stale."""

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from op_case import Case, reason_against
from torch import nn

from resnet_fused import ops

# C, K, image, kernel, stride, padding, dilation: at most 256 pixels and many weights
SHAPES = {
    "1x1 at 7x7": (512, 1024, 7, 1, 1, 0, 1),
    "1x1 at 11x11, partial blocks": (1024, 1000, 11, 1, 1, 0, 1),
    "1x1, stride 2": (512, 520, 9, 1, 2, 0, 1),
    "3x3": (256, 256, 7, 3, 1, 1, 1),
    "3x3 at 16x16": (128, 280, 16, 3, 1, 1, 1),
    "3x3, stride 2": (256, 250, 13, 3, 2, 1, 1),
    "dilated": (192, 256, 9, 3, 1, 2, 2),
    "1 pixel": (2048, 1000, 1, 1, 1, 0, 1),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def case_of(name, dtype, batch=1):
    c, k, size, kernel, stride, padding, dilation = SHAPES[name]
    torch.manual_seed(0)
    case = Case(batch, c, size, size, k, kernel, kernel, *((v, v) for v in (stride, padding, dilation)), dtype=dtype)
    case.weight = nn.Parameter(case.weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
    return case


def run(case):
    return case.check(keep_packed=True)[0]


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    ops.release_memory()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_results_are_those_of_a_frozen_weight(name, dtype, own_isa):
    case = case_of(name, dtype)
    unfrozen = run(case)
    assert ops.packed_bytes() == 0
    ops.freeze_packed([case.weight])
    frozen = run(case)
    ours = case.plan().kernel == "direct"
    assert (ops.packed_bytes() > 0) == ours
    assert ours or reason_against("direct", case.plan()).startswith("this processor has AMX, which")
    ops.forget_packed([case.weight])
    assert torch.equal(frozen, unfrozen)


@pytest.mark.parametrize("name", ["1x1 at 7x7", "3x3"])
def test_larger_batches_keep_a_copy(name):
    case = case_of(name, torch.float32, batch=8)
    run(case)
    assert ops.packed_bytes() > 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["1x1 at 7x7", "3x3"])
def test_weights_that_are_not_finite(name, bad):
    case = case_of(name, torch.float32)
    case.weight[-1, -1] = bad
    run(case)  # compares with eager
    case.weight[-1, -1] = 1
    run(case)


def test_other_layouts_keep_a_copy():
    case = case_of("3x3", torch.float32)
    case.weight = nn.Parameter(case.weight.contiguous(), requires_grad=False)  # taps are inner: slow to transpose
    run(case)
    assert ops.packed_bytes() > 0


@pytest.mark.parametrize("bad", ["weight", "projection", "neither"])
def test_a_projection_whose_weights_are_not_finite(bad):
    torch.manual_seed(0)
    x, source = torch.randn(1, 256, 7, 7), torch.randn(1, 512, 14, 14)
    weight, projection = torch.randn(512, 256, 1, 1) / 16, torch.randn(512, 512, 1, 1) / 16
    if bad != "neither":
        {"weight": weight, "projection": projection}[bad][5, 5] = float("inf")
    bn, geometry = (None, None, torch.zeros(512), torch.ones(512), 1e-5), ([1, 1], [0, 0], [1, 1], 1)
    side = (source, projection, None, *bn, [2, 2], None, None, None, None, 0.0)
    y = ops.conv_bn_proj_act(x, weight, None, *bn, *geometry, *side, True, True, False)

    def eager(dtype):
        main = F.conv2d(x.to(dtype), weight.to(dtype))
        shortcut = F.conv2d(source.to(dtype), projection.to(dtype), stride=2)
        return (main + shortcut).div((1 + torch.tensor(1e-5, dtype=dtype)).sqrt()).relu()

    assert_close(y, eager(torch.float32), eager(torch.float64))
