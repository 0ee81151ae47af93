"""The check of a CUDA kernel's first result, without a GPU: the results are given."""

from __future__ import annotations

import re

import pytest
import torch
from cuda_cases.op_layer import args_of_every_op, batch_norm

from resnet_fused import first_use, reference


@pytest.fixture(autouse=True)
def _new_process():
    first_use._outcomes.clear()
    first_use._tries.clear()


def test_nonfinite_error_is_wrong():
    x = torch.linspace(1, 2, 24).view(2, 3, 2, 2)
    for value in (torch.nan, torch.inf):
        got = x.clone()
        got[1, 2, 0, 1] = value
        with pytest.warns(RuntimeWarning, match=r"error inf where \S+ is allowed, output 0, first at \[1, 2, 0, 1\]"):
            verdict = first_use._compare("bn_add_act", got, "a kernel", x, *[None] * 4, 0.0, None, False, False)
        assert verdict == first_use.WRONG
        first_use._outcomes.clear()
        first_use._tries.clear()


def test_finite_result_where_eager_overflows_is_right():
    """The convolution exceeds the range of float16, and BatchNorm scales the result down again."""
    x, weight = torch.full((1, 64, 4, 4), 100.0).half(), torch.full((8, 64, 3, 3), 4.0).half()
    weight[:4] /= 256  # eager overflows only in the other channels
    bn = [torch.ones(8), torch.zeros(8), torch.zeros(8), torch.full((8,), 1e8), 0.0]
    args = [x, weight, None, *bn[:4], 1.0, [1, 1], [1, 1], [1, 1], 1, None, True, False, False]
    call = first_use._Call("conv_bn_act", args)
    exact = reference.conv_bn_act(*call.float64_args())
    assert not reference.conv_bn_act(*call.eager_args()).isfinite().all()
    [right] = first_use.judge(call, [exact.half()])
    assert right.error <= right.allowed
    [wrong] = first_use.judge(call, [exact.half() * 2])
    assert not wrong.error <= wrong.allowed


def test_either_relu_mask_near_zero_is_right():
    """bn(x) = 1e-6 is a difference of values near 1: rounded in float32 it may be <= 0, though eager's is positive."""
    x, grad = torch.full((2, 3, 4, 4), -1 + 1e-6), torch.rand(2, 3, 4, 4) + 1
    x[:, :, 0] = torch.randn(2, 3, 4)
    ones = torch.ones(3)
    args = [grad, x, None, ones, 0 * ones, ones - 1e-5, 1e-5, None, True]
    closed = [torch.where(x < -0.9, 0, grad), *args[1:-1], False]
    dx = reference.bn_act_backward(*closed)
    assert (dx - reference.bn_act_backward(*args)).abs().max() > 0.9
    assert first_use._compare("bn_act_backward", dx, "a kernel", *args, None, None, 0.0, False) == first_use.RIGHT
    sums = reference.bn_act_backward_reduce(*closed)
    assert (sums[0] - reference.bn_act_backward_reduce(*args)[0]).abs().max() > 9
    assert first_use._compare("bn_act_backward_reduce", *sums, "a sum", *args) == first_use.RIGHT


def test_statistics_are_judged_on_the_stored_output():
    """Not on the unrounded convolution. Their error is that of float32, not bfloat16."""
    args = args_of_every_op()["conv_stats"]
    pre_bn, mean, var = reference.conv_stats(*args[:-2])
    assert first_use._compare("conv_stats", pre_bn, mean, var, "right", *args) == first_use.RIGHT
    mean[3] += 5e-5
    with pytest.warns(RuntimeWarning, match=r"output 1, first at \[3\]"):
        assert first_use._compare("conv_stats", pre_bn, mean, var, "wrong", *args) == first_use.WRONG


def test_wrong_gradient_near_a_kink_is_found():
    x, grad = torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6)
    bn = batch_norm(8)
    dx = reference.bn_act_backward(grad, x, *bn)
    dx[1, 2, 3, 4] += 0.01
    args = [grad, x, *bn, None, True, None, None, 0.0, False]
    with pytest.warns(RuntimeWarning, match=r"first at \[1, 2, 3, 4\]"):
        assert first_use._compare("bn_act_backward", dx, "a kernel", *args) == first_use.WRONG
    sums = [s.clone() for s in reference.bn_act_backward_reduce(grad, x, *bn)]
    sums[1][3] += 0.01
    with pytest.warns(RuntimeWarning, match=r"output 1, first at \[3\]"):
        assert first_use._compare("bn_act_backward_reduce", *sums, "a sum", *args[:-4]) == first_use.WRONG


def test_wrong_argmax_is_found():
    x, bn, pool = torch.randn(2, 8, 9, 8), batch_norm(8), ([3, 3], [2, 2], [1, 1])
    out, argmax = reference.bn_relu_max_pool(x, *bn, *pool)
    args = [x, *bn, *pool, False]
    assert first_use._compare("bn_relu_max_pool", out, argmax, "right", *args) == first_use.RIGHT
    place = (argmax == 4).nonzero()[0].tolist()
    argmax[tuple(place)] = 5
    with pytest.warns(RuntimeWarning, match=re.escape(f"output 1, first at {place}")):
        assert first_use._compare("bn_relu_max_pool", out, argmax, "wrong", *args) == first_use.WRONG
