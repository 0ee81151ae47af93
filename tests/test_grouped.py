"""Grouped convolutions of our own kernels against float64, on every instruction set; their plan."""

import re

import pytest
import torch
from criterion import assert_close
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_case import Case, isa_of_kernels, layout_of, reason_against

import resnet_fused
from resnet_fused import models, ops, plans

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
# input and output channels of a group, groups. Narrow groups share registers, the last of which may not be full.
WIDTHS = [
    (2, 2, 9), (4, 4, 3), (4, 4, 32), (8, 8, 5), (8, 8, 8), (16, 16, 3), (24, 24, 7), (32, 32, 2), (40, 40, 2),
    (64, 64, 3), (16, 32, 2), (32, 16, 2),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _direct(own_isa, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")


def grouped(width, size, dtype, *, n=2, kernel=3, stride=1, padding=1, dilation=1, **rest):
    c, k, groups = width
    pairs = [(number, number) for number in (stride, padding, dilation)]
    return Case(n, c * groups, size, size + 1, k * groups, kernel, kernel, *pairs, groups, dtype=dtype, **rest)


# Why a plan may leave groups to PyTorch: bfloat16 on processors with AMX.
LEFT = re.compile("for which we have no AMX kernel|this processor has AMX, which")


def check(case):
    """Checks a case that our kernels must run, unless PyTorch has instructions that they do not use."""
    assert case.plan().kernel == "direct" or LEFT.search(reason_against("direct", case.plan()))
    y, eager = case.check()
    assert layout_of(y) == layout_of(eager)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("width", WIDTHS)
def test_group_widths(dtype, layout, width):
    check(grouped(width, 15, dtype, layout=layout, residual=True))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [(4, 4, 5), (8, 8, 3), (16, 16, 2), (48, 48, 2)])
@pytest.mark.parametrize(
    "geometry",
    [
        dict(kernel=5, padding=2), dict(padding=0), dict(padding=2), dict(stride=2),
        dict(dilation=2, padding=2), dict(dilation=2, stride=2, padding=1), dict(stride=3, dilation=2, padding=3),
    ],
    ids=str,
)  # fmt: skip
def test_geometries(dtype, width, geometry):
    check(grouped(width, 13, dtype, layout="channels_last", residual=True, bias=True, **geometry))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [(4, 4, 5), (32, 32, 2)])
def test_one_by_one(dtype, width):
    grouped(width, 13, dtype, kernel=1, padding=0, stride=2, residual=True).check()


@given(
    c=st.integers(1, 20), k=st.integers(1, 40), groups=st.integers(2, 9), n=st.integers(0, 2),
    size=st.sampled_from([1, 5, 7, 14, 29]), kernel=st.sampled_from([1, 3, 3, 4, 7]), stride=st.integers(1, 3),
    dilation=st.integers(1, 2), dtype=st.sampled_from(FLOATS), equal=st.booleans(), relu=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels_last", "sliced"]), residual=st.booleans(),
)  # fmt: skip
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_group(c, k, groups, n, size, kernel, stride, dilation, dtype, equal, **rest):
    """Whatever the plan chooses."""
    padding = min(dilation * (kernel - 1), 2)
    if size + 2 * padding <= dilation * (kernel - 1) or (padding and dilation > size):
        return  # no output; or torch's convolution crashes
    width = (c, c if equal else k, groups)
    grouped(width, size, dtype, n=n, kernel=kernel, stride=stride, padding=padding, dilation=dilation, **rest).check()


@pytest.mark.thinned
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [(4, 4, 8), (8, 8, 4), (16, 16, 2), (24, 24, 2)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_finite_input_stays_in_its_group(dtype, width, value):
    case = grouped(width, 9, dtype, layout="channels_last")
    case.x[0, width[0] + 1, 4, 4] = value
    y, _ = case.check()
    others = torch.ones(y.shape[1], dtype=torch.bool)
    others[width[1] : 2 * width[1]] = False
    assert y[:, others].isfinite().all()
    assert not y[0, ~others].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [(4, 4, 8), (16, 16, 2)])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_not_finite_weight(dtype, width, value):
    """Another engine runs: zero padding times Inf is NaN."""
    case = grouped(width, 9, dtype)
    case.weight[5, 1, 0, 2] = value
    case.check(keep_packed=True)


@pytest.mark.parametrize("width", [(4, 4, 8), (32, 32, 2)])
def test_packed_copies_follow_weight_and_groups(width):
    """The layout depends on the number of groups, which the weight's shape does not tell."""
    case = grouped(width, 9, torch.float32)
    case.check(keep_packed=True)
    case.weight.data.mul_(-2)
    case.check(keep_packed=True)
    fewer = grouped((width[0], 2 * width[1], width[2] // 2), 9, torch.float32)
    fewer.weight = case.weight
    fewer.check(keep_packed=True)
    case.check(keep_packed=True)


@pytest.mark.parametrize("n", [1, 3])
def test_threads_share_rows_and_groups(n):
    torch.set_num_threads(3)
    for width in ((4, 4, 4), (32, 32, 2)):
        check(grouped(width, 29, torch.float32, n=n, residual=True))


def test_pool_follows_in_its_own_kernel():
    case = grouped((8, 8, 4), 13, torch.float32)
    args = (*case.args()[:-2], [3, 3], [2, 2], [1, 1])
    y = ops.conv_bn_relu_pool(*args, False, False)
    want = [resnet_fused.reference.conv_bn_relu_pool(*args)]
    want.append(resnet_fused.reference.conv_bn_relu_pool(*(a.double() if torch.is_tensor(a) else a for a in args)))
    assert_close(y, *want)


def test_output_one_pixel_wide_reads_only_its_input():
    """With AMX oneDNN, and so eager, reads uninitialised memory here: the rounded truth stands for eager's result."""
    case = Case(2, 512, 4, 2, 512, 3, 3, (2, 2), (1, 1), (1, 1), 8, dtype=torch.bfloat16, layout="channels_last")
    truth = case.eager(torch.float64)
    stale = [torch.full((2**power,), torch.nan, dtype=torch.bfloat16) for power in range(3, 20) for _ in range(4)]
    del stale
    assert_close(case.fused(), truth.bfloat16(), truth)


@pytest.mark.parametrize("frozen", [False, True])
def test_resnext_matches_eager(frozen):
    """A ResNeXt with groups of 4 to 32 channels."""
    torch.manual_seed(0)
    eager = models.resnet50(groups=32, width_per_group=4, num_classes=10).eval()
    for module in eager.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        want, truth = eager(x), eager.double()(x.double())
        fused = resnet_fused.convert(eager.float())
        if frozen:
            resnet_fused.freeze(fused)
        for _ in range(2):
            assert_close(fused(x), want, truth)


def plan(width, dtype, *, kernel=3):
    c, k, groups = width
    ones = [1, 1]
    shapes = [2, c * groups, 14, 14], [k * groups, c, kernel, kernel]
    geometry = (ones, [kernel // 2] * 2, ones, groups)
    return plans.read(ops.explain_cpu(*shapes, *geometry, str(dtype).removeprefix("torch.")))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("width", [4, 8, 16, 24, 32, 48, 64])
def test_resnext_and_regnet_run_on_our_kernels(dtype, width):
    found, isa = plan((width, width, 4), dtype), isa_of_kernels(dtype)
    ours = found.kernel == "direct" and found.fields["isa"] == isa
    assert ours or LEFT.search(reason_against("direct", found))


@pytest.mark.parametrize(
    ("width", "kernel", "lanes", "reason"),
    [
        ((1, 1, 32), 3, 16, "32 groups of 1 -> 1 channels, which leave more than 3/8 of the 16 lanes idle"),
        ((6, 6, 8), 3, 16, "8 groups of 6 -> 6 channels, which leave more than 3/8 of the 16 lanes idle"),
        ((8, 16, 8), 3, 16, "8 groups of 8 -> 16 channels: too few to read for a register of 16"),
        ((3, 3, 8), 3, 8, "8 groups of 3 -> 3 channels, which leave more than 3/8 of the 8 lanes idle"),
        ((16, 16, 8), 1, 8, "8 groups with a 1x1 kernel: oneDNN is faster with AVX2"),
    ],
)
def test_groups_left_to_onednn(width, kernel, lanes, reason):
    """Where oneDNN multiplies as fast as our kernels."""
    for dtype in FLOATS:
        isa = isa_of_kernels(dtype)
        found = plan(width, dtype, kernel=kernel)
        native = (dtype == torch.float32 or isa == "AVX512-BF16") and isa is not None
        if (
            native
            and lanes == (8 if isa == "AVX2" else 16)
            and "this torch was built without" not in reason_against("onednn", found)
        ):
            assert found.kernel == "onednn" and reason_against("direct", found) == reason
        elif not native and isa not in (None, "AMX"):
            assert found.kernel == "direct"


def test_winograd_has_no_groups(monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CPU_ENGINE")
    assert reason_against("winograd", plan((32, 32, 8), torch.float32)) == "the convolution has 8 groups"
