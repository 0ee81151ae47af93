"""csrc/cuda/*ops.cpp on CPU tensors with emulated kernels: argument checks, plans, allocations and launches."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from cuda_cases.op_layer import (
    ENGINES,
    HALVES,
    NO_PRE,
    ONE,
    SHAPES,
    as64,
    batch_norm,
    by_dtype,
    check,
    check_refusals,
    conv_args,
    put_on_cpu,
    randn,
)
from cuda_on_cpu import op_layer
from gpu_case import FORMATS, block_of, by_format, each_block
from op_case import layout_of
from support import grant, randomise

from resnet_fused import convert, models, modules, ops, reference
from resnet_fused.cli._gpus import GPUS

by_engine = pytest.mark.parametrize(("gpu", "engine", "last"), ENGINES, ids=[f"{g}-{e}" for g, e, _ in ENGINES])
by_shape = pytest.mark.parametrize(
    ("shape", "dtype"), list(zip(SHAPES, HALVES * 2, strict=True)), ids=lambda v: str(v).replace(", ", "-").strip("()")
)


@by_engine
@by_shape
@by_format
def test_conv_bn_act(layer, gpu, engine, last, shape, memory_format, dtype):
    on = layer(gpu, engine)
    args, out = conv_args(*shape, dtype, memory_format)
    residual = randn(*out, dtype=dtype, memory_format=memory_format)
    for rest in ([None, False], [residual, True]):
        check(on.conv_bn_act, reference.conv_bn_act, args + rest)
        assert on.reports[-1]["launched"][-1].startswith(last)


@pytest.mark.parametrize(("gpu", "engine"), [("a100", "torch"), ("a100", "sm80"), ("h200", "sm80:64x64:4")])
@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
def test_float32_uses_tf32_only_if_allowed(layer, gpu, engine, tf32):
    on = layer(gpu, engine)
    args, out = conv_args(*SHAPES[0], torch.float32)
    check(on.conv_bn_act, reference.conv_bn_act, [*args, randn(*out), True], tf32 and engine != "torch")
    kernel = "conv_" if tf32 and engine != "torch" else "bn_add_act"
    assert all(name.startswith(kernel) for name in on.reports[-1]["launched"])


@by_engine
@by_shape
def test_pre_activation(layer, gpu, engine, last, shape, dtype):
    on = layer(gpu, engine)
    args, out = conv_args(*shape, dtype)
    args = [args[0], *batch_norm(shape[1]), *args[1:], randn(*out, dtype=dtype), True]
    check(on.bn_relu_conv_bn_act, reference.bn_relu_conv_bn_act, args)
    assert on.reports[-1]["launched"][-1].startswith(last)


@by_engine
@by_format
@pytest.mark.parametrize("pre", [False, True], ids=["", "pre"])
@pytest.mark.parametrize(("proj_c", "proj_stride"), [(64, 1), (128, 2)])
def test_projection(layer, gpu, engine, last, memory_format, pre, proj_c, proj_stride):
    on, dtype = layer(gpu, engine), torch.bfloat16
    args, (n, k, p, q) = conv_args(*SHAPES[1], dtype, memory_format)
    proj_x = randn(n, proj_c, (p - 1) * proj_stride + 1, q * proj_stride, dtype=dtype, memory_format=memory_format)
    weight = randn(k, proj_c, 1, 1, dtype=dtype) / proj_c**0.5
    args += [proj_x, weight, randn(k, dtype=dtype), *batch_norm(k), [proj_stride] * 2]
    args += [*(batch_norm(proj_c) if pre else NO_PRE), True]
    check(on.conv_bn_proj_act, reference.conv_bn_proj_act, args)
    assert on.reports[-1]["launched"][-1].startswith(last)


# GPU, engine, and the kernel without and with a prologue. With statistics, the depth is never split.
STATISTICS = [
    ("a100", "torch", "bn_stats", "bn_add_act"),
    ("a100", "sm80:64x64:3", "conv_fwd", "conv_fwd"),
    ("h200", "sm90", "conv_sm90", "conv_sm90"),
    ("h200", "sm90:256x64:3", "conv_sm90", "conv_sm90"),
    ("h200", "sm90:128x128", "conv_sm90", "conv_sm90"),
    ("h200", "sm90:256x128", "conv_sm90", "conv_fwd"),  # no such tile with a prologue
]


def check_stats(layer, args, kernel):
    """Checks the pre-BN output by the criterion, and its moments against those of the stored values."""

    got = layer.conv_stats(*args, False, False)
    assert layer.reports[-1]["launched"][0].startswith(f"{kernel}_kernel")
    eager = reference.conv_stats(*args)[0]
    assert layout_of(got[0]) == layout_of(eager)
    assert_close(got[0], eager, reference.conv_stats(*as64(args))[0])
    truth = reference.bn_stats(got[0].double())
    for moment, e, t in zip(got[1:], reference.bn_stats(got[0]), truth, strict=True):
        assert_close(moment, e, t)


@pytest.mark.parametrize(
    ("gpu", "engine", "kernel", "prepared"), STATISTICS, ids=[f"{g}-{e}" for g, e, *_ in STATISTICS]
)
@by_shape
@pytest.mark.parametrize("pre", [False, True], ids=["", "pre"])
def test_conv_stats(layer, gpu, engine, kernel, prepared, shape, dtype, pre):
    args, _ = conv_args(*shape, dtype, FORMATS[pre])  # the format does not depend on pre, so each is tested once
    args = [args[0], *(batch_norm(shape[1]) if pre else NO_PRE), *args[1:3], *args[8:]]
    check_stats(layer(gpu, engine), args, prepared if pre else kernel)


@pytest.mark.parametrize(("groups", "c"), [(2, 64), (1, 72)], ids=["groups", "72 channels"])
def test_statistics_unsupported_by_sm90(layer, groups, c):
    weight = (torch.randn(64, c // groups, 3, 3) / (c * 9) ** 0.5).bfloat16()
    x = randn(2, c, 6, 5, dtype=torch.bfloat16, memory_format=torch.channels_last)
    args = [x, *NO_PRE, weight, None, [1, 1], [1, 1], [1, 1], groups]
    check_stats(layer("h200", "sm90"), args, "bn_stats")  # the cost model prefers torch's convolution


@by_dtype
@by_format
@pytest.mark.parametrize("c", [8, 3, 72])
@pytest.mark.parametrize("residual", [False, True])
def test_bn_add_act(layer, dtype, memory_format, c, residual):
    x = randn(2, c, 5, 4, dtype=dtype, memory_format=memory_format)
    bn = batch_norm(c, torch.float64 if dtype is torch.float64 else torch.float32)
    check(layer().bn_add_act, reference.bn_add_act, [x, *bn, x.flip(0) if residual else None, residual])


POOLS = [([3, 3], [2, 2], [1, 1]), ([2, 3], [2, 1], [0, 1]), ([3, 3], [2**31 - 1, 4], [1, 0])]


@by_dtype
@by_format
@pytest.mark.parametrize("c", [8, 3, 72])
@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_pooling_in_training(layer, dtype, memory_format, c, pool):
    """Matches the CPU ops in values, argmax and memory format."""
    x = randn(2, c, 9, 8, dtype=dtype, memory_format=memory_format)
    bn = batch_norm(c, torch.float64 if dtype is torch.float64 else torch.float32)
    on = layer()
    out, argmax = on.bn_relu_max_pool(x, *bn, *pool)
    expected, expected_argmax = ops.bn_relu_max_pool(x, *bn, *pool)
    assert on.reports[-1]["launched"] == ["bn_pool_kernel<Config>"]
    assert layout_of(out) == layout_of(expected)
    assert layout_of(argmax) == layout_of(expected_argmax)
    # Rounding of the scale decides between nearly equal elements.
    assert (argmax != expected_argmax).sum() <= (dtype.itemsize == 2) * argmax.numel() // 100
    truth = reference.bn_add_act(*as64([x, *bn]), None, True)
    truth = F.max_pool2d(truth, *([min(v, 100) for v in pair] for pair in pool))
    if dtype is torch.float64:
        torch.testing.assert_close(out, truth, rtol=1e-12, atol=1e-12)
    else:
        assert_close(out, expected, truth)

    grad = randn(*out.shape, dtype=dtype, memory_format=memory_format)
    dx = on.bn_relu_max_pool_backward(grad, argmax, x, *pool)
    assert on.reports[-1]["launched"] == ["pool_backward_kernel<Config>"]
    assert layout_of(dx) == layout_of(x)
    assert torch.equal(dx, ops.bn_relu_max_pool_backward(grad, argmax, x, *pool)), "sums in one order"


def test_pooling_of_views(layer):
    """A gradient in another format and with gaps, every second pixel of x, and an empty batch."""
    on, pool, bn = layer(), POOLS[0], batch_norm(8)
    x = randn(2, 8, 14, 13, dtype=torch.bfloat16, memory_format=torch.channels_last)[:, :, ::2, 1::2]
    out, argmax = on.bn_relu_max_pool(x, *bn, *pool)
    assert torch.equal(out, on.bn_relu_max_pool(x.contiguous(), *bn, *pool)[0])
    grad = randn(2, 16, *out.shape[2:], dtype=torch.bfloat16)[:, ::2]
    dx = on.bn_relu_max_pool_backward(grad, argmax.contiguous(), x, *pool)
    assert torch.equal(dx, ops.bn_relu_max_pool_backward(grad, argmax, x, *pool))
    none, no_argmax = on.bn_relu_max_pool(x[:0], *bn, *pool)
    assert none.shape == no_argmax.shape == (0, *out.shape[1:])
    assert on.bn_relu_max_pool_backward(none, no_argmax, x[:0], *pool).shape == x[:0].shape
    assert [r["launched"] for r in on.reports[-2:]] == [[], []]


def test_pooling_errors_match_the_cpu_op(layer):
    x, bn = randn(2, 8, 20, 20), batch_norm(8)
    forward = [(x, *bn, [16, 16], [1, 1], [0, 0]), (x, *bn[:2], None, None, 0.0, *POOLS[0]), (x[0], *bn, *POOLS[0])]
    check_refusals(layer().bn_relu_max_pool, ops.bn_relu_max_pool, forward)
    backward = [(x, torch.zeros(2, 8, 10, 10), x, *POOLS[0])]
    check_refusals(layer().bn_relu_max_pool_backward, ops.bn_relu_max_pool_backward, backward)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@by_format
def test_unsupported_convolutions(layer, dtype, memory_format):
    """Groups, odd channels and float64 use torch's convolution and one launch, whichever engine is named."""
    x = randn(2, 12, 7, 6, dtype=dtype, memory_format=memory_format)
    weight, bn = randn(6, 4, 3, 3, dtype=dtype) / 6, batch_norm(6)
    if dtype is torch.float64:
        bn = as64(bn)
    for engine in ("", "sm80", "sm90", "torch"):
        on = layer("h200", engine)
        args = [x, weight, randn(6, dtype=dtype), *bn, [2, 1], [1, 0], [1, 2], 3, None, True]
        check(on.conv_bn_act, reference.conv_bn_act, args)
        assert len(on.reports[-1]["launched"]) == 1


def test_torch_engine_works_in_place(layer):
    """bn_add_act overwrites the convolution's output. Only a residual of another layout is copied."""
    on = layer("a100", "torch")
    args, out = conv_args(*SHAPES[0], torch.bfloat16)
    residual = randn(*out, dtype=torch.bfloat16)
    check(on.conv_bn_act, reference.conv_bn_act, [*args, residual, True])
    assert len(on.reports[-1]["launched"]) == 1
    check(on.bn_relu_conv_bn_act, reference.bn_relu_conv_bn_act, [args[0], *batch_norm(64), *args[1:], residual, True])
    assert len(on.reports[-1]["launched"]) == 2


@by_engine
def test_vectors_of_any_stride_and_dtype(layer, gpu, engine, last):
    """Strided vectors; and float16 and float64 vectors with bfloat16 activations, which eager rejects."""
    args, _ = conv_args(*SHAPES[0], torch.bfloat16)
    wide = [torch.rand(144) + 0.5 for _ in range(4)]
    kinds = (torch.float16, torch.float64, torch.bfloat16, torch.float32)
    vectors = [v.to(dtype)[::2] for v, dtype in zip(wide, kinds, strict=True)]
    bias = torch.randn(144).bfloat16()[::2]
    on = layer(gpu, engine)
    got = on.conv_bn_act(*args[:2], bias, *vectors, 1e-3, *args[8:], None, True, False, False)
    same = [args[0], args[1], bias, *(v.float() for v in vectors), 1e-3, *args[8:], None, True]
    assert_close(got, reference.conv_bn_act(*same), reference.conv_bn_act(*as64(same)))
    one = [args[0], args[1], None, None, None, *batch_norm(1)[2:4], 1e-3, *args[8:], None, False]
    one[5:7] = (v.expand(72) for v in one[5:7])  # a stride of 0
    check(on.conv_bn_act, reference.conv_bn_act, one)


@by_engine
def test_without_batch_norm(layer, gpu, engine, last):
    args, out = conv_args(*SHAPES[0], torch.float16)
    for bias in (None, args[2]):
        bare = [*args[:2], bias, None, None, None, None, 0.0, *args[8:], randn(*out, dtype=torch.float16), True]
        check(layer(gpu, engine).conv_bn_act, reference.conv_bn_act, bare)


@by_engine
def test_views(layer, gpu, engine, last):
    """Tensors not aligned to 16 bytes use torch's convolution; views with gaps are copied."""
    on = layer(gpu, engine)
    base = randn(3, 80, 7, 6, dtype=torch.bfloat16, memory_format=torch.channels_last)
    args, _ = conv_args(2, 64, 6, 5, 72, 3, 1, 1, 1, torch.bfloat16)
    flat = torch.randn(1 + args[0].numel()).bfloat16()
    shifted = flat[1:].as_strided(args[0].shape, args[0].stride())
    assert shifted.data_ptr() % 16
    for x in (base[1:, 3:67, 1:, 1:], base[1:, 8:72, :6, :5], args[0][:1].expand(2, -1, -1, -1), shifted):
        check(on.conv_bn_act, reference.conv_bn_act, [x, *args[1:], None, True])
        check(on.bn_add_act, reference.bn_add_act, [x, *batch_norm(64), x, True])
    assert on.reports[-2]["launched"] == ["bn_add_act_kernel<Config>"]


@by_engine
@pytest.mark.parametrize("shape", [(0, 64, 4, 4), (2, 64, 0, 4)], ids=str)
def test_empty_tensors(layer, gpu, engine, last, shape):
    on, x, bn = layer(gpu, engine), torch.empty(shape, dtype=torch.float16), batch_norm(64)
    assert on.bn_add_act(x, *bn, None, True).shape == shape
    if shape[2]:
        weight = randn(64, 64, 3, 3, dtype=torch.float16)
        y = on.conv_bn_act(x, weight, None, *bn, *ONE, x, True, False, True)
        z = on.bn_relu_conv_bn_act(x, *bn, weight, None, *bn, *ONE, None, True, False, True)
        p = on.conv_bn_proj_act(
            x, weight, None, *bn, *ONE, x, weight[:, :, :1, :1], None, *bn, [1, 1], *NO_PRE, True, False, True
        )
        assert y.shape == z.shape == p.shape == shape
    assert all(not r["launched"] for r in on.reports)


def test_channels_last_weight_gives_channels_last_output(layer):
    x, weight = randn(2, 8, 6, 6), randn(16, 8, 3, 3, memory_format=torch.channels_last)
    for engine in ("torch", "sm80"):
        args = [x, weight, None, *batch_norm(16), *ONE, None, True]
        check(layer("a100", engine).conv_bn_act, reference.conv_bn_act, args, tf32=True)


@pytest.mark.parametrize("schedule", ["rotate", "random"])
@pytest.mark.parametrize(("gpu", "engine", "last"), ENGINES[1:])
def test_other_schedules(layer, schedule, gpu, engine, last):
    args, out = conv_args(*SHAPES[0], torch.bfloat16)
    residual = randn(*out, dtype=torch.bfloat16, memory_format=torch.channels_last)
    check(layer(gpu, engine, schedule).conv_bn_act, reference.conv_bn_act, [*args, residual, True])


def test_errors_match_the_cpu_op(layer):
    x, bn = randn(2, 8, 4, 4), batch_norm(8)
    weight = randn(8, 8, 3, 3)
    bad = [
        (x, weight, None, *batch_norm(7), *ONE, None, True),
        (x, weight.half(), None, *bn, *ONE, None, True),
        (x, weight, None, *bn, *ONE, x[:1], True),
        (x, weight, None, *bn, [1, 1], [1, 1], [1, 1], 3, None, True),
        (x, weight, None, bn[0], None, None, None, 0.0, *ONE, None, True),
    ]
    check_refusals(layer().conv_bn_act, ops.conv_bn_act, [(*args, False, False) for args in bad])


def test_unknown_engine_is_an_error(layer):
    with pytest.raises(RuntimeError, match="RESNET_FUSED_CUDA_ENGINE is cutlass; one of all, torch, sm80"):
        layer(engine="cutlass")


def test_store_past_an_allocation_is_found(library):
    """The emulator tracks each allocation of an op, so all other memory is out of bounds."""
    x = randn(1, 8, 4, 4, memory_format=torch.channels_last)
    on = op_layer.Layer(library, GPUS["a100"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op_layer, "buffers", lambda args: [])  # x is not registered
        with pytest.raises(AssertionError, match="global memory out of bounds"):
            on.bn_add_act(x, None, None, torch.zeros(8), torch.ones(8), 0.0, None, True)


# ---- Python modules on the op layer ----


@pytest.fixture
def on_cuda(monkeypatch):
    """Makes modules call the emulated CUDA ops and treat CPU tensors like CUDA tensors."""

    def install(layer):
        put_on_cpu(monkeypatch, layer)
        grant(monkeypatch, norm_prologue=True)
        return layer

    return install


@each_block
@pytest.mark.parametrize(
    ("gpu", "engine", "kernel"), [("a100", "sm80:64x64:1", "conv_fwd"), ("h200", "sm90:128x128:1", "conv_sm90")]
)
@torch.no_grad()
def test_blocks_launch_once_per_convolution(layer, on_cuda, cls, planes, convolutions, stride, gpu, engine, kernel):
    """Matches eager with one launch per convolution; projection and pre-activation need none of their own."""
    block = block_of(cls, planes, stride, "cpu").bfloat16()
    x = randn(2, planes[0], 7, 6, dtype=torch.bfloat16, memory_format=torch.channels_last)
    eager = cls._eager_class.forward(block, x)
    on = on_cuda(layer(gpu, engine))
    got = block(x)
    launched = [name for report in on.reports for name in report["launched"]]
    one_launch = ["block_fwd_kernel<Config>"] if (cls, stride, gpu) == (modules.FusedBasicBlock, 1, "h200") else None
    assert launched in (one_launch, [f"{kernel}_kernel<Config>"] * convolutions)
    truth = cls._eager_class.forward(block.double(), x.double())
    assert_close(got, eager, truth)
    assert got.stride() == eager.stride()


@torch.no_grad()
def test_resnet18_launches(layer, on_cuda):
    """The stem is torch's convolution and a pooling kernel; each other convolution is one of our launches."""
    model = randomise(models.resnet18(num_classes=4)).eval().bfloat16().to(memory_format=torch.channels_last)
    x = randn(2, 3, 32, 32, dtype=torch.bfloat16, memory_format=torch.channels_last)
    eager, double = model(x), copy.deepcopy(model).double()
    convert(model)
    on = on_cuda(layer("h200", "sm80:64x64"))
    got = model(x)
    first, *others = [name for report in on.reports for name in report["launched"]]
    assert first.startswith("bn_pool")
    assert others.count("conv_fwd_kernel<Config>") == 16
    assert set(others) <= {"conv_fwd_kernel<Config>", "conv_finish_kernel<Config>"}
    assert_close(got, eager, double(x.double()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_stem_trains_with_fused_pooling(layer, on_cuda, dtype):
    """The activation has no separate pass, forward or backward; errors are at most 1.5 times those of the CPU ops."""
    net = randomise(convert(models.resnet18())).train().to(dtype, memory_format=torch.channels_last)
    x = randn(2, 3, 24, 24, dtype=dtype, memory_format=torch.channels_last)

    def train(net):
        y = net._stem(x.to(net.conv1.weight.dtype))
        y.backward(torch.linspace(-1, 1, y.numel()).view(y.shape).to(y))
        return y.detach(), net.conv1.weight.grad, net.bn1.weight.grad, net.bn1.bias.grad

    truth, cpu = train(copy.deepcopy(net).double()), train(copy.deepcopy(net))
    on = on_cuda(layer("h200"))
    found = train(net)
    launched = [name.split("<")[0] for report in on.reports for name in report["launched"]]
    assert [name for name in launched if "pool" in name] == ["bn_pool_kernel", "pool_backward_kernel"]
    assert "bn_add_act_kernel" not in launched[launched.index("bn_stats_kernel") :], "after the convolution"
    for a, b, t in zip(found, cpu, truth, strict=True):
        assert (a - t).norm() <= 1.5 * (b - t).norm() + 1e-6 * t.norm()
