"""conv_backward_reduce and conv_backward_input of csrc/cuda/ops on CPU tensors with emulated kernels.

And gradients of blocks that use them.
"""

from __future__ import annotations

import pytest
import torch
from criterion import assert_close
from cuda_cases.op_layer import HALVES, as64, away_from_kink, batch_norm, by_dtype, put_on_cpu, randn
from gpu_case import by_format
from relu_sides import away_from_kinks
from support import grant
from training import (
    CLASSES,
    WITH_SHORTCUT,
    assert_trains_as_eager,
    identity,
    in_channels,
    projected,
)

from resnet_fused import reference
from resnet_fused.chain import backward
from resnet_fused.chain.convolutions import is_convolution

# n, c, h, w, k, filter, padding, dilation of the forward convolution; stride 1
SHAPES = [
    (2, 72, 6, 5, 64, 3, 1, 1),
    (3, 64, 9, 8, 128, 1, 0, 1),
    (1, 64, 9, 8, 64, 3, 2, 2),
    (1, 64, 7, 6, 8, 3, 0, 1),
]
ENGINES = [("a100", "torch"), ("a100", "sm80:64x64"), ("h200", "sm80:128x64")]

by_engine = pytest.mark.parametrize(("gpu", "engine"), ENGINES, ids=[f"{g}-{e}" for g, e in ENGINES])


def call(shape, dtype, memory_format=torch.channels_last, grad_addend=False, bn_dtype=None):
    """Returns the op's arguments except the last. No ReLU input is so close to 0 that rounding decides its sign."""
    n, c, h, w, k, r, padding, dilation = shape
    x = randn(n, c, h, w, dtype=dtype, memory_format=memory_format)
    bn = batch_norm(c, bn_dtype or (torch.float64 if dtype is torch.float64 else torch.float32))
    x = away_from_kink(x, bn)
    weight = (randn(k, c, r, r) / (c * r * r) ** 0.5).to(dtype).contiguous(memory_format=memory_format)
    grad = torch.randn_like(torch.nn.functional.conv2d(x, weight, None, 1, padding, dilation))
    return [grad, weight, [padding] * 2, [dilation] * 2, x, *bn, torch.randn_like(x) if grad_addend else None]


def gradient(*args):
    """Returns the reference input gradient. `grad_addend` is added after rounding, as in eager."""
    return reference.conv_backward_reduce(*args)[0]


def check(found, args):
    """Checks the gradient by the criterion, the sums against the gradient found, and the memory format."""
    to_x, *sums = found
    x, *bn = args[4:10]
    assert to_x.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))
    if x.dtype is torch.float64:
        torch.testing.assert_close(to_x, gradient(*args), rtol=1e-12, atol=1e-12)
    else:
        assert_close(to_x, gradient(*args), gradient(*as64(args)))
    want = reference.bn_act_backward_reduce
    for a, e, t in zip(sums, want(to_x, x, *bn), want(*as64([to_x, x, *bn])), strict=True):
        if a.dtype is torch.float64:
            torch.testing.assert_close(a, t, rtol=1e-12, atol=1e-12)
        else:
            assert_close(a, e, t)


@by_engine
@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, HALVES * 2, strict=True)), ids=str)
@by_format
def test_every_engine(layer, gpu, engine, shape, dtype, memory_format):
    on = layer(gpu, engine)
    for grad_addend in (False, True):
        args = call(shape, dtype, memory_format, grad_addend)
        check(on.conv_backward_reduce(*args, False), args)
        kernel, added = "conv_fwd" if engine != "torch" else "bn_backward_reduce", ["bn_add_act_kernel<Config>"]
        launched = on.reports[-1]["launched"]
        assert launched == added * (grad_addend and engine == "torch") + [
            f"{kernel}_kernel<Config>",
            "bn_finish_kernel<Last>",
        ]


@by_engine
@pytest.mark.parametrize(("shape", "dtype"), list(zip(SHAPES, HALVES * 2, strict=True)), ids=str)
@by_format
def test_input_gradient_with_every_engine(layer, gpu, engine, shape, dtype, memory_format):
    on = layer(gpu, engine)
    for grad_addend in (False, True):
        args = call(shape, dtype, memory_format, grad_addend)
        args = [*args[:4], args[-1]]
        found = on.conv_backward_input(*args, False)
        assert found.is_contiguous(memory_format=memory_format)
        assert_close(found, reference.conv_backward_input(*args), reference.conv_backward_input(*as64(args)))
        assert on.reports[-1]["launched"][0] == f"{'bn_add_act' if engine == 'torch' else 'conv_fwd'}_kernel<Config>"


@by_dtype
def test_input_gradient_of_unsupported_convolutions(layer, dtype):
    """Odd channels and float64, of which one tensor is channels_last: torch convolves."""
    on = layer("h200", "sm80")
    args = call((2, 12, 7, 6, 9, 3, 1, 1), dtype, grad_addend=True)
    grad, weight, padding, dilation, addend = [args[0].contiguous(), *args[1:4], args[-1]]
    found = on.conv_backward_input(grad, weight, padding, dilation, addend, False)
    assert found.is_contiguous(memory_format=torch.channels_last)
    args = [grad, weight, padding, dilation, addend]
    if dtype is torch.float64:
        torch.testing.assert_close(found, reference.conv_backward_input(*args), rtol=1e-12, atol=1e-12)
    else:
        assert_close(found, reference.conv_backward_input(*args), reference.conv_backward_input(*as64(args)))
    assert on.reports[-1]["launched"] == ["bn_add_act_kernel<Config>"]
    assert on.conv_backward_input(grad[:0], *args[1:4], None, False).shape == (0, 12, 7, 6)


@pytest.mark.parametrize("tf32", [False, True], ids=["float32", "tf32"])
def test_float32_uses_tf32_only_if_allowed(layer, tf32):
    on, args = layer("a100", "sm80"), call(SHAPES[0], torch.float32)
    found = on.conv_backward_reduce(*args, tf32)
    assert ("conv_fwd_kernel<Config>" in on.reports[-1]["launched"]) == tf32
    if not tf32:
        check(found, args)
    torch.testing.assert_close(found[0], gradient(*args), rtol=5e-3, atol=5e-3)


@by_dtype
@by_format
def test_unsupported_convolutions(layer, dtype, memory_format):
    """Odd channels, float64 and padding above dilation * (filter - 1) use torch's gradient and a separate pass."""
    on = layer("h200", "sm80")
    for shape in ((2, 12, 7, 6, 9, 3, 1, 1), (1, 64, 5, 4, 64, 3, 3, 1)):
        for grad_addend in (False, True):
            args = call(shape, dtype, memory_format, grad_addend)
            check(on.conv_backward_reduce(*args, True), args)
            assert "bn_backward_reduce_kernel<Config>" in on.reports[-1]["launched"]


@by_engine
def test_empty_batch(layer, gpu, engine):
    args = call(SHAPES[0], torch.bfloat16)
    args[0], args[4] = args[0][:0], args[4][:0]
    to_x, *sums = layer(gpu, engine).conv_backward_reduce(*args, False)
    assert to_x.shape == args[4].shape
    assert not any(s.any() for s in sums)


def test_views_and_vectors_of_other_dtypes(layer):
    on, args = layer("a100", "sm80:64x64"), call(SHAPES[0], torch.bfloat16, bn_dtype=torch.bfloat16)
    wide = torch.zeros(3, 80, 7, 6).bfloat16().contiguous(memory_format=torch.channels_last)
    view = wide[1:, :72, 1:, 1:]
    args[4] = view.copy_(args[4])
    check(on.conv_backward_reduce(*args, False), args)
    assert on.reports[-1]["launched"][0] == "conv_fwd_kernel<Config>"


def test_error_messages(layer):
    args = call(SHAPES[0], torch.bfloat16)
    changes = {
        0: (args[0][:1], r"grad has shape \[1, 64, 6, 5\]; \[2, 64, 6, 5\] expected, the shape of the output"),
        1: (args[1].float(), "weight has dtype Float but x has BFloat16"),
        5: (torch.ones(7), r"gamma has shape \[7\]; \[72\] expected"),
        7: (None, "mean and var are absent; give what the forward pass normalised with"),
        10: (args[4][:1], r"grad_addend has shape \[1, 72, 6, 5\] but x has \[2, 72, 6, 5\]"),
    }
    for at, (value, sentence) in changes.items():
        with pytest.raises(RuntimeError, match=f"conv_backward_reduce: .*{sentence}"):
            layer().conv_backward_reduce(*args[:at], value, *args[at + 1 :], False)
    with pytest.raises(RuntimeError, match="conv_backward_input: weight has dtype Float but grad has BFloat16"):
        layer().conv_backward_input(args[0], args[1].float(), [1, 1], [1, 1], None, False)


@pytest.fixture
def as_on_cuda(monkeypatch):
    """Makes autograd's chains call the emulated CUDA ops and treat CPU tensors like CUDA tensors."""

    def install(on):
        put_on_cpu(monkeypatch, on)
        grant(monkeypatch, statistics_epilogue=True, gradient_addend=True)
        called = []

        def fuses_gradient_sums(_grad, weight, conv):
            called.append(is_convolution(weight, conv))
            return called[-1]

        monkeypatch.setattr(backward, "fuses_gradient_sums", fuses_gradient_sums)
        return called

    return install


@pytest.mark.parametrize(("gpu", "engine"), ENGINES[:2], ids=["torch", "sm80"])
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_block_gradients(layer, as_on_cuda, cls, gpu, engine):
    """Gradients of blocks in bfloat16 meet the criterion, also for BatchNorms that get their sums from the op."""
    for block in [identity(cls, 8), projected(cls, scale=8)] if cls in WITH_SHORTCUT else [identity(cls, 8)]:
        x = away_from_kinks(block, torch.randn(2, in_channels(block), 6, 6).bfloat16()).detach()
        block = block.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        on = layer(gpu, engine)
        called = as_on_cuda(on)
        assert_trains_as_eager(block, x, enabled=True, dtype=torch.bfloat16)
        assert any(called)
        launched = [name for report in on.reports for name in report["launched"]]
        assert "conv_fwd_kernel<Config>" in launched or engine == "torch"
