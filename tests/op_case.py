"""One random conv_bn_act call: its arguments, eager result and float64 reference."""

import contextlib

import pytest
import torch
from criterion import assert_close

from resnet_fused import ops, plans, reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


class Case:
    """One random conv_bn_act call: its arguments, eager result and float64 reference."""

    def __init__(self, n, c, h, w, k, r, s, stride, padding, dilation, groups=1, *, dtype=torch.float32,
                 layout="contiguous", residual=False, relu=True, bias=False, affine=True, seed=0):  # fmt: skip
        g = torch.Generator().manual_seed(seed)
        self.x = lay_out(torch.randn(n, c, h, w, generator=g).to(dtype), layout)
        fan_in = c // groups * r * s
        self.weight = (torch.randn(k, c // groups, r, s, generator=g) / fan_in**0.5).to(dtype)
        if layout == "channels_last":
            self.weight = self.weight.to(memory_format=torch.channels_last)
        self.bias = torch.randn(k, generator=g).to(dtype) if bias else None
        gamma, beta = torch.rand(k, generator=g) + 0.5, torch.randn(k, generator=g)
        mean, var = torch.randn(k, generator=g), torch.rand(k, generator=g) + 0.5
        self.bn = [gamma if affine else None, beta if affine else None, mean, var]
        self.eps = 1e-5
        self.geometry = (list(stride), list(padding), list(dilation), groups)
        self.relu = relu
        self.residual = None
        if residual:
            self.residual = lay_out(torch.randn(self._output_shape(), generator=g).to(dtype), layout)

    def _output_shape(self):
        stride, padding, dilation, groups = self.geometry
        meta = torch.conv2d(self.x.to("meta"), self.weight.to("meta"), None, stride, padding, dilation, groups)
        return meta.shape

    def args(self):
        return (self.x, self.weight, self.bias, *self.bn, self.eps, *self.geometry, self.residual, self.relu)

    def fused(self, keep_packed=False):
        return ops.conv_bn_act(*self.args(), keep_packed, False)

    def eager(self, dtype=None, relu=None):
        cast = (lambda t: t) if dtype is None else (lambda t: None if t is None else t.to(dtype))
        x, weight, bias, residual = map(cast, (self.x, self.weight, self.bias, self.residual))
        bn = [cast(t) for t in self.bn]
        with self.correct_eager():
            return reference.conv_bn_act(
                x, weight, bias, *bn, self.eps, *self.geometry, residual, self.relu if relu is None else relu
            )

    def correct_eager(self):
        """Disables oneDNN for eager if it is wrong on this problem."""
        return torch.backends.mkldnn.flags(enabled=False) if self.eager_is_wrong() else contextlib.nullcontext()

    def eager_is_wrong(self):
        """oneDNN 3.12 with AMX reads uninitialised memory if a bfloat16 output is one pixel wide."""
        return self.x.dtype is torch.bfloat16 and self._output_shape()[-1] == 1

    def plan(self):
        dtype = str(self.x.dtype).removeprefix("torch.")
        return plans.read(ops.explain_cpu(self.x.shape, self.weight.shape, *self.geometry, dtype))

    def check(self, keep_packed=False):
        y, eager = self.fused(keep_packed), self.eager()
        baseline = eager
        if self.plan().kernel == "onednn":
            # oneDNN's summation order depends on the layout. We always run it in NHWC, so measure eager's error there.
            x, self.x = self.x, lay_out(self.x, "channels_last")
            threads = torch.get_num_threads()
            if len(x) == 1:  # eager does not use oneDNN for one image and one thread
                torch.set_num_threads(max(2, threads))
            baseline, self.x = self.eager(), x
            torch.set_num_threads(threads)
        before_relu = self.eager(torch.float64, relu=False)
        assert_close(y, baseline, before_relu.relu() if self.relu else before_relu, before_relu)
        return y, eager


def assert_same_bits_with_any_number_of_threads(call):
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            found.append(call())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])


def plan_of(x, k, padding, dtype):
    """Returns the CPU's plan (resnet_fused.plans.Plan) for a 3x3 convolution of stride 1 with input shape x.

    Skips the test if the processor lacks the instructions of our kernels.
    """
    weight, ones = [k, x[1], 3, 3], [1, 1]
    dtype_name = str(dtype).removeprefix("torch.")
    plan = plans.read(ops.explain_cpu(list(x), weight, ones, list(padding), ones, 1, dtype_name))
    if isa_of_kernels(dtype) is None:
        pytest.skip("this processor has no AVX2, which our kernels need")
    return plan


def isa_of_kernels(dtype):
    """Returns the instruction set of our convolutions (AVX2, AVX-512 or AVX512-BF16); None if the plan has none."""
    ones = [1, 1]
    dtype = str(dtype).removeprefix("torch.")
    return plans.read(ops.explain_cpu([1, 16, 8, 8], [16, 16, 1, 1], ones, [0, 0], ones, 1, dtype)).fields.get("isa")


def reason_against(kernel, plan):
    """Returns the plan's reason against this kernel; "" if it was not rejected."""
    return next((each.reason for each in plan.rejected if each.kernel == kernel), "")


def layout_of(x):
    """Returns the strides of the dimensions of size > 1; the others are arbitrary."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


def lay_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":  # every second column of a wider tensor
        wide = torch.full((*x.shape[:3], 2 * x.shape[3]), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if layout == "expanded":  # every image and row is the first one
        return x[:1, :, :1].expand(x.shape)
    return x


def pre_args(channels, dtype=torch.float32, seed=2):
    """Returns pre_gamma, pre_beta, pre_mean, pre_var, pre_eps."""
    g = torch.Generator().manual_seed(seed)
    vectors = [torch.rand(channels, generator=g) + 0.5, *(torch.randn(channels, generator=g) for _ in range(2))]
    return [*(v.to(dtype) for v in (*vectors, torch.rand(channels, generator=g) + 0.5)), 1e-3]


def projection_args(dtype, layout, c=32, k=64, size=14, proj_c=16, stride=2, pre=(None, None, None, None, 0.0)):
    main = Case(2, c, size, size, k, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype, layout=layout)
    proj = Case(
        2,
        proj_c,
        size * stride,
        size * stride,
        k,
        1,
        1,
        (stride,) * 2,
        (0, 0),
        (1, 1),
        dtype=dtype,
        layout=layout,
        seed=1,
    )
    return (*main.args()[:-2], proj.x, proj.weight, proj.bias, *proj.bn, proj.eps, [stride, stride], *pre, True)


class OpsOfTorch:
    """Counts the ops of torch that run while it is open, also those that the library calls: ``aten::convolution``..."""

    def __enter__(self):
        self._profile = torch.profiler.profile()
        self._profile.__enter__()
        return self

    def __exit__(self, *error):
        self._profile.__exit__(*error)
        self.counts = {event.key: event.count for event in self._profile.key_averages()}

    def convolved(self):
        """Whether torch computed a convolution or a gradient of one."""
        return bool({"aten::convolution", "aten::convolution_backward"} & self.counts.keys())


@pytest.fixture
def wherever_they_can(monkeypatch):
    """Makes training use our kernels wherever they can run, also where PyTorch's are faster."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "winograd")
