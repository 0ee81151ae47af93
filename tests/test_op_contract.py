"""The ops' contracts with torch (schemas, fake kernels) and their errors."""

import pytest
import torch
from op_case import Case, pre_args, projection_args

from resnet_fused import ops, plans


def test_opcheck():
    case = Case(2, 8, 9, 9, 16, 3, 3, (2, 2), (1, 1), (1, 1), layout="channels_last", residual=True)
    torch.library.opcheck(ops.conv_bn_act, (*case.args(), False, True))
    torch.library.opcheck(ops.conv_bn_proj_act, (*projection_args(torch.float32, "contiguous"), False, True))
    before = torch.library.opcheck(ops.bn_relu_conv_bn_act, pre_call(case, pre_args(8)))
    assert set(before.values()) == {"SUCCESS"}
    prepared = projection_args(torch.float32, "channels_last", pre=pre_args(16))
    torch.library.opcheck(ops.conv_bn_proj_act, (*prepared, False, True))
    pool = ([3, 3], [2, 2], [1, 1], False, True)
    torch.library.opcheck(ops.conv_bn_relu_pool, (*case.args()[:-2], *pool))
    torch.library.opcheck(ops.bn_add_act, (case.residual, *case.bn, 1e-5, None, True))


def pre_call(case, pre):
    """Returns the arguments of bn_relu_conv_bn_act for the same convolution."""
    x, *rest = case.args()
    return (x, *pre, *rest, False, True)


CHANGES = ["rank", "channels", "dtype", "residual", "padding", "stride", "kernel", "bn", "bn_half", "eps"]
CHANGES += ["groups", "integer", "overflow"]


@pytest.mark.parametrize("change", CHANGES)
def test_bad_input(change):
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1), residual=True)
    expect = {
        "rank": r"x has shape \[8, 9, 9\]",
        "channels": "7 channels",
        "dtype": "BFloat16",
        "residual": r"\[1, 16, 9, 9\]",
        "padding": r"padding is \[-1, 1\]",
        "stride": r"stride is \[0, 1\]",
        "kernel": "larger than the input 2x9",
        "bn": r"gamma has shape \[15\]",
        "bn_half": "mean without var",
        "eps": "eps is -1",
        "groups": "Given groups=3, .* to have 24 channels, but got 8 channels instead",
        "integer": "dtype Int",
        "overflow": "2147483647",
    }
    if change == "rank":
        case.x = case.x[0]
    elif change == "channels":
        case.x = case.x[:, :7]
    elif change == "dtype":
        case.weight = case.weight.bfloat16()
    elif change == "residual":
        case.residual = case.residual[:1]
    elif change == "padding":
        case.geometry = ([1, 1], [-1, 1], [1, 1], 1)
    elif change == "stride":
        case.geometry = ([0, 1], [1, 1], [1, 1], 1)
    elif change == "kernel":
        case.x, case.geometry = case.x[:, :, :2], ([1, 1], [0, 0], [1, 1], 1)
    elif change == "bn":
        case.bn[0] = case.bn[0][:15]
    elif change == "bn_half":
        case.bn[3] = None
    elif change == "eps":
        case.eps = -1.0
    elif change == "groups":
        case.geometry = ([1, 1], [1, 1], [1, 1], 3)
    elif change == "integer":
        case.x = case.x.int()
    else:
        case.x = torch.zeros(()).expand(2**10, 8, 2**10, 2**9)
    with pytest.raises(RuntimeError, match=expect[change]):
        case.fused()


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (0, torch.ones(7), r"pre_gamma has shape \[7\]; \[8\] expected, one value a channel"),
        (1, torch.ones(8, dtype=torch.int32), "pre_beta has dtype Int"),
        (4, -1.0, "pre_eps is -1; at least 0 expected"),
    ],
)
def test_bad_pre_activation(at, value, sentence):
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1))
    pre = pre_args(8)
    pre[at] = value
    with pytest.raises(RuntimeError, match=f"bn_relu_conv_bn_act: {sentence}"):
        ops.bn_relu_conv_bn_act(*pre_call(case, pre))
    projected = projection_args(torch.float32, "contiguous", proj_c=8, pre=pre)
    with pytest.raises(RuntimeError, match=f"conv_bn_proj_act: {sentence}"):
        ops.conv_bn_proj_act(*projected, False, False)


def test_incomplete_pre_activation_is_refused():
    gamma, beta, mean, var, eps = pre_args(16)
    for pre, sentence in [
        ((gamma, beta, mean, None, eps), "pre_mean without pre_var"),
        ((gamma, beta, None, var, eps), "pre_var without pre_mean"),
        ((gamma, None, None, None, eps), "pre_gamma or pre_beta without pre_mean and pre_var"),
    ]:
        with pytest.raises(RuntimeError, match=sentence):
            ops.conv_bn_proj_act(*projection_args(torch.float32, "contiguous", pre=pre), False, False)


def test_mixed_devices():
    case = Case(2, 8, 9, 9, 16, 3, 3, (1, 1), (1, 1), (1, 1))
    case.weight = case.weight.to("meta")
    with pytest.raises((RuntimeError, NotImplementedError)):
        case.fused()


def test_explain_names_the_engine_and_why_not_the_others(monkeypatch):
    call = ([1, 64, 8, 8], [64, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1)
    plan = plans.read(ops.explain_cpu(*call, "float64"))
    assert plan.kernel == "composed"
    assert [each.kernel for each in plan.rejected] == ["winograd", "direct", "onednn"]
    assert all(f"\n  not {each.kernel}: {each.reason}" in plan.text for each in plan.rejected)
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    plan = plans.read(ops.explain_cpu(*call, "float32"))
    assert plan.kernel == "composed"
    assert {each.reason for each in plan.rejected} == {"RESNET_FUSED_CPU_ENGINE is composed"}
    with pytest.raises(RuntimeError, match="int8"):
        ops.explain_cpu([1, 64, 8, 8], [64, 64, 1, 1], [1, 1], [0, 0], [1, 1], 1, "int8")
