"""conv_backward_weight with AMX's kernel: any geometry against float64, values that are not finite, threads, chains."""

import pytest
import torch
from criterion import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from op_case import (
    OpsOfTorch,
    assert_same_bits_with_any_number_of_threads,
    isa_of_kernels,
    lay_out,
    layout_of,
    wherever_they_can,  # noqa: F401  a fixture
)
from training import CLASSES, identity, in_channels

from resnet_fused import ops
from resnet_fused.chain import backward, convolutions

pytestmark = [
    pytest.mark.skipif(isa_of_kernels(torch.bfloat16) != "AMX", reason="this processor has no AMX"),
    pytest.mark.usefixtures("wherever_they_can"),  # also for contiguous tensors
]

# n, c, h, w, k, kernel, stride, padding, dilation
SHAPES = {
    "rows of x": (2, 40, 9, 11, 72, (1, 1), (1, 1), (0, 0), (1, 1)),
    "rows of grad": (3, 72, 9, 11, 40, (1, 1), (1, 1), (0, 0), (1, 1)),
    "strided": (3, 48, 13, 14, 33, (1, 1), (2, 3), (0, 0), (1, 1)),
    "padded": (2, 17, 5, 6, 48, (1, 1), (2, 1), (1, 2), (1, 1)),
    "several images in a chunk": (9, 64, 7, 7, 64, (3, 3), (1, 1), (1, 1), (1, 1)),
    "several bands in an image": (2, 32, 30, 29, 48, (3, 3), (1, 1), (1, 1), (1, 1)),
    "no padding": (2, 33, 12, 13, 31, (3, 3), (1, 1), (0, 0), (1, 1)),
    "wide padding": (2, 16, 6, 5, 16, (3, 3), (1, 1), (3, 4), (1, 1)),
    "3x3 of stride 2": (3, 32, 15, 16, 64, (3, 3), (2, 2), (1, 1), (1, 1)),
    "unequal strides": (2, 24, 17, 12, 40, (2, 7), (3, 1), (0, 3), (1, 1)),
    "dilated": (2, 32, 14, 19, 32, (5, 3), (1, 2), (4, 3), (2, 3)),
    "wide row": (1, 16, 3, 700, 16, (3, 3), (1, 1), (1, 1), (1, 1)),
    "one column": (5, 32, 8, 1, 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    "one pixel": (1, 130, 1, 1, 70, (1, 1), (1, 1), (0, 0), (1, 1)),
    "image": (3, 3, 30, 31, 48, (7, 7), (2, 2), (3, 3), (1, 1)),
    "image, unequal strides": (2, 3, 12, 300, 33, (3, 5), (1, 3), (1, 0), (2, 1)),
    "few channels": (2, 1, 12, 12, 3, (3, 3), (1, 1), (1, 1), (1, 1)),
    "parts": (40, 32, 28, 28, 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    "too much scratch": (1, 1, 3, 400000, 1, (3, 3), (1, 1), (1, 1), (1, 1)),
}


def call(shape, *, pre=False, layout="channels_last", weight_layout=None):
    g = torch.Generator().manual_seed(0)
    n, c, h, w, k, kernel, stride, padding, dilation = shape
    x = torch.randn(n, c, h, w, generator=g)
    weight = torch.full((k, c, *kernel), torch.nan)  # only its shape and layout are used
    grad = torch.randn(torch.nn.functional.conv2d(x, weight, None, stride, padding, dilation).shape, generator=g)
    norm = [torch.rand(c, generator=g) + 0.5 for _ in range(4)] if pre else [None] * 4
    grad, x = (lay_out(t.bfloat16(), layout) for t in (grad, x))
    weight = lay_out(weight.bfloat16(), weight_layout or layout)
    return [grad, x, *norm, 1e-5, weight, stride, padding, dilation, 1]


def torchs(args, dtype):
    """torch's gradient in ``dtype``, from the activation of our pass."""
    grad, x, *norm, eps, weight, stride, padding, dilation, groups = args
    activated = x if norm[2] is None else ops.bn_add_act(x, *norm, eps, None, True)
    tensors = (t.to(dtype) for t in (grad, activated, weight))
    shape = (stride, padding, dilation, False, [0, 0], groups)
    return torch.ops.aten.convolution_backward.default(*tensors, None, *shape, [False, True, False])[1]


def check(args):
    found = ops.conv_backward_weight(*args)
    # in bfloat16, oneDNN with AMX is wrong on outputs that are one pixel wide
    assert_close(found, torchs(args, torch.float32).bfloat16(), torchs(args, torch.float64))
    assert layout_of(found) == layout_of(args[7])
    return found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("pre", [False, True], ids=["plain", "pre"])
def test_any_shape(shape, pre):
    check(call(shape, pre=pre))


@pytest.mark.parametrize("name", ["rows of x", "rows of grad", "several bands in an image", "3x3 of stride 2", "image"])
@pytest.mark.parametrize("layouts", [("contiguous", "contiguous"), ("channels_last", "contiguous"), ("sliced", None)])
def test_any_shape_and_layout(name, layouts):
    layout, weight_layout = layouts
    check(call(SHAPES[name], layout=layout, weight_layout=weight_layout or "contiguous"))


@given(
    st.tuples(*(st.integers(1, most) for most in (4, 70, 20, 20, 70))),
    st.tuples(
        *(st.tuples(st.integers(low, high), st.integers(low, high)) for low, high in ((1, 4), (1, 3), (0, 3), (1, 2)))
    ),
    st.booleans(),
)
@settings(max_examples=60)
def test_any_shape_at_random(sizes, geometry, pre):
    n, c, h, w, k = sizes
    kernel, _, padding, dilation = geometry
    least = [d * (r - 1) + 1 - 2 * p for r, p, d in zip(kernel, padding, dilation, strict=True)]
    check(call((n, c, max(h, least[0]), max(w, least[1]), k, *geometry), pre=pre))


@pytest.mark.parametrize("name", ["rows of x", "rows of grad", "several images in a chunk", "3x3 of stride 2"])
def test_prologue_equals_a_separate_activation_bitwise(name):
    args = call(SHAPES[name], pre=True)
    grad, x, *norm, eps, weight, stride, padding, dilation, groups = args
    activated = ops.bn_add_act(x, *norm, eps, None, True)
    expected = ops.conv_backward_weight(grad, activated, *[None] * 4, eps, weight, stride, padding, dilation, groups)
    assert torch.equal(ops.conv_backward_weight(*args), expected)


@pytest.mark.parametrize(
    "name", ["rows of x", "strided", "several images in a chunk", "3x3 of stride 2", "dilated", "image"]
)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("where", ["grad", "x"])
def test_not_finite_values_match_torch(name, value, where):
    """Inf and NaN are in the same positions as in torch's gradient, although padding is multiplied too."""
    args = call(SHAPES[name])
    args[where == "x"][1, 2, 0, 0] = value
    found, expected = ops.conv_backward_weight(*args), torchs(args, torch.bfloat16)
    assert torch.equal(found.isnan(), expected.isnan())
    assert torch.equal(found.isinf(), expected.isinf())
    assert value == 3e38 or not found.isfinite().all()


@pytest.mark.parametrize("groups", [1, 16])
def test_stride_wider_than_the_image_in_torchs_gradient(groups):
    """With AMX, oneDNN leaves taps that meet only padding unwritten."""
    c, k = (3, 64) if groups == 1 else (16, 16)
    args = call((2, c, 12, 1, k, (3, 3), (2, 2), (1, 2), (1, 1)), pre=True)
    args[7], args[11] = args[7][:, : c // groups].clone(memory_format=torch.contiguous_format), groups
    for _ in range(3):
        dirty = [torch.full_like(args[7], 777.0) for _ in range(50)]
        del dirty
        check(args)


def test_rows_far_apart_need_no_padded_copy():
    """A copy of all rows of the padded image would take 95 GB."""
    args = call((1, 8, 1, 1, 8, (3, 3), (20_000_000, 1), (1_000_000_000, 1), (1, 1)))
    assert ops.conv_backward_weight(*args).isfinite().all()


@pytest.mark.parametrize("kernel", [1, 3])
def test_empty_batch_has_zero_gradient(kernel):
    args = call((0, 32, 9, 9, 32, (kernel, kernel), (1, 1), (1, 1), (1, 1)))
    assert torch.equal(ops.conv_backward_weight(*args), torch.zeros_like(args[7]))


@pytest.mark.parametrize("name", ["rows of x", "several images in a chunk", "parts"])
def test_every_number_of_threads_gives_the_same_bits(name):
    args = call(SHAPES[name], pre=True)
    assert_same_bits_with_any_number_of_threads(lambda: ops.conv_backward_weight(*args))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_chains_use_it_for_every_convolution(cls, monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CPU_ENGINE")
    answers = []  # whether our kernel ran

    def counted(*args):
        with OpsOfTorch() as called:
            found = convolutions.weight_gradient(*args)
        answers.append(found is not None and not called.convolved())
        return found

    monkeypatch.setattr(backward, "weight_gradient", counted)
    block = identity(cls, scale=16).bfloat16()
    x = torch.randn(2, in_channels(block), 7, 7).bfloat16().to(memory_format=torch.channels_last)
    block(x).sum().backward()
    assert len(answers) == sum(isinstance(m, torch.nn.Conv2d) for m in block.modules())
    assert all(answers)
