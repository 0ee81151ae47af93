"""Infinities and NaNs from a BatchNorm are in the same positions as in eager, however an engine folds it."""

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from support import TINY_EPS

from resnet_fused import ops, reference

pytestmark = pytest.mark.usefixtures("engine")

INF, NAN = float("inf"), float("nan")
CHANNELS = 32
# gamma, beta, mean, var and convolution bias of one channel; factors of weight and x
USUAL = dict(gamma=1.0, beta=0.5, mean=0.25, var=1.0, bias=None, weight=0.1, x=1.0)
CASES = {
    "variance 0": dict(var=0.0),
    "variance 0, a bias": dict(var=0.0, bias=2.0),
    "variance 0, a bias like the mean": dict(var=0.0, bias=2.0, mean=2.0),
    "variance 0 and gamma 0": dict(var=0.0, gamma=0.0, bias=1.0),
    "infinite gamma, a bias": dict(gamma=INF, bias=1.0),
    "infinite gamma, a bias like the mean": dict(gamma=INF, bias=1.0, mean=1.0),
    "infinite bias": dict(bias=INF),
    "infinite bias, gamma 0": dict(bias=INF, gamma=0.0),
    "infinite mean": dict(mean=INF, bias=1.0),
    "infinite beta": dict(beta=-INF, bias=1.0),
    "infinite variance": dict(var=INF, bias=1.0),
    "gamma NaN": dict(gamma=NAN, bias=1.0),
    "variance below 0": dict(var=-1.0, bias=1.0),
    "the mean times the scale overflows, the bias near it": dict(mean=1e30, bias=1e30, gamma=1e20),
    "bias - mean overflows": dict(mean=3e38, bias=-3e38, gamma=0.5),
    "a weight times the scale overflows": dict(gamma=1e38, weight=1e3, x=1e-4),
    "a weight times the scale overflows, a bias": dict(gamma=1e30, weight=1e10, x=1e-20, bias=1.0),
}


class Convolution:
    def __init__(self, change, kernel=3, seed=0):
        g, v = torch.Generator().manual_seed(seed), USUAL | change
        self.x = torch.randn(2, CHANNELS, 9, 9, generator=g) * v["x"]
        self.x[:, :, 2:6, 2:6] = 0  # a window of zeros: times an infinite scale it is NaN
        self.x = self.x.contiguous(memory_format=torch.channels_last)
        self.weight = torch.randn(CHANNELS, CHANNELS, kernel, kernel, generator=g) * v["weight"]
        vectors = torch.ones(4, CHANNELS) * torch.tensor([USUAL[n] for n in ("gamma", "beta", "mean", "var")])[:, None]
        vectors[:, 5] = torch.tensor([v[n] for n in ("gamma", "beta", "mean", "var")])
        self.bias = None
        if v["bias"] is not None:
            self.bias = torch.zeros(CHANNELS)
            self.bias[5] = v["bias"]
        self.norm = (*vectors, TINY_EPS)
        self.shape = ([1, 1], [kernel // 2] * 2, [1, 1])

    def args(self, to=None):
        tensors = (self.x, self.weight, self.bias, *self.norm[:4])
        return (*(t if t is None or to is None else t.to(to) for t in tensors), TINY_EPS, *self.shape, 1)

    def eager(self, to=None, residual=None, relu=True):
        return reference.conv_bn_act(*self.args(to), residual, relu)


@pytest.mark.parametrize("change", CASES)
@pytest.mark.parametrize("kernel", [1, 3])
def test_conv_bn_act(change, kernel):
    conv = Convolution(CASES[change], kernel)
    for relu in (False, True):
        for residual in (None, conv.x):
            found = ops.conv_bn_act(*conv.args(), residual, relu, False, False)
            truth = conv.eager(torch.float64, None if residual is None else residual.double(), relu)
            assert_close(found, conv.eager(None, residual, relu), truth)


@pytest.mark.parametrize("change", CASES)
def test_packed_weight_under_changing_batch_norms(change):
    """The packed weight is also correct for an ordinary BatchNorm before and after the extreme one."""
    conv, usual = Convolution(CASES[change]), Convolution({})
    conv.weight, conv.x = usual.weight, usual.x
    for each in (usual, conv, usual):
        found = ops.conv_bn_act(*each.args(), None, True, True, False)
        assert_close(found, each.eager(), each.eager(torch.float64))
    ops.forget_packed([usual.weight])


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize(("n", "size"), [(1, 4), (4, 4), (2, 24)], ids=str)
@pytest.mark.parametrize("keep_packed", [False, True])
def test_non_finite_weight_matches_eager(value, n, size, keep_packed):
    """Depending on the size, torch's convolution multiplies the zeros of the padding by the weight or skips them."""
    conv = Convolution({})
    conv.x = torch.randn(n, CHANNELS, size, size)
    conv.weight[3, 0, 0, 0] = value
    found = ops.conv_bn_act(*conv.args(), None, True, keep_packed, False)
    assert_close(found, conv.eager(), conv.eager(torch.float64))


@pytest.mark.parametrize("change", CASES)
def test_other_ops(change):
    main, other = Convolution(CASES[change], 3), Convolution(CASES[change], 1, seed=1)
    found = ops.conv_bn_relu_pool(*main.args(), [3, 3], [2, 2], [1, 1], False, False)
    assert_close(found, *(F.max_pool2d(main.eager(to), 3, 2, 1) for to in (torch.float32, torch.float64)))

    no_pre = (None, None, None, None, 0.0)
    projection = (other.x, other.weight, other.bias, *other.norm, [1, 1], *no_pre)
    found = ops.conv_bn_proj_act(*main.args(), *projection, True, False, False)
    both = [main.eager(to, other.eager(to, relu=False)) for to in (torch.float32, torch.float64)]
    assert_close(found, *both)

    second = Convolution({}, 3, seed=2)
    found = ops.basic_block(*main.args()[:8], *second.args()[1:8], False, False)

    def block(to):
        args = second.args(to)
        return reference.conv_bn_act(main.eager(to), *args[1:], main.x.to(to), True)

    assert_close(found, block(torch.float32), block(torch.float64))
