"""The CUDA ops on a GPU: answers, memory formats, streams, graphs, devices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close

from resnet_fused import reference

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

ops = torch.ops.resnet_fused
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
FORMATS = [torch.contiguous_format, torch.channels_last]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
by_format = pytest.mark.parametrize("memory_format", FORMATS, ids=["nchw", "nhwc"])


def randn(*shape, dtype=torch.float32, memory_format=torch.contiguous_format, device="cuda"):
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=memory_format)


def batch_norm(c, dtype, device="cuda"):
    """gamma, beta, mean, var, eps"""
    low_high = [(0.5, 1.5), (-1, 1), (-1, 1), (0.5, 2)]
    return [(torch.rand(c, device=device) * (b - a) + a).to(dtype) for a, b in low_high] + [1e-3]


def vectors_dtype(dtype):
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def as64(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


def check(op, expected, args, memory_format=None):
    got = op(*args) if op is ops.bn_add_act else op(*args, False)
    eager, truth = expected(*args), expected(*as64(args))
    if got.dtype == torch.float64:  # eager is the truth here: its own error cannot be measured
        torch.testing.assert_close(got, truth, rtol=1e-12, atol=1e-12)
    else:
        assert_close(got, eager, truth)
    assert got.is_contiguous(memory_format=memory_format)
    return got


@by_dtype
@by_format
@pytest.mark.parametrize("c", [8, 64, 72, 3, 2048])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("relu", [False, True])
def test_bn_add_act(dtype, memory_format, c, residual, relu):
    x = randn(3, c, 14, 10, dtype=dtype, memory_format=memory_format)
    args = [x, *batch_norm(c, vectors_dtype(dtype)), x.flip(0) if residual else None, relu]
    check(ops.bn_add_act, reference.bn_add_act, args, memory_format)


@by_dtype
@by_format
@pytest.mark.parametrize("same", [False, True], ids=["float32-bn", "same-bn"])
def test_conv_bn_act(dtype, memory_format, same):
    x = randn(4, 64, 15, 15, dtype=dtype, memory_format=memory_format)
    weight = randn(128, 32, 3, 3, dtype=dtype) / 17
    bias, bn = randn(128, dtype=dtype), batch_norm(128, dtype if same else vectors_dtype(dtype))
    for residual in (None, randn(4, 128, 8, 8, dtype=dtype, memory_format=memory_format)):
        args = [x, weight, bias, *bn, [2, 2], [1, 1], [1, 1], 2, residual, True]
        check(ops.conv_bn_act, reference.conv_bn_act, args, memory_format)


@by_dtype
@by_format
def test_conv_bn_proj_act(dtype, memory_format):
    x = randn(2, 64, 16, 16, dtype=dtype, memory_format=memory_format)
    weight, proj_weight = randn(72, 64, 3, 3, dtype=dtype) / 24, randn(72, 64, 1, 1, dtype=dtype) / 8
    bn, proj_bn = (batch_norm(72, vectors_dtype(dtype)) for _ in range(2))
    args = [
        x,
        weight,
        None,
        *bn,
        [2, 2],
        [1, 1],
        [1, 1],
        1,
        x,
        proj_weight,
        randn(72, dtype=dtype),
        *proj_bn,
        [2, 2],
        True,
    ]
    check(ops.conv_bn_proj_act, reference.conv_bn_proj_act, args, memory_format)


@by_dtype
@by_format
def test_conv_bn_relu_pool(dtype, memory_format):
    x = randn(2, 3, 64, 64, dtype=dtype, memory_format=memory_format)
    bn = batch_norm(64, vectors_dtype(dtype))
    args = [x, randn(64, 3, 7, 7, dtype=dtype) / 12, None, *bn, [2, 2], [3, 3], [1, 1], 1, [3, 3], [2, 2], [1, 1]]

    def expected(*a):
        return F.max_pool2d(reference.conv_bn_act(*a[:12]), a[12], a[13], a[14])

    check(ops.conv_bn_relu_pool, expected, args, memory_format)


def test_channels_last_weight_decides_too():
    x, weight = randn(2, 8, 6, 6), randn(16, 8, 3, 3, memory_format=torch.channels_last)
    y = ops.conv_bn_act(x, weight, None, *batch_norm(16, torch.float32), [1, 1], [1, 1], [1, 1], 1, None, True, False)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_strided_misaligned_and_foreign_inputs():
    base = randn(4, 20, 9, 11, dtype=torch.bfloat16, memory_format=torch.channels_last)
    x = base[1:, 3:19, 1:, 2:]
    bn = [v[::2] for v in batch_norm(32, torch.float16)[:4]]
    got = ops.bn_add_act(x, *bn, 1e-3, x, True)  # a float16 BatchNorm under bfloat16: eager has no such mix
    wide = [v.float() for v in bn]
    eager = reference.bn_add_act(x, *wide, 1e-3, x, True)
    assert_close(got, eager, reference.bn_add_act(*as64([x, *wide, 1e-3, x, True])))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
def test_empty(shape):
    assert ops.bn_add_act(torch.empty(shape, device="cuda"), *batch_norm(8, torch.float32), None, True).shape == shape


def test_captured_in_a_graph():
    """Nothing synchronises, and a replay reads the tensors' values of that moment, BatchNorm's too."""
    x, weight = randn(2, 64, 8, 8, memory_format=torch.channels_last), randn(64, 64, 3, 3) / 24
    bn = batch_norm(64, torch.float32)

    def call():
        return ops.conv_bn_act(x, weight, None, *bn, [1, 1], [1, 1], [1, 1], 1, x, True, False)

    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    x.copy_(randn(2, 64, 8, 8))
    bn[2].add_(1)
    graph.replay()
    torch.testing.assert_close(y, call())


def test_runs_on_the_current_stream():
    x, bn = randn(64, 64, 56, 56, memory_format=torch.channels_last), batch_norm(64, torch.float32)
    want = ops.bn_add_act(x + 1, *bn, None, True)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        x.add_(1)  # after the sleep: a launch on another stream would read the old x
        got = ops.bn_add_act(x, *bn, None, True)
    torch.cuda.synchronize()
    torch.testing.assert_close(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_other_device():
    x, bn = randn(2, 8, 4, 4, device="cuda:1"), batch_norm(8, torch.float32, device="cuda:1")
    weight = randn(16, 8, 3, 3, device="cuda:1")
    wide = batch_norm(16, torch.float32, device="cuda:1")
    got = ops.bn_add_act(x, *bn, None, True)
    y = ops.conv_bn_act(x, weight, None, *wide, [1, 1], [1, 1], [1, 1], 1, None, True, False)
    assert got.device == y.device == x.device
    assert torch.cuda.current_device() == 0
    assert_close(got, reference.bn_add_act(x, *bn), reference.bn_add_act(*as64([x, *bn])))


def test_refusals_name_the_devices():
    x, bn = randn(2, 8, 4, 4), batch_norm(8, torch.float32)
    with pytest.raises(RuntimeError, match=r"gamma is on cpu but x is on cuda:0; move both to one device"):
        ops.bn_add_act(x, bn[0].cpu(), *bn[1:], None, True)
