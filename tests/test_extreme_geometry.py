"""Strides, paddings, dilations and windows of any size: eager's result, or an error of one sentence.

No test allocates much memory: outputs are small, because strides or dilations are as large as paddings.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from op_case import Case, lay_out, pre_args

from resnet_fused import ops, plans, reference
from resnet_fused.chain import convolutions
from resnet_fused.chain.layout import ConvSlots

with_every_engine = pytest.mark.usefixtures("engine")

DTYPES = [torch.float32, torch.bfloat16]
MOST = 2**63 - 1
MOST_EXTENT_IN_TORCH = 1024  # of a filter, for torch's input gradient in bfloat16 (csrc/cpu/plan.cpp)
# stride, padding, dilation of a 3x3 convolution of a 9x9 image that eager computes correctly and in little memory
COMPUTED = [
    *((1, huge, huge) for huge in (3000, 30000, 32768, 2**31, 2**32, 2**40)),  # only the middle tap overlaps the image
    *((huge, 1, 1) for huge in (30000, 2**31, 2**32)),  # one output
    *((huge, huge, 1) for huge in (30000, 2**31, 2**32)),  # nine outputs, one of which overlaps the image
    *((1, padding, padding // 2) for padding in (20, 90)),  # some windows have the image between their taps
    (1, 40, 1),
]
REFUSED = {
    (1, 2**62, 2**62): r"padding is \[4611686018427387904, 4611686018427387904\]; two integers of at most 46116860184",
    (1, 2**62 - 1, 2**62 - 1): r"a 3x3 kernel with dilation \[4611686018427387903, .* is past what 64 bits count",
    (1, MOST, MOST): r"padding is \[9223372036854775807, 9223372036854775807\]",
    (MOST, MOST, 1): r"padding is \[9223372036854775807, 9223372036854775807\]",
    (1, 0, 2**31): r"a 3x3 kernel with dilation \[2147483648, 2147483648\] is larger than the input 9x9",
    (1, 0, 5): r"a 3x3 kernel with dilation \[5, 5\] is larger than the input 9x9",
    (0, 1, 1): r"stride is \[0, 0\]; two integers of at least 1 expected",
    (-MOST - 1, 1, 1): r"stride is \[-9223372036854775808, -9223372036854775808\]; two integers of at least 1",
    (1, -MOST - 1, 1): r"padding is \[-9223372036854775808, -9223372036854775808\]; two integers of at least 0",
    (1, 1, 0): r"dilation is \[0, 0\]; two integers of at least 1",
}
# only we refuse these: eager overflows to another result, or allocates 17 TB
OURS = {
    (1, 0, MOST): r"a 3x3 kernel with dilation \[9223372036854775807, .* is past what 64 bits count over the input 9x9",
    (1, 2**31, 1): r"the output of shape \[2, 8, 4294967303, 4294967303\] has more than 2147483647 elements",
    (1, 2**61, 1): r"the output of shape \[2, 8, 46116860184273\d+, 46116860184273\d+\] has more than 2147483647",
}
ids = dict(ids=str)


def case(geometry, dtype=torch.float32, layout="channels_last", **more):
    stride, padding, dilation = ((value, value) for value in geometry)
    return Case(2, 8, 9, 9, 8, 3, 3, stride, padding, dilation, dtype=dtype, layout=layout, **more)


@pytest.mark.thinned
@with_every_engine
@pytest.mark.parametrize("geometry", COMPUTED, **ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_conv_bn_act(geometry, dtype, layout):
    for groups in (1, 2):
        case(geometry, dtype, layout, groups=groups, residual=True).check()
    pad_of_one_axis = case(geometry, dtype, layout)
    stride, padding, dilation, groups = pad_of_one_axis.geometry
    pad_of_one_axis.geometry = ([stride[0], 1], [padding[0], 1], [dilation[0], 1], groups)
    pad_of_one_axis.check()


@with_every_engine
@pytest.mark.parametrize(("r", "s"), [(1, 1), (3, 1), (3, 3)])
@pytest.mark.parametrize("padding", [2, 5])
def test_padding_wider_than_the_kernel_reaches(r, s, padding):
    """With so many channels that whole columns are copied."""
    for stride in (1, 2):
        Case(2, 64, 3, 4, 40, r, s, (1, stride), (1, padding), (1, 1), dtype=torch.bfloat16).check()


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bfloat16_outputs_one_pixel_wide(layout, stride, monkeypatch):
    """torch's convolution reads uninitialised memory for them if oneDNN multiplies with AMX."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    for seed in range(8):
        sizes = [2**k + d for k in range(3, 20) for d in (0, 17)]
        freed = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in sizes for _ in range(4)]
        del freed
        case = Case(2, 24, 9, 3, 40, 3, 3, (1, stride), (1, 0), (1, 1), dtype=torch.bfloat16, layout=layout, seed=seed)
        case.check()
        grad = torch.randn_like(case.eager())
        found = ops.conv_backward_weight(grad, case.x, *[None] * 4, 0.0, case.weight, *case.geometry)
        at = case.weight.shape, case.geometry[0], case.geometry[1]
        truth = torch.nn.grad.conv2d_weight(case.x.double(), at[0], grad.double(), *at[1:])
        assert_close(found, truth.bfloat16(), truth)


@pytest.mark.parametrize("groups", [1, 2])
def test_training_with_bfloat16_outputs_one_pixel_wide(groups):
    case = Case(4, 32, 9, 1, 24, 3, 3, (2, 2), (1, 1), (1, 1), groups, dtype=torch.bfloat16, layout="channels_last")
    slots = ConvSlots(0, None, (2, 2), (1, 1), (1, 1), groups)
    grad = torch.randn(case._output_shape()).bfloat16().contiguous(memory_format=torch.channels_last)
    args = (2, 1, 1, groups)
    truth = F.conv2d(case.x.double(), case.weight.double(), None, *args)
    gradient = torch.nn.grad.conv2d_weight(case.x.double(), case.weight.shape, grad.double(), *args)
    sizes = [2**k + d for k in range(3, 20) for d in (0, 17)]
    freed = [torch.full((size,), float("nan"), dtype=torch.bfloat16) for size in sizes for _ in range(4)]
    del freed
    assert_close(convolutions.convolve(case.x, [case.weight], slots), truth.bfloat16(), truth)
    found = convolutions.aten_convolution_backward(grad, case.x, case.weight, slots, [True, True, False])
    assert_close(found[1], gradient.bfloat16(), gradient)


@with_every_engine
@pytest.mark.parametrize("huge", [2**31, 2**32, MOST])
def test_ineffective_stride_and_dilation_may_be_huge(huge):
    """The dilation of a 1x1 kernel has no effect, nor has a stride if there is only one output."""
    Case(2, 8, 9, 9, 8, 1, 1, (1, 1), (0, 0), (huge, huge)).check()
    once = Case(1, 8, 9, 9, 8, 3, 3, (huge, huge), (1, 1), (1, 1))
    assert torch.equal(once.fused(), Case(1, 8, 9, 9, 8, 3, 3, (11, 11), (1, 1), (1, 1)).fused())


@pytest.mark.thinned
@with_every_engine
@pytest.mark.parametrize("geometry", COMPUTED, **ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bn_relu_conv_bn_act(geometry, dtype):
    call, pre = case(geometry, dtype), pre_args(8, dtype)

    def eager(to):
        cast = [t.to(to) if isinstance(t, torch.Tensor) else t for t in (*pre, *call.args()[1:])]
        return reference.bn_relu_conv_bn_act(call.x.to(to), *cast)

    found = ops.bn_relu_conv_bn_act(call.x, *pre, *call.args()[1:], False, False)
    assert_close(found, eager(dtype), eager(torch.float64))


@pytest.mark.thinned
@with_every_engine
@pytest.mark.parametrize("geometry", COMPUTED, **ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_bn_proj_act(geometry, dtype):
    call = case(geometry, dtype)
    size = call._output_shape()[2]
    proj = Case(2, 16, size, size, 8, 1, 1, (1, 1), (0, 0), (1, 1), dtype=dtype, layout="channels_last", seed=1)
    shortcut = (proj.x, proj.weight, None, *proj.bn, proj.eps, [1, 1], None, None, None, None, 0.0)
    found = ops.conv_bn_proj_act(*call.args()[:-2], *shortcut, True, False, False)

    def eager(to):
        y = [each.eager(to, relu=False) for each in (call, proj)]
        return torch.relu(y[0] + y[1])

    assert_close(found, eager(dtype), eager(torch.float64))


@pytest.mark.thinned
@with_every_engine
@pytest.mark.parametrize("geometry", COMPUTED, **ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_conv_bn_relu_pool(geometry, dtype):
    call = case(geometry, dtype)
    found = ops.conv_bn_relu_pool(*call.args()[:-2], [3, 3], [2, 2], [1, 1], False, False)
    assert_close(found, *(F.max_pool2d(call.eager(to), 3, 2, 1) for to in (dtype, torch.float64)))


@pytest.mark.thinned
@with_every_engine
@pytest.mark.parametrize("geometry", COMPUTED, **ids)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_training_ops(geometry, dtype):
    call = case(geometry, dtype)
    pairs = call.geometry[:3]
    pre_bn, mean, var = ops.conv_stats(call.x, *NO_NORM, call.weight, None, *pairs, 1, False, False)
    shape = [tuple(pair) for pair in pairs]
    eager, truth = (F.conv2d(call.x.to(to), call.weight.to(to), None, *shape) for to in (dtype, torch.float64))
    assert_close(pre_bn, eager, truth)
    assert torch.equal(mean, ops.bn_stats(pre_bn)[0]) and torch.equal(var, ops.bn_stats(pre_bn)[1])

    grad = lay_out(torch.randn(pre_bn.shape).to(dtype), "channels_last")

    def gradient(which, to):  # torch's input gradient crashes for large strides
        rest = (None, *shape, False, (0, 0), 1, (which == 0, which == 1, False))
        return torch.ops.aten.convolution_backward(grad.to(to), call.x.to(to), call.weight.to(to), *rest)[which]

    to_weight = ops.conv_backward_weight(grad, call.x, *NO_NORM, call.weight, *pairs, 1)
    if dtype is torch.bfloat16 and max(pairs[0]) > max(call.x.shape[2:]):
        # The gradient is torch's, which reads uninitialised memory with AVX512-BF16 (oneDNN), in eager too.
        assert to_weight.shape == call.weight.shape
    else:
        assert_close(to_weight, gradient(1, dtype), gradient(1, torch.float64))
    if pairs[0] == [1, 1]:
        norm = (*call.bn, call.eps)
        to_x, sum_g, _ = ops.conv_backward_reduce(grad, call.weight, *pairs[1:], call.x, *norm, None, False)
        truth = gradient(0, torch.float64)
        # torch's gradient in bfloat16 fails with AMX, so the truth, rounded, stands for eager's
        fails = dtype is torch.bfloat16 and 2 * max(pairs[2]) > MOST_EXTENT_IN_TORCH
        assert_close(to_x, truth.to(dtype) if fails else gradient(0, dtype), truth)
        assert torch.equal(sum_g, ops.bn_act_backward_reduce(to_x, call.x, *norm, None, True)[0])


NO_NORM = (None, None, None, None, 0.0)


def calls(geometry):
    """Returns a call without arguments for every op that convolves."""
    call = case((1, 1, 1))
    pairs = [[value, value] for value in geometry]
    call.geometry = (*pairs, 1)
    args, grad = call.args(), torch.randn(2, 8, 9, 9)
    shortcut = (call.x, call.weight[:, :, :1, :1], None, *NO_NORM, [1, 1], *NO_NORM)
    norm = (*call.bn, call.eps)
    found = {
        "conv_bn_act": lambda: ops.conv_bn_act(*args, False, False),
        "bn_relu_conv_bn_act": lambda: ops.bn_relu_conv_bn_act(call.x, *norm, *args[1:], False, False),
        "conv_bn_proj_act": lambda: ops.conv_bn_proj_act(*args[:-2], *shortcut, True, False, False),
        "conv_bn_relu_pool": lambda: ops.conv_bn_relu_pool(*args[:-2], [3, 3], [2, 2], [1, 1], False, False),
        "conv_stats": lambda: ops.conv_stats(call.x, *NO_NORM, call.weight, None, *pairs, 1, False, False),
        "conv_backward_weight": lambda: ops.conv_backward_weight(grad, call.x, *NO_NORM, call.weight, *pairs, 1),
        "explain_cpu": lambda: ops.explain_cpu([2, 8, 9, 9], [8, 8, 3, 3], *pairs, 1, "float32"),
    }
    if pairs[0] == [1, 1]:
        backward = (grad, call.weight, *pairs[1:], call.x, *norm, None, False)
        found["conv_backward_reduce"] = lambda: ops.conv_backward_reduce(*backward)
    return found


@pytest.mark.parametrize("geometry", [*REFUSED, *OURS], **ids)
def test_impossible_geometry_is_refused(geometry):
    for op, call in calls(geometry).items():
        with pytest.raises(RuntimeError, match=f"^{op}: {(REFUSED | OURS)[geometry]}"):
            call()


@pytest.mark.parametrize("geometry", REFUSED, **ids)
def test_eager_refuses_the_same_geometry(geometry):
    with pytest.raises(RuntimeError):
        F.conv2d(torch.randn(2, 8, 9, 9), torch.randn(8, 8, 3, 3), None, *geometry)


# kernel, stride, padding
POOLED = [(3, 2**31 - 1, 1), (40000, 40000, 20000), (40000, 1, 20000)]
NO_POOL = {
    (3, 2**31, 1): r"pool_stride is \[2147483648, 2147483648\]; two integers of at most 2147483647",
    (3, MOST, 1): r"pool_stride is \[9223372036854775807, 9223372036854775807\]; two integers of at most 2147483647",
    (2**31, 1, 2**30): r"pool_kernel is \[2147483648, 2147483648\]; two integers of at most 2147483647",
    (2**32, 1, 2**31): r"pool_kernel is \[4294967296, 4294967296\]; two integers of at most 2147483647",
    (MOST, MOST, 2**62 - 1): r"pool_kernel is \[9223372036854775807, 9223372036854775807\]",
    (3, 1, 2**63 - 1): r"pool_padding is \[9223372036854775807, 9223372036854775807\]",
    (3, 0, 1): r"pool_stride is \[0, 0\]; two integers of at least 1",
    (3, 1, -1): r"pool_padding is \[-1, -1\]; two integers of at least 0",
    (3, 1, 2): r"pool_padding \[2, 2\] is more than half of pool_kernel",
    (12, 1, 1): r"a pooling window of \[12, 12\] is larger than its input 9x9",
}


@with_every_engine
@pytest.mark.parametrize("pool", POOLED, **ids)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_pooling_windows(pool, dtype):
    call = case((1, 1, 1), dtype)
    windows = [[value, value] for value in pool]
    found = ops.conv_bn_relu_pool(*call.args()[:-2], *windows, False, False)
    assert_close(found, *(F.max_pool2d(call.eager(to), *pool) for to in (dtype, torch.float64)))


def test_single_pooling_window_in_training():
    call, windows = case((1, 1, 1)), ([3, 3], [2**31 - 1, 2**31 - 1], [1, 1])
    norm = (*call.bn, call.eps)
    out, argmax = ops.bn_relu_max_pool(call.x, *norm, *windows)
    assert torch.equal(out, F.max_pool2d(ops.bn_add_act(call.x, *norm, None, True), 3, 2**31 - 1, 1))
    grad = ops.bn_relu_max_pool_backward(torch.ones_like(out), argmax, call.x, *windows)
    assert torch.equal(grad.sum((2, 3)), (argmax != 255).sum((2, 3)).float())


@pytest.mark.parametrize("pool", NO_POOL, **ids)
def test_impossible_pooling_windows_are_refused(pool):
    call = case((1, 1, 1))
    windows = [[value, value] for value in pool]
    like = torch.empty(2, 8, 5, 5)
    for op, refused in {
        "conv_bn_relu_pool": lambda: ops.conv_bn_relu_pool(*call.args()[:-2], *windows, False, False),
        "bn_relu_max_pool": lambda: ops.bn_relu_max_pool(call.x, *call.bn, call.eps, *windows),
        "bn_relu_max_pool_backward": lambda: ops.bn_relu_max_pool_backward(like, like.byte(), call.x, *windows),
    }.items():
        with pytest.raises(RuntimeError, match=f"^{op}: {NO_POOL[pool]}"):
            refused()
    with pytest.raises(RuntimeError):
        F.max_pool2d(call.x, *pool)


def test_sizes_of_empty_tensors_do_not_overflow():
    x = torch.empty(0, 8, 2**20, 2**20)
    assert ops.bn_add_act(x, *NO_NORM, None, True).shape == x.shape
    assert ops.bn_stats(x)[0].isnan().all()
    y = ops.conv_bn_act(x, torch.randn(8, 8, 1, 1), None, *NO_NORM, [1, 1], [0, 0], [1, 1], 1, None, True, False, False)
    assert y.shape == x.shape


RUNS_OUT = """
import resource, sys, torch
from resnet_fused import ops

torch.set_num_threads(2)
torch.backends.mkldnn.enabled = False  # a oneDNN convolution that once ran out of memory may fail from then on
x = torch.randn(2, 32, 8, 20000).contiguous(memory_format=torch.channels_last)
weight = torch.randn(32, 32, 3, 3)
call = (x, weight, None, None, None, None, None, 0.0, [2, 2], [1, 1], [1, 1], 1, None, True, False, False)
torch.relu(x[:1, :, :2])  # starts the threads
pages = int(open("/proc/self/statm").read().split()[0])
no_limit = resource.getrlimit(resource.RLIMIT_AS)
raised = 0
for mib in (0, 4, 8, 12, 16, 24, 32, 48, 64):
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (mib << 20), no_limit[1]))
    try:
        ops.conv_bn_act(*call)
    except (RuntimeError, MemoryError) as error:
        raised += 1
        print(mib, error, file=sys.stderr)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, no_limit)
expected = torch.relu(torch.conv2d(x, weight, None, 2, 1))
torch.testing.assert_close(ops.conv_bn_act(*call), expected, rtol=1e-3, atol=1e-3)
print(raised, "raised")
"""


def test_out_of_memory_raises_an_error(monkeypatch):
    """Running out of memory, also in a thread of a parallel loop, is an error; the next call succeeds."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    plan = plans.read(ops.explain_cpu([2, 32, 8, 20000], [32, 32, 3, 3], [2, 2], [1, 1], [1, 1], 1, "float32"))
    if plan.kernel == "onednn":
        monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "composed")
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", RUNS_OUT], capture_output=True, text=True, cwd=root, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    assert int(run.stdout.split()[0]) >= 1
