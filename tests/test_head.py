"""avg_pool_linear against float64."""

import pytest
import torch
from criterion import assert_close
from op_case import lay_out

from resnet_fused import ops, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OP = ops.avg_pool_linear


def arguments(n, c, h, w, k, dtype, layout="channels_last", bias=True):
    x = lay_out(torch.randn(n, c, h, w).to(dtype), layout)
    weight = (torch.randn(k, c) / c**0.5).to(dtype)
    return [x, weight, torch.randn(k).to(dtype) if bias else None]


def check(args):
    y, eager = OP(*args), reference.avg_pool_linear(*args)
    assert y.stride() == eager.stride()
    exact = [None if t is None else t.double() for t in args]
    # The definition's mean of bfloat16 and float16 is rounded; the op's is not.
    assert_close(y, eager, reference.avg_pool_linear(*exact))


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("c", "h", "w", "k"),
    [
        (1, 1, 1, 1),
        (3, 7, 7, 10),
        (17, 8, 7, 33),
        (64, 8, 8, 10),
        (100, 1, 1, 1000),
        (512, 7, 7, 1000),
        (2048, 7, 7, 9),
    ],
)
def test_any_shape(dtype, n, c, h, w, k):
    torch.set_num_threads(2)
    check(arguments(n, c, h, w, k, dtype, bias=k != 33))


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("size", [1, 5])
def test_any_strides(dtype, layout, size):
    x, weight, bias = arguments(2, 20, size, 6, 11, dtype, layout)
    wide = torch.full((11, 50), float("nan"), dtype=dtype)
    wide[:, 3:23] = weight
    every = torch.stack([bias, torch.full_like(bias, float("nan"))], 1)[:, 0]
    check([x, weight.t().contiguous().t(), every])
    check([x, wide[:, 3:23], bias])
    check([x[:, 2:19], weight[::2, 2:19], None])
    check([x, weight[:1].expand(11, 20), bias[:1].expand(11)])


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums(dtype):
    """A running sum of 40,000 pixels near 1 would lose three digits in float32."""
    x = 1 + torch.rand(1, 20, 200, 200)
    weight = torch.rand(12, 20)
    check([lay_out(x.to(dtype), "channels_last"), weight.to(dtype), None])
    check([torch.rand(2, 9000, 1, 1).to(dtype), torch.rand(9, 9000).to(dtype), None])


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_not_finite(dtype, value, where):
    for n in (1, 4):
        x, weight, bias = arguments(n, 35, 7, 7, 13, dtype)
        weight[5] = 0
        if where == "x":
            x[-1, 34, 3, 2] = value
        elif where == "weight":
            weight[12, 34] = value
        else:
            bias[3] = value
        check([x, weight, bias])


@pytest.mark.parametrize("engine", ["", "composed"])
def test_float64_and_other_engines_run_eagers_ops(monkeypatch, engine):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", engine)
    args = arguments(2, 20, 5, 6, 11, torch.float32 if engine else torch.float64)
    assert torch.equal(OP(*args), reference.avg_pool_linear(*args))


def test_no_images_or_no_outputs():
    assert OP(*arguments(0, 8, 7, 7, 10, torch.float32)).shape == (0, 10)
    assert OP(*arguments(2, 8, 7, 7, 0, torch.float32)).shape == (2, 0)


def test_opcheck():
    torch.library.opcheck(OP, arguments(2, 20, 5, 6, 11, torch.bfloat16))


def test_freed_weight_is_refused():
    x, weight, bias = arguments(2, 8, 5, 6, 11, torch.float32)
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"avg_pool_linear: weight of shape \[11, 8\] needs 352 bytes but .* has 0"):
        OP(x, weight, bias)
