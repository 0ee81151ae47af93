"""Replayed convolutions that wait and run together: the results are those of the ops, one by one.

On processors with AMX those in bfloat16 run depth first, all others layer by layer.
"""

import random
import threading
import weakref

import pytest
import torch
from op_case import lay_out
from replay_case import call, conv, image, network
from support import RecordedOps
from torch import nn

import resnet_fused
from resnet_fused import ops, reference
from resnet_fused.chain import program

BATCHES = [1, 2, 3, 5]
THREADS = [1, 2, 3]
ONES = [1, 1]
with_both_dtypes = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])


def block_by_block(module, x):
    with RecordedOps():  # which sees every op
        return call(module, x)


def images(dtype, batch, size):
    return image(dtype, size, batch, torch.channels_last)


def dtype_of(module):
    return next(module.parameters()).dtype


def same(actual, expected):
    return torch.equal(actual.isnan(), expected.isnan()) and torch.equal(actual.nan_to_num(), expected.nan_to_num())


def check_replays(module, batch, size, threads):
    x, other = (images(dtype_of(module), batch, size) for _ in range(2))
    torch.set_num_threads(threads)
    expected = [block_by_block(module, given) for given in (x, other)]
    call(module, x)
    for given, result in ((x, 0), (other, 1), (x, 0)):
        assert same(call(module, given), expected[result])


# ----- networks
@pytest.mark.thinned
@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-50", "CIFAR", "pre-activation"])
def test_a_replay_is_the_same_call(name, threads, dtype, own_isa):
    fused = network(name, dtype, torch.channels_last)
    for batch in BATCHES:
        check_replays(fused, batch, 35, threads)


@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
def test_engines_may_differ(threads, dtype, own_isa):
    fused = network("ResNeXt", dtype, torch.channels_last)
    for batch in BATCHES:
        check_replays(fused, batch, 40, threads)


def large_stage(dtype):
    torch.manual_seed(0)
    shortcut = nn.Sequential(nn.Conv2d(64, 256, 1, bias=False), nn.BatchNorm2d(256))
    blocks = [reference.Bottleneck(64, 64, downsample=shortcut), reference.Bottleneck(256, 64)]
    eager = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Sequential(*blocks), nn.ReLU()).eval().to(dtype)
    return resnet_fused.convert(eager.to(memory_format=torch.channels_last))


@with_both_dtypes
@pytest.mark.parametrize("threads", [1, 3, 4])
def test_images_larger_than_a_cache(threads, dtype):
    fused = large_stage(dtype)
    for batch in BATCHES:
        check_replays(fused, batch, 56, threads)


def test_threads_may_change_between_calls():
    fused, x = network("ResNet-18", torch.bfloat16, torch.channels_last), images(torch.bfloat16, 3, 35)
    expected = block_by_block(fused, x)
    for threads in (2, 1, 5, 3, 1):
        torch.set_num_threads(threads)
        assert torch.equal(call(fused, x), expected)


@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("batch", BATCHES[:3])
@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-50"])
def test_weights_that_are_not_finite(name, batch, threads, dtype):
    fused, x = network(name, dtype, torch.channels_last), images(dtype, batch, 35)
    torch.set_num_threads(threads)
    layers = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    before = [call(fused, x) for _ in range(2)][-1]
    for layer in (conv(fused), layers[-1]):
        with torch.no_grad():
            kept = layer.weight[0].clone()
            layer.weight[0, 0] = float("inf")
        after = call(fused, x)
        assert same(after, block_by_block(fused, x)) and not torch.equal(after, before)
        with torch.no_grad():
            layer.weight[0] = kept
        assert torch.equal(call(fused, x), before)


def test_python_threads_run_networks_at_once():
    kinds = [("ResNet-18", torch.bfloat16), ("CIFAR", torch.float32)]
    nets = [network(name, dtype, torch.channels_last) for name, dtype in kinds]
    calls = [(net, images(dtype_of(net), batch, 35)) for net in nets for batch in (1, 2, 3)]
    expected = {(net, x): block_by_block(net, x) for net, x in calls}
    wrong = []

    def work(threads):
        torch.set_num_threads(threads)
        for _ in range(3):
            for (net, x), y in expected.items():
                if not torch.equal(call(net, x), y):
                    wrong.append(x.shape)

    workers = [threading.Thread(target=work, args=(threads,)) for threads in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


@with_both_dtypes
def test_python_runs_a_network_within_a_replay(dtype, monkeypatch):
    """As a finalizer or a signal handler may, while the memory of a packed weight is watched."""
    nets = [network(name, dtype, torch.channels_last) for name in ("ResNet-18", "CIFAR")]
    calls = [(net, images(dtype, batch, 35)) for net, batch in zip(nets, (2, 3), strict=True)]
    expected = [block_by_block(*each) for each in calls]
    for net, x in 2 * calls:
        call(net, x)
    for layer in nets[0].modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.clone()  # memory that is not yet watched
    within, finalize = [], weakref.finalize

    def interrupted(*args):
        within.append(call(*calls[1]))
        return finalize(*args)

    monkeypatch.setattr(weakref, "finalize", interrupted)
    assert same(call(*calls[0]), expected[0])
    assert within and all(same(y, expected[1]) for y in within)


# ----- programs of ops
def directly(op, *args):
    return op(*args)


def check_program(run, x, *others):
    """Captures run(call, x), and compares the program's results with those of the ops."""
    with torch.no_grad():
        with program.capture(x) as capture:
            y = run(program.call, x)
        given = {id(t) for t in capture._tensors}
        captured = capture.program(y, given)
        del y
        for each in (*others, x):
            assert same(captured(each), run(directly, each))


def weight(dtype, k, c, r=1):
    w = torch.randn(k, c, r, r) / (c * r * r) ** 0.5
    return w.to(dtype).contiguous(memory_format=torch.channels_last)


def norm(k):
    return (torch.rand(k) + 0.5, torch.randn(k) / 4, torch.randn(k) / 4, torch.rand(k) + 0.5, 1e-5)


class Layer:
    """An op's weights; called with the function that calls ops, and activations."""

    def __init__(self, c, k, r=1, stride=1, groups=1, proj_c=0, proj_stride=1, dtype=torch.bfloat16):
        self.main = (weight(dtype, k, c // groups, r), None, *norm(k), [stride] * 2, [r // 2] * 2, ONES, groups)
        if proj_c:
            self.side = (weight(dtype, k, proj_c), None, *norm(k), [proj_stride] * 2, *[None] * 4, 0.0)

    def __call__(self, run, x, residual=None):
        return run(ops.conv_bn_act, x, *self.main, residual, True, True, False, True)

    def project(self, run, x, other):
        return run(ops.conv_bn_proj_act, x, *self.main, other, *self.side, True, True, False, True)


@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded", "batch"])
def test_inputs_of_any_strides(layout, threads, dtype):
    torch.set_num_threads(threads)
    shapes = [(32, 64), (64, 64, 3), (64, 32), (32, 64, 1, 2)]
    layers = [Layer(*shape, dtype=dtype) for shape in shapes]

    def run(call, x):
        y = x
        for layer in layers:
            y = layer(call, y)
        return y

    for batch in BATCHES:
        xs = [lay_out(torch.randn(2 * batch, 32, 9, 9).to(dtype), "channels_last") for _ in range(2)]
        if layout == "sliced":
            xs = [torch.cat([x, x], 3).contiguous(memory_format=torch.channels_last)[:batch, :, :, ::2] for x in xs]
        elif layout == "batch":
            xs = [x[::2] for x in xs]
        else:
            xs = [lay_out(x[:batch], layout) for x in xs]
        check_program(run, *xs)


@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("more", [dict(r=3), dict(r=3, groups=32), dict(r=9)], ids=["3x3", "groups", "81 taps"])
def test_a_projection_beside_another_engine(more, threads, dtype):
    torch.set_num_threads(threads)
    first, second = Layer(32, 64, dtype=dtype), Layer(64, 64, proj_c=32, dtype=dtype, **more)
    for batch in BATCHES:
        xs = [lay_out(torch.randn(batch, 32, 9, 9).to(dtype), "channels_last") for _ in range(2)]
        check_program(lambda call, x: second.project(call, first(call, x), x), *xs)


@with_both_dtypes
@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("seed", range(6))
def test_results_that_wait_for_later_steps(seed, threads, dtype):
    """Random chains with projections, and residuals from far before."""
    torch.set_num_threads(threads)
    choose = random.Random(seed)
    widths, plan = [32], []
    size_of = [28]
    for step in range(12):
        c, size = widths[-1], size_of[-1]
        k = choose.choice([32, 64, 96, 256])
        stride = 2 if size > 7 and choose.random() < 0.2 else 1
        r = choose.choice([1, 3])
        sizes = (size - 1) // stride + 1
        residuals = [i for i in range(step + 1) if widths[i] == k and size_of[i] == sizes]
        sources = [i for i in range(step + 1) if size_of[i] in (sizes, 2 * sizes)]
        kind = choose.choice(["plain", "residual", "projection"])
        if kind == "projection" and sources:
            other = choose.choice(sources)
            side = dict(proj_c=widths[other], proj_stride=size_of[other] // sizes)
            plan.append((Layer(c, k, r, stride, dtype=dtype, **side), True, other))
        else:
            other = choose.choice(residuals) if kind == "residual" and residuals else None
            plan.append((Layer(c, k, r, stride, dtype=dtype), False, other))
        widths.append(k)
        size_of.append(sizes)

    def run(call, x):
        values = [x]
        for layer, projects, other in plan:
            second = None if other is None else values[other]
            values.append((layer.project if projects else layer)(call, values[-1], second))
        return values[-1]

    for batch in BATCHES:
        xs = [lay_out(torch.randn(batch, 32, 28, 28).to(dtype), "channels_last") for _ in range(2)]
        check_program(run, *xs)
