"""CUDA ops on a GPU: results, memory formats, streams, graphs and devices.

These tests hold for every RESNET_FUSED_CUDA_ENGINE; tests/test_cuda_launches.py tests which kernels run.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from gpu_case import batch_norm, by_format, by_kind, conv_args, less_exact, randn

from resnet_fused import reference

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
ops = torch.ops.resnet_fused
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def vectors_dtype(dtype):
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


NO_PRE = [None, None, None, None, 0.0]


def as64(values):
    return [v.double() if isinstance(v, torch.Tensor) else v for v in values]


def check(op, expected, args, memory_format=None, tf32=False):
    torch.backends.cudnn.allow_tf32 = tf32
    got = op(*args) if op is ops.bn_add_act else op(*args, False, tf32)
    eager, truth = expected(*args), expected(*as64(args))
    if tf32:
        eager = less_exact(eager, truth, lambda: expected(*as64(args)))
    if got.dtype == torch.float64:  # eager is the reference here, so its error is unknown
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
        *NO_PRE,
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


# n, c, h, w, k, r, stride, padding, dilation: every filter and stride, partial tiles, channels that fill no tile, more
# tiles than any GPU runs at once, and split-K
SHAPES = [
    (2, 64, 56, 56, 256, 1, 1, 0, 1),
    (2, 256, 56, 56, 64, 1, 1, 0, 1),
    (3, 200, 9, 7, 72, 1, 2, 0, 1),
    (2, 64, 28, 28, 64, 3, 1, 1, 1),
    (24, 64, 33, 57, 64, 3, 1, 1, 1),
    (2, 128, 28, 28, 128, 3, 2, 1, 1),
    (1, 64, 14, 14, 72, 3, 1, 2, 2),
    (3, 8, 9, 11, 16, 3, 1, 1, 1),
    (2, 16, 13, 7, 24, 3, 2, 0, 3),
    (2, 24, 15, 15, 8, 5, 1, 2, 1),
    (1, 72, 17, 5, 200, 7, 2, 3, 1),
    (8, 256, 14, 14, 256, 3, 1, 1, 1),
    (1, 512, 7, 7, 512, 3, 1, 1, 1),
    (2, 2048, 7, 7, 512, 1, 1, 0, 1),
]
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(map(str, s)))


@by_kind
@by_format
@by_shape
def test_conv_bn_act_of_every_kernel_shape(dtype, tf32, memory_format, shape):
    args, out = conv_args(shape, dtype, memory_format)
    residual = randn(*out, dtype=dtype, memory_format=memory_format)
    for rest in ([None, False], [residual, True]):
        got = check(ops.conv_bn_act, reference.conv_bn_act, args + rest, memory_format, tf32)
        assert torch.equal(got, ops.conv_bn_act(*args, *rest, False, tf32)), "the same sum in every run"


@by_kind
@by_format
@by_shape
def test_pre_activation(dtype, tf32, memory_format, shape):
    """The shift of the pre-activation would show up in padding that is not zero."""
    args, out = conv_args(shape, dtype, memory_format)
    residual = randn(*out, dtype=dtype, memory_format=memory_format)
    args = [args[0], *batch_norm(shape[1], torch.float32), *args[1:], residual, True]
    check(ops.bn_relu_conv_bn_act, reference.bn_relu_conv_bn_act, args, memory_format, tf32)


@by_kind
@by_format
@by_shape
@pytest.mark.parametrize(("proj_c", "proj_stride"), [(64, 1), (24, 2), (1024, 2)])
@pytest.mark.parametrize("pre", [False, True], ids=["", "pre"])
def test_projection(dtype, tf32, memory_format, shape, proj_c, proj_stride, pre):
    args, (n, k, p, q) = conv_args(shape, dtype, memory_format)
    proj_x = randn(n, proj_c, (p - 1) * proj_stride + 1, q * proj_stride, dtype=dtype, memory_format=memory_format)
    weight = randn(k, proj_c, 1, 1, dtype=dtype) / proj_c**0.5
    args += [proj_x, weight, randn(k, dtype=dtype), *batch_norm(k, torch.float32), [proj_stride] * 2]
    args += [*(batch_norm(proj_c, torch.float32) if pre else NO_PRE), True]
    check(ops.conv_bn_proj_act, reference.conv_bn_proj_act, args, memory_format, tf32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@by_format
@pytest.mark.parametrize(
    "shape", [(2, 64, 19, 21), (33, 64, 56, 56), (1, 128, 28, 28), (9, 128, 17, 20), (2, 72, 7, 7)]
)
def test_basic_block(dtype, memory_format, shape):
    """Matches eager and is bit-reproducible, in one launch or two."""
    n, c, h, w = shape
    x = randn(n, c, h, w, dtype=dtype, memory_format=memory_format)
    pairs = [(randn(c, c, 3, 3, dtype=dtype) / (3 * c**0.5), None, *batch_norm(c, torch.float32)) for _ in range(2)]
    same = ([1, 1], [1, 1], [1, 1], 1)

    def eager(x, first, second):
        y = reference.conv_bn_act(x, *first, *same, None, True)
        return reference.conv_bn_act(y, *second, *same, x, True)

    got = ops.basic_block(x, *pairs[0], *pairs[1], False, False)
    truth = eager(x.double(), *(as64(list(pair)) for pair in pairs))
    assert_close(got, eager(x, *pairs), truth)
    assert got.stride() == eager(x, *pairs).stride()
    assert torch.equal(got, ops.basic_block(x, *pairs[0], *pairs[1], False, False))


def test_unknown_engine_is_an_error():
    code = (
        "import torch, resnet_fused.ops as ops\n"
        "x = torch.randn(1, 8, 4, 4, device='cuda'); w = x.new_ones(8, 8, 1, 1)\n"
        "ops.conv_bn_act(x, w, *[None] * 5, 0.0, [1, 1], [0, 0], [1, 1], 1, None, True, False, False)"
    )
    environment = {**os.environ, "RESNET_FUSED_CUDA_ENGINE": "cutlass"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=50)
    assert "RESNET_FUSED_CUDA_ENGINE is cutlass; one of all, torch, sm80" in done.stderr


def test_channels_last_weight_gives_channels_last_output():
    x, weight = randn(2, 8, 6, 6), randn(16, 8, 3, 3, memory_format=torch.channels_last)
    bn = batch_norm(16, torch.float32)
    y = ops.conv_bn_act(x, weight, None, *bn, [1, 1], [1, 1], [1, 1], 1, None, True, False, False)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_strided_misaligned_and_mixed_dtype_inputs():
    base = randn(4, 20, 9, 11, dtype=torch.bfloat16, memory_format=torch.channels_last)
    x = base[1:, 3:19, 1:, 2:]
    bn = [v[::2] for v in batch_norm(32, torch.float16)[:4]]
    got = ops.bn_add_act(x, *bn, 1e-3, x, True)  # eager rejects a float16 BatchNorm with bfloat16
    wide = [v.float() for v in bn]
    eager = reference.bn_add_act(x, *wide, 1e-3, x, True)
    assert_close(got, eager, reference.bn_add_act(*as64([x, *wide, 1e-3, x, True])))


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4)], ids=str)
def test_empty_inputs(shape):
    x, bn = torch.empty(shape, device="cuda"), batch_norm(8, torch.float32)
    assert ops.bn_add_act(x, *bn, None, True).shape == shape
    if shape[2]:
        geometry = ([1, 1], [1, 1], [1, 1], 1)
        y = ops.conv_bn_act(x, randn(8, 8, 3, 3), None, *bn, *geometry, x, True, False, True)
        assert y.shape == shape
        y = ops.bn_relu_conv_bn_act(x, *bn, randn(8, 8, 3, 3), None, *bn, *geometry, None, True, False, True)
        assert y.shape == shape


@by_kind
@pytest.mark.parametrize(("n", "c", "size"), [(2, 64, 8), (1, 512, 7)], ids=["whole", "split"])
def test_captured_in_a_graph(dtype, tf32, n, c, size):
    """Nothing synchronises, and a replay reads the current values of all tensors, including BatchNorm's."""
    x = randn(n, c, size, size, dtype=dtype, memory_format=torch.channels_last)
    weight, bn = randn(c, c, 3, 3, dtype=dtype) / (3 * c**0.5), batch_norm(c, torch.float32)

    def call():
        return ops.conv_bn_act(x, weight, None, *bn, [1, 1], [1, 1], [1, 1], 1, x, True, False, tf32)

    warm = torch.cuda.Stream()
    with torch.cuda.stream(warm):
        call()
    torch.cuda.current_stream().wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = call()
    x.copy_(torch.randn_like(x))
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
def test_second_device():
    x, bn = randn(2, 8, 4, 4, device="cuda:1"), batch_norm(8, torch.float32, device="cuda:1")
    weight = randn(16, 8, 3, 3, device="cuda:1")
    wide = batch_norm(16, torch.float32, device="cuda:1")
    got = ops.bn_add_act(x, *bn, None, True)
    y = ops.conv_bn_act(x, weight, None, *wide, [1, 1], [1, 1], [1, 1], 1, None, True, False, False)
    assert got.device == y.device == x.device
    assert torch.cuda.current_device() == 0
    assert_close(got, reference.bn_add_act(x, *bn), reference.bn_add_act(*as64([x, *bn])))


def test_mixed_device_error_names_the_devices():
    x, bn = randn(2, 8, 4, 4), batch_norm(8, torch.float32)
    with pytest.raises(RuntimeError, match=r"gamma is on cpu but x is on cuda:0; move both to one device"):
        ops.bn_add_act(x, bn[0].cpu(), *bn[1:], None, True)
