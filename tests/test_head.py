"""avg_pool_linear against float64, and when a converted network's head runs it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from op_case import lay_out
from support import RecordedOps, ops_of, randomise, truth
from torch import nn
from torch.nn.utils import parametrize

import resnet_fused
from resnet_fused import models, ops, reference
from resnet_fused.modules import _head

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
OP = ops.avg_pool_linear


def arguments(n, c, h, w, k, dtype, layout="channels_last", bias=True):
    x = lay_out(torch.randn(n, c, h, w).to(dtype), layout)
    weight = (torch.randn(k, c) / c**0.5).to(dtype)
    return [x, weight, torch.randn(k).to(dtype) if bias else None]


def check(args):
    y, eager = OP(*args), reference.avg_pool_linear(*args)
    assert y.stride() == eager.stride()
    exact = [None if t is None else t.double() for t in args]
    # The definition's mean of bfloat16 and float16 is rounded; the op's is not.
    assert_close(y, eager, reference.avg_pool_linear(*exact))


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(
    ("c", "h", "w", "k"),
    [
        (1, 1, 1, 1),
        (3, 7, 7, 10),
        (17, 8, 7, 33),
        (64, 8, 8, 10),
        (100, 1, 1, 1000),
        (512, 7, 7, 1000),
        (2048, 7, 7, 9),
    ],
)
def test_any_shape(dtype, n, c, h, w, k):
    torch.set_num_threads(2)
    check(arguments(n, c, h, w, k, dtype, bias=k != 33))


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced", "expanded"])
@pytest.mark.parametrize("size", [1, 5])
def test_any_strides(dtype, layout, size):
    x, weight, bias = arguments(2, 20, size, 6, 11, dtype, layout)
    wide = torch.full((11, 50), float("nan"), dtype=dtype)
    wide[:, 3:23] = weight
    every = torch.stack([bias, torch.full_like(bias, float("nan"))], 1)[:, 0]
    check([x, weight.t().contiguous().t(), every])
    check([x, wide[:, 3:23], bias])
    check([x[:, 2:19], weight[::2, 2:19], None])
    check([x, weight[:1].expand(11, 20), bias[:1].expand(11)])


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_sums(dtype):
    """A running sum of 40,000 pixels near 1 would lose three digits in float32."""
    x = 1 + torch.rand(1, 20, 200, 200)
    weight = torch.rand(12, 20)
    check([lay_out(x.to(dtype), "channels_last"), weight.to(dtype), None])
    check([torch.rand(2, 9000, 1, 1).to(dtype), torch.rand(9, 9000).to(dtype), None])


@pytest.mark.usefixtures("own_isa")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["x", "weight", "bias"])
def test_not_finite(dtype, value, where):
    for n in (1, 4):
        x, weight, bias = arguments(n, 35, 7, 7, 13, dtype)
        weight[5] = 0
        if where == "x":
            x[-1, 34, 3, 2] = value
        elif where == "weight":
            weight[12, 34] = value
        else:
            bias[3] = value
        check([x, weight, bias])


@pytest.mark.parametrize("engine", ["", "composed"])
def test_float64_and_other_engines_run_eagers_ops(monkeypatch, engine):
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", engine)
    args = arguments(2, 20, 5, 6, 11, torch.float32 if engine else torch.float64)
    assert torch.equal(OP(*args), reference.avg_pool_linear(*args))


def test_no_images_or_no_outputs():
    assert OP(*arguments(0, 8, 7, 7, 10, torch.float32)).shape == (0, 10)
    assert OP(*arguments(2, 8, 7, 7, 0, torch.float32)).shape == (2, 0)


def test_opcheck():
    torch.library.opcheck(OP, arguments(2, 20, 5, 6, 11, torch.bfloat16))


def test_freed_weight_is_refused():
    x, weight, bias = arguments(2, 8, 5, 6, 11, torch.float32)
    weight.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"avg_pool_linear: weight of shape \[11, 8\] needs 352 bytes but .* has 0"):
        OP(x, weight, bias)


def head(dtype=torch.float32):
    return nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(20, 11).to(dtype).requires_grad_(False)


def features(n=1, dtype=torch.float32):
    return torch.randn(n, 20, 5, 6).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, (1, 1), [1, 1]])
@pytest.mark.parametrize("bias", [True, False])
def test_head_runs_fused(dtype, size, bias):
    fc = nn.Linear(20, 11, bias=bias).to(dtype)
    x = features(4, dtype)
    with torch.no_grad():
        y = _head.run_head(x, nn.AdaptiveAvgPool2d(size), fc)
        assert torch.equal(y, OP(x, fc.weight, fc.bias))


def global_hook(*_):
    return None


class OwnLinear(nn.Linear):
    pass


def eager_cases():
    """Yields a name and x, avgpool, fc, of which eager must run."""
    x, (pool, fc) = features(), head()
    yield "more images", features(_head.MOST_IMAGES + 1), pool, fc
    yield "no images", features(0), pool, fc
    yield "float64", features(dtype=torch.float64), pool, copy.deepcopy(fc).double()
    yield "dtypes differ", features(dtype=torch.bfloat16), pool, fc
    yield "channels differ", features()[:, :19], pool, fc
    yield "three dimensions", x[0], pool, fc
    yield "parameter of a subclass", x, pool, replaced(fc, nn.parameter.Buffer(fc.weight.detach()))
    yield "x needs a gradient", features().requires_grad_(), pool, fc
    yield "fc needs a gradient", x, pool, nn.Linear(20, 11)
    yield "subclass of Tensor", x.as_subclass(type("Own", (torch.Tensor,), {})), pool, fc
    yield "another size", x, nn.AdaptiveAvgPool2d((1, 2)), fc
    yield "size of the input", x, nn.AdaptiveAvgPool2d((None, 1)), fc
    yield "max-pooling", x, nn.AdaptiveMaxPool2d(1), fc
    yield "no fc", x, pool, nn.Identity()
    yield "several layers", x, pool, nn.Sequential(nn.Dropout(), fc)
    yield "subclass of Linear", x, pool, OwnLinear(20, 11).requires_grad_(False)
    yield "hook on fc", x, pool, hooked(copy.deepcopy(fc))
    yield "hook on avgpool", x, hooked(nn.AdaptiveAvgPool2d(1)), fc
    patched = copy.deepcopy(fc)
    patched.forward = lambda x: 2 * nn.Linear.forward(fc, x)
    yield "patched fc", x, pool, patched
    yield "parametrised fc", x, pool, parametrize.register_parametrization(copy.deepcopy(fc), "bias", nn.Tanh())
    yield "weight that is no parameter", x, pool, replaced(fc, fc.weight.detach())


def replaced(fc, weight):
    fc = copy.deepcopy(fc)
    del fc.weight
    fc.weight = weight
    return fc


def hooked(module):
    module.register_forward_hook(lambda module, args, y: 2 * y)
    return module


@pytest.mark.parametrize(("x", "avgpool", "fc"), [pytest.param(*case, id=name) for name, *case in eager_cases()])
def test_head_runs_eagerly(x, avgpool, fc):
    assert _head.run_head(x, avgpool, fc) is None


@pytest.mark.parametrize(
    ("owner", "name"),
    [(nn.Linear, "forward"), (nn.AdaptiveAvgPool2d, "forward"), (F, "linear"), (F, "adaptive_avg_pool2d"),
     (nn.Module, "__call__"), (nn.Linear, "__call__"), (nn.ReLU, "forward")],
)  # fmt: skip
def test_patched_classes_and_functions(monkeypatch, owner, name):
    original, x = getattr(owner, name), features()
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: original(*args, **kwargs))
    assert _head.run_head(x, *head()) is None


def test_patched_linear_leaves_blocks_fused(monkeypatch):
    model = resnet_fused.convert(randomise(models.small_resnet()).eval())
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: 2 * original(self, x))
    called = ops_of(model, torch.randn(1, 3, 9, 9))
    assert called and OP not in called


def test_modes_in_which_the_head_is_eager():
    x, (avgpool, fc) = features(), head()
    with torch.autocast("cpu", torch.bfloat16):
        assert _head.run_head(x, avgpool, fc) is None
    handle = nn.modules.module.register_module_forward_hook(global_hook)
    assert _head.run_head(x, avgpool, fc) is None
    handle.remove()
    assert _head.run_head(x, avgpool, fc) is not None
    assert _head.run_head(x.to("meta"), avgpool, fc.to("meta")) is None


BUILDS = {
    "ResNet": lambda: models.ResNet(reference.BasicBlock, (1, 1, 1, 1), num_classes=37),
    "CifarResNet": models.small_resnet,
    "CifarPreActResNet": models.small_preact_resnet,
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_networks(build, dtype, memory_format):
    model = randomise(build()).eval().to(dtype=dtype, memory_format=memory_format)
    check_network(model, torch.randn(2, 3, 40, 40).to(dtype=dtype, memory_format=memory_format))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_torchvision(dtype, memory_format):
    torchvision = pytest.importorskip("torchvision")
    model = randomise(torchvision.models.resnet18(num_classes=100)).eval().to(dtype=dtype, memory_format=memory_format)
    check_network(model, torch.randn(1, 3, 64, 64).to(dtype=dtype, memory_format=memory_format))


def check_network(model, x):
    fused = resnet_fused.convert(copy.deepcopy(model))
    assert ops_of(fused, x)[-1] is OP
    with torch.no_grad():
        y, eager, exact = fused(x), model(x), truth(model, x)
        assert y.stride() == eager.stride()
        assert_close(y, eager, exact)
        many = torch.cat([x] * (_head.MOST_IMAGES + 1))
        assert OP not in ops_of(fused, many)
        assert_close(fused(many), model(many), truth(model, many))
    fused(x).sum().backward()
    assert fused.fc.weight.grad is not None


EDITS = {
    "in place": lambda fc: fc.weight.mul_(2),
    "data": lambda fc: setattr(fc.weight, "data", 2 * fc.weight.data),
    "numpy": lambda fc: np.multiply(fc.weight.numpy(), 2, out=fc.weight.numpy()),
    "bias": lambda fc: fc.bias.add_(1),
    "parameter": lambda fc: setattr(fc, "weight", nn.Parameter(2 * fc.weight)),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
@pytest.mark.parametrize("frozen", [False, True])
def test_edited_weights_are_seen_at_once(edit, frozen):
    model = randomise(models.small_resnet()).eval().requires_grad_(False)
    fused, x = resnet_fused.convert(copy.deepcopy(model)), torch.randn(1, 3, 16, 16)
    if frozen:
        resnet_fused.freeze(fused)
    for each in (fused, model):
        each(x)
        edit(each.fc)
    assert_close(fused(x), model(x), truth(model, x))


@pytest.mark.parametrize("fc", [nn.Identity(), nn.Sequential(nn.ReLU(), nn.Linear(32, 5))])
def test_replaced_fc_runs(fc):
    model = randomise(models.small_resnet()).eval()
    fused, x = resnet_fused.convert(copy.deepcopy(model)), torch.randn(1, 3, 16, 16)
    model.fc = fused.fc = fc
    assert OP not in ops_of(fused, x)
    with torch.no_grad():
        assert_close(fused(x), model(x), truth(model, x))


def test_hooks_see_eagers_format():
    """Eager's input of a hooked pooling layer is contiguous here, the fused stages' output channels_last."""
    torchvision = pytest.importorskip("torchvision")
    model, seen = randomise(torchvision.models.resnet18(num_classes=10)).eval(), []
    model.avgpool.register_forward_pre_hook(lambda module, args: seen.append(args[0].stride()))
    fused, x = resnet_fused.convert(copy.deepcopy(model)), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close(fused(x), model(x), truth(model, x))
    assert seen[0] == seen[1]


def test_compiled_and_traced_networks_keep_torchs_head():
    model = resnet_fused.convert(randomise(models.small_resnet()).eval())
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        with RecordedOps() as recorded:
            torch.jit.trace(model, x)
        assert OP not in recorded.ours
        exported = torch.export.export(model, (x,))
        assert "avg_pool_linear" not in exported.graph_module.code
        assert_close(exported.module()(x), model(x), truth(resnet_fused.revert(copy.deepcopy(model)), x))
