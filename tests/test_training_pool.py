"""Max-pooling in training: values, argmax, gradients, and whole stems."""

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from op_case import DTYPES, lay_out
from training import POOLS, stem_gradients

from resnet_fused import convert, functional, models, ops, reference
from resnet_fused.chain.spec import Pool
from resnet_fused.chain.train import is_fusable

LAYOUTS = ["contiguous", "channels_last"]
CLOSED = 255


def vectors(channels, dtype=torch.float32):
    return [(torch.rand(channels) + low).to(dtype) for low in (0.5, -0.5, -0.5, 0.5)]


def eager(x, norm, pool):
    """Returns values and indices of max_pool2d, and the activation, in x's dtype."""
    activated = F.relu(F.batch_norm(x, norm[2], norm[3], norm[0], norm[1], eps=1e-5))
    return *F.max_pool2d(activated, *pool, return_indices=True), activated


def places(argmax, x, pool):
    """Converts ``argmax`` (the index within a window) to indices of max_pool2d; -1 where it is CLOSED."""
    kernel, stride, padding = pool
    t = argmax.long()
    p = torch.arange(argmax.shape[2])[:, None] * stride[0] - padding[0] + t // kernel[1]
    q = torch.arange(argmax.shape[3]) * stride[1] - padding[1] + t % kernel[1]
    return torch.where(t == CLOSED, -1, p * x.shape[3] + q)


def expected_places(x, norm, pool):
    out, index, _ = eager(x, norm, pool)
    return torch.where(out > 0, index, -1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("shape", [(2, 64, 14, 15), (1, 3, 5, 4), (2, 130, 7, 9)], ids=str)
def test_values_and_gradients(dtype, layout, pool, shape):
    norm = vectors(shape[1], dtype if dtype is torch.float64 else torch.float32)
    wide = [v.double() for v in norm]
    x = lay_out(torch.randn(shape).to(dtype), layout)
    out, argmax = ops.bn_relu_max_pool(x, *norm, 1e-5, *pool)
    truth = eager(x.double(), wide, pool)[0]
    assert_close(out, eager(x, norm, pool)[0] if dtype in (torch.float32, torch.float64) else truth.to(dtype), truth)
    assert argmax.dtype is torch.uint8
    assert out.stride() == argmax.stride() == F.max_pool2d(x, *pool).stride()
    # The argmax points to a maximum, up to the precision of the dtype.
    place = places(argmax, x, pool)
    reached = eager(x.double(), wide, pool)[2].flatten(2).gather(2, place.clamp_min(0).flatten(2)).view_as(truth)
    torch.testing.assert_close(torch.where(place < 0, 0, reached), truth, rtol=1e-5, atol=1e-5)

    grad = lay_out(torch.randn(out.shape).to(dtype), layout)
    dx = ops.bn_relu_max_pool_backward(grad, argmax, x, *pool)
    sums = reference.bn_relu_max_pool_backward(grad.double(), argmax, x.double(), *pool)
    assert_close(dx, sums.to(dtype), sums)
    assert dx.stride() == x.stride()


@settings(max_examples=40)
@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    data=st.data(),
    h=st.integers(5, 17),
    w=st.integers(5, 17),
    channels=st.sampled_from([1, 5, 64, 65]),
)
def test_any_window(kernel, stride, data, h, w, channels):
    """In float64 and without ties the argmax is that of max_pool2d."""
    pool = (kernel, stride, tuple(data.draw(st.integers(0, k // 2)) for k in kernel))
    x, norm = torch.randn(2, channels, h, w, dtype=torch.float64), vectors(channels, torch.float64)
    out, argmax = ops.bn_relu_max_pool(x, *norm, 1e-5, *pool)
    assert torch.equal(places(argmax, x, pool), expected_places(x, norm, pool))
    grad = torch.randn_like(out)
    x.requires_grad_()
    activated = F.relu(F.batch_norm(x.detach(), norm[2], norm[3], norm[0], norm[1], eps=1e-5)).requires_grad_()
    expected = torch.autograd.grad(F.max_pool2d(activated, *pool), activated, grad)[0]
    torch.testing.assert_close(
        ops.bn_relu_max_pool_backward(grad, argmax, x.detach(), *pool), torch.where(activated > 0, expected, 0)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_nan_follow_torch(dtype):
    """As in torch, the argmax is the first of equal values or the last NaN; it is CLOSED where the ReLU is 0."""
    nan, inf = float("nan"), float("inf")
    rows = [[1, 3, 3], [-1, -2, -3], [nan, 5, nan], [5, inf, inf], [-inf, -1, -inf], [0, 0, 0], [-inf, nan, 2]]
    x = torch.tensor(rows).to(dtype)[:, None, None, :]
    one, zero = torch.ones(1), torch.zeros(1)
    out, argmax = ops.bn_relu_max_pool(x, one, zero, zero, one, 0.0, (1, 3), (1, 3), (0, 0))
    expected, index = F.max_pool2d(x.relu(), (1, 3), return_indices=True)
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=0)
    closed = torch.tensor([False, True, False, False, True, True, False])
    assert argmax.flatten().tolist() == torch.where(closed, CLOSED, index.flatten()).tolist()


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float16, 2**-26), (torch.bfloat16, 2**-134)], ids=str)
def test_results_that_round_to_zero_are_closed(dtype, tiny):
    x, one = torch.ones(1, 1, 2, 2).to(dtype), torch.ones(1)
    norm = (torch.tensor([tiny]), torch.zeros(1), torch.zeros(1), one, 0.0)
    out, argmax = ops.bn_relu_max_pool(x, *norm, (2, 2), (2, 2), (0, 0))
    assert out.item() == 0
    assert argmax.item() == CLOSED


def test_results_are_bitwise_equal_on_any_thread_count():
    x, norm = torch.randn(3, 64, 33, 31).to(memory_format=torch.channels_last), vectors(64)
    runs = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        out, argmax = ops.bn_relu_max_pool(x, *norm, 1e-5, *POOLS[0])
        runs.append((out, argmax, ops.bn_relu_max_pool_backward(out, argmax, x, *POOLS[0])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    x, norm = lay_out(torch.randn(2, 8, 7, 6), layout), vectors(8)
    torch.library.opcheck(ops.bn_relu_max_pool, (x, *norm, 1e-5, *POOLS[0]))
    out, argmax = ops.bn_relu_max_pool(x, *norm, 1e-5, *POOLS[0])
    torch.library.opcheck(ops.bn_relu_max_pool_backward, (out, argmax, x, *POOLS[0]))
    empty = torch.empty(0, 8, 7, 6)
    assert ops.bn_relu_max_pool(empty, *norm, 1e-5, *POOLS[0])[0].shape == (0, 8, 4, 3)


WRONG = {
    r"pool_kernel \[16, 16\] has 256 elements; at most 255": dict(pool=((16, 16), (1, 1), (0, 0))),
    r"pool_padding \[2, 1\] is more than half of pool_kernel \[3, 3\]": dict(pool=((3, 3), (2, 2), (2, 1))),
    r"a pooling window of \[30, 3\] is larger than its input 20x20": dict(pool=((30, 3), (2, 2), (0, 0))),
    "mean and var are absent": dict(norm=[None] * 4),
    r"gamma has shape \[7\]; \[8\] expected": dict(norm=vectors(7)),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_arguments_are_refused(sentence):
    given = dict(pool=POOLS[0], norm=vectors(8)) | WRONG[sentence]
    with pytest.raises(RuntimeError, match=f"bn_relu_max_pool: {sentence}"):
        ops.bn_relu_max_pool(torch.randn(1, 8, 20, 20), *given["norm"], 1e-5, *given["pool"])


@pytest.mark.parametrize(
    ("grad", "argmax", "sentence"),
    [
        (torch.empty(1, 8, 9, 10), torch.empty(1, 8, 10, 10, dtype=torch.uint8), r"grad has shape \[1, 8, 9, 10\]"),
        (torch.empty(1, 8, 10, 10), torch.empty(1, 8, 10, 10), r"argmax has shape \[1, 8, 10, 10\] and dtype Float"),
        (torch.empty(1, 8, 10, 10), torch.empty(8, 10, 10, dtype=torch.uint8), r"argmax has shape \[8, 10, 10\]"),
        (torch.empty(1, 8, 10, 10).half(), torch.empty(1, 8, 10, 10, dtype=torch.uint8), "grad has dtype Half but x"),
    ],
    ids=["shape", "dtype", "dimensions", "half"],
)
def test_wrong_gradient_arguments_are_refused(grad, argmax, sentence):
    with pytest.raises(RuntimeError, match=f"bn_relu_max_pool_backward: {sentence}"):
        ops.bn_relu_max_pool_backward(grad, argmax, torch.empty(1, 8, 20, 20), *POOLS[0])


def test_gradient_refuses_large_windows():
    x = torch.empty(1, 8, 20, 20)
    grad, argmax = torch.empty(1, 8, 5, 5), torch.empty(1, 8, 5, 5, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"bn_relu_max_pool_backward: pool_kernel \[16, 16\] has 256 elements"):
        ops.bn_relu_max_pool_backward(grad, argmax, x, (16, 16), (1, 1), (0, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_network_stem_trains_with_fused_pooling(dtype):
    """The stem is one op that saves a byte per pooled value; its gradients match float64 about as well as eager's."""
    torch.manual_seed(0)
    net = convert(models.resnet18()).train()
    wide = models.resnet18().train().double()
    wide.load_state_dict(net.state_dict())
    plain = models.resnet18().train()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    saved = []
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y, found = stem_gradients(net, x)
    assert [t.dtype for t in saved if t.shape == y.shape] == [torch.uint8]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        plain_y, eagers = stem_gradients(plain, x)
    truth_y, truths = stem_gradients(wide, x.double())
    assert y.shape == truth_y.shape
    assert (y - truth_y).norm() <= 1.1 * (plain_y - truth_y).norm() + 1e-6 * truth_y.norm()
    for a, b, t in zip(found, eagers, truths, strict=True):
        assert (a - t).norm() <= 2 * (b - t).norm() + 1e-6 * t.norm()
    torch.testing.assert_close(net.bn1.running_mean, plain.bn1.running_mean, rtol=1e-2, atol=1e-3)


def test_unsupported_pooling_stays_a_layer():
    net = convert(models.resnet18()).train()
    x = torch.randn(2, 3, 32, 32)
    net.maxpool = torch.nn.MaxPool2d(3, 2, 1, dilation=1, ceil_mode=True)
    names = node_names(net._stem(x))
    assert "MaxPool2DWithIndicesBackward0" in names
    net.maxpool = torch.nn.MaxPool2d(16, 1, 0)
    assert not is_fusable(Pool((16, 16), (1, 1), (0, 0)), x)
    net.maxpool = torch.nn.MaxPool2d(3, 2, 1)
    names = node_names(net._stem(x))
    assert not any("MaxPool2D" in name for name in names)


def node_names(y):
    found, todo = set(), [y.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [each for each, _ in node.next_functions]
    return {node.name() for node in found}


def test_conv_bn_relu_pool_trains_with_fused_pooling():
    x, weight = torch.randn(2, 3, 20, 20), (torch.randn(8, 3, 7, 7) / 12).requires_grad_()
    gamma, beta, mean, var = vectors(8)
    bn = functional.BatchNorm(mean, var, gamma, beta)
    y = functional.conv_bn_relu_pool(x, weight, bn)
    assert not any("MaxPool2D" in name for name in node_names(y))
    assert y.shape == (2, 8, 5, 5)
