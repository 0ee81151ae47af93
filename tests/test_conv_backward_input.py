"""conv_backward_input: bit-identical to a convolution with the flipped filter, which its engines read in place.

Where PyTorch is faster, the op calls its gradient; most tests here use our kernels for any shape.
"""

import os

import pytest
import torch
from criterion import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from op_case import (
    DTYPES,
    OpsOfTorch,
    assert_same_bits_with_any_number_of_threads,
    isa_of_kernels,
    lay_out,
    layout_of,
    wherever_they_can,  # noqa: F401  a fixture
)

from resnet_fused import ops, plans

pytestmark = pytest.mark.usefixtures("wherever_they_can")

NO_NORM = (None, None, None, None, 0.0)
LAYOUTS = ["contiguous", "channels_last"]
# r, s, padding, dilation
GEOMETRIES = [(1, 1, (0, 0), (1, 1)), (3, 3, (1, 1), (1, 1)), (3, 3, (2, 0), (1, 1)), (5, 3, (2, 1), (1, 1))]
GEOMETRIES += [(5, 3, (3, 2), (2, 3)), (1, 3, (0, 2), (1, 1)), (3, 1, (0, 0), (2, 1))]
# K, C: whole channel blocks, parts of one, odd numbers, one, enough for Winograd
CHANNELS = [(64, 48), (32, 96), (33, 20), (48, 17), (6, 5), (1, 3)]


def call(channels=(24, 16), geometry=GEOMETRIES[1], dtype=torch.float32, layout="channels_last", n=2, grad_addend=False,
         grad_layout="channels_last"):  # fmt: skip
    g = torch.Generator().manual_seed(0)
    (k, c), (r, s, padding, dilation) = channels, geometry
    x = torch.randn(n, c, 13, 12, generator=g)
    weight = torch.randn(k, c, r, s, generator=g) / (k * r * s) ** 0.5
    grad = torch.randn(torch.nn.functional.conv2d(x, weight, None, 1, padding, dilation).shape, generator=g)
    grad = lay_out(grad.to(dtype), grad_layout)
    other = lay_out(x.to(dtype), layout) if grad_addend else None
    return grad, lay_out(weight.to(dtype), layout), list(padding), list(dilation), other, False


def with_flipped_filter(grad, weight, padding, dilation, grad_addend, _):
    """The same convolution by conv_bn_act, with a flipped copy of the weight."""
    flipped = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
    reach = [d * (size - 1) for d, size in zip(dilation, weight.shape[2:], strict=True)]
    geometry = ([1, 1], [r - p for r, p in zip(reach, padding, strict=True)], dilation, 1)
    return ops.conv_bn_act(grad, flipped, None, *NO_NORM, *geometry, grad_addend, False, False, False)


def torchs(grad, weight, padding, dilation, grad_addend, _):
    shape = ops.conv_backward_input(*(t.to("meta") for t in (grad, weight)), padding, dilation, None, False).shape
    found = torch.nn.grad.conv2d_input(shape, weight, grad, 1, padding, dilation)
    return found if grad_addend is None else found + grad_addend


def kernel_of(grad, weight, padding, dilation, *_):
    """The kernel of the op's plan."""
    x = ops.conv_backward_input(grad.to("meta"), weight.to("meta"), padding, dilation, None, False)
    geometry = ([1, 1], padding, dilation, 1, str(grad.dtype).removeprefix("torch."))
    return plans.read(ops.explain_cpu(x.shape, weight.shape, *geometry, "input gradient")).kernel


def assert_flips_exactly(args):
    found, kernel = ops.conv_backward_input(*args), kernel_of(*args)
    if os.environ["RESNET_FUSED_CPU_ENGINE"] in ("winograd", "direct") and isa_of_kernels(args[0].dtype):
        assert kernel in ("winograd", "direct")
    if kernel == "composed":  # torch's gradient
        wanted = torchs(*args)
        torch.testing.assert_close(found, wanted, equal_nan=True)
        return found
    wanted = with_flipped_filter(*args)
    assert found.shape == wanted.shape
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(nan=7.0), wanted.nan_to_num(nan=7.0))
    return found


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS, ids=str)
@pytest.mark.parametrize("direct", [False, True], ids=["preferred", "direct"])
def test_corners_are_bit_identical(dtype, layout, geometry, channels, direct, own_isa, monkeypatch):
    if direct:
        monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    for n in (1, 3):  # for one image, tasks of the direct kernel pack dense weights themselves
        assert_flips_exactly(call(channels, geometry, dtype, layout, n))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [*LAYOUTS, "sliced"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("grad_addend", [False, True], ids=["alone", "grad_addend"])
@pytest.mark.usefixtures("engine")
def test_every_engine_matches_torch(dtype, layout, geometry, grad_addend):
    args = call(geometry=geometry, dtype=dtype, layout=layout, grad_addend=grad_addend)
    found = assert_flips_exactly(args)
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    if dtype == torch.float64:
        torch.testing.assert_close(found, torchs(*args), rtol=1e-12, atol=1e-12)
    else:
        assert_close(found, torchs(*args), torchs(*double))


@given(
    st.tuples(*(st.integers(1, most) for most in (3, 70, 70, 20, 20, 5, 5))),
    st.tuples(*(st.integers(0, 8) for _ in range(2))),
    st.tuples(*(st.integers(1, 3) for _ in range(2))),
    st.sampled_from(LAYOUTS),
    st.sampled_from(DTYPES),
)
@settings(max_examples=100)
def test_any_shape(sizes, padding, dilation, layout, dtype):
    n, k, c, h, w, r, s = sizes
    reach = [dilation[0] * (r - 1), dilation[1] * (s - 1)]
    padding = [min(p, most, (h_or_w + most - 1) // 2) for p, most, h_or_w in zip(padding, reach, (h, w), strict=True)]
    grad = lay_out(torch.randn(n, k, h, w).to(dtype), "channels_last")
    weight = lay_out(torch.randn(k, c, r, s).to(dtype), layout)
    assert_flips_exactly((grad, weight, padding, list(dilation), None, False))


@pytest.mark.thinned
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("at", [(0, 0, 0, 0), (63, 47, 2, 2), (33, 20, 1, 0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_not_finite(value, at, dtype, layout, own_isa):
    """A padding of zeros times an infinite weight is NaN in a direct convolution, and not in the definition."""
    args = call((64, 48), dtype=dtype, layout=layout)
    args[1][at] = value
    found = assert_flips_exactly(args)
    assert not found[:, at[1]].isfinite().all()
    others = [c for c in range(48) if c != at[1]]
    assert found[:, others].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_reads_only_the_weight(dtype, own_isa):
    """Around the weight, a part of a larger tensor, are NaN."""
    grad, weight, *rest = call((32, 48), dtype=dtype)
    wide = lay_out(torch.full((34, 64, 5, 5), torch.nan, dtype=dtype), "channels_last")
    wide[1:33, 8:56, 1:4, 1:4] = weight
    found = ops.conv_backward_input(grad, wide[1:33, 8:56, 1:4, 1:4], *rest)
    assert torch.equal(found, ops.conv_backward_input(grad, weight, *rest))


def test_every_number_of_threads_gives_the_same_bits(own_isa):
    for dtype in (torch.float32, torch.bfloat16):
        args = call((64, 160), dtype=dtype)
        assert_same_bits_with_any_number_of_threads(lambda args=args: ops.conv_backward_input(*args))


@pytest.mark.skipif(isa_of_kernels(torch.float32) is None, reason="this processor has no AVX2, which our kernels need")
def test_flipped_filter_is_not_materialised():
    """No engine of ours allocates a tensor of the weight's size."""
    args = call((64, 64))
    with OpsOfTorch() as called:
        ops.conv_backward_input(*args)
    assert not called.counts.keys() & {"aten::flip", "aten::contiguous", "aten::clone", "aten::copy_"}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("grad_addend", [False, True], ids=["alone", "grad_addend"])
@pytest.mark.parametrize("isa", ["avx512_bf16", "avx2"])
def test_torchs_gradient_where_the_plan_prefers_it(dtype, geometry, grad_addend, isa, monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CPU_ENGINE")
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", isa)
    args = call(geometry=geometry, dtype=dtype, grad_addend=grad_addend)
    assert kernel_of(*args) == "composed"
    with OpsOfTorch() as called:
        found = ops.conv_backward_input(*args)
    assert called.counts["aten::convolution_backward"] == 1
    double = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    if dtype == torch.float64:
        torch.testing.assert_close(found, torchs(*args), rtol=1e-12, atol=1e-12)
    else:
        assert_close(found, torchs(*args), torchs(*double))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("weight_layout", LAYOUTS)
@pytest.mark.parametrize("grad_layout", LAYOUTS)
def test_output_is_channels_last_if_an_argument_is(grad_layout, weight_layout):
    found = ops.conv_backward_input(*call(layout=weight_layout, grad_layout=grad_layout))
    layout = "channels_last" if "channels_last" in (grad_layout, weight_layout) else "contiguous"
    assert layout_of(found) == layout_of(lay_out(torch.empty(found.shape), layout))
    assert torch.equal(found, ops.conv_backward_input(*call()))


def test_empty_batch():
    grad, *rest = call()
    assert ops.conv_backward_input(grad[:0], *rest).shape == (0, 16, 13, 12)


def test_opcheck():
    for layout in LAYOUTS:
        for grad_addend in (False, True):
            torch.library.opcheck(ops.conv_backward_input, call(layout=layout, grad_addend=grad_addend))
