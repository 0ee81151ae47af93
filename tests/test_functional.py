"""The public functions: equivalent to PyTorch's, differentiable, with clear errors for wrong arguments."""

import gc

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from support import grant, randomise
from torch import nn
from training import assert_gradient_close, is_trained

from resnet_fused import functional, ops, reference
from resnet_fused.chain import policy
from resnet_fused.chain.policy import CAPABILITIES
from resnet_fused.functional import BatchNorm, Projection


def norm_of(channels, device):
    return BatchNorm.of(randomise(nn.BatchNorm2d(channels)).to(device))


@pytest.fixture
def block_of():
    """Returns a builder of an eager block in eval mode and the options of the matching function."""

    def build(cls, inplanes, planes, stride, device, projected):
        out = planes * cls.expansion
        shortcut = (
            nn.Sequential(nn.Conv2d(inplanes, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if projected else None
        )
        block = randomise(cls(inplanes, planes, stride, shortcut)).eval().requires_grad_(False).to(device)
        options = {"stride": stride}
        if projected:
            options["projection"] = Projection(shortcut[0].weight, BatchNorm.of(shortcut[1]), stride=stride)
        return block, options

    return build


def tensors(block, *names):
    children = dict(block.named_children())
    return [BatchNorm.of(children[n]) if n.startswith("bn") else children[n].weight for n in names]


BLOCKS = [
    (functional.basic_block, reference.BasicBlock, ("conv1", "bn1", "conv2", "bn2")),
    (functional.bottleneck, reference.Bottleneck, ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")),
    (functional.preact_block, reference.PreActBlock, ("bn1", "conv1", "bn2", "conv2")),
    (functional.preact_bottleneck, reference.PreActBottleneck, ("bn1", "conv1", "bn2", "conv2", "bn3", "conv3")),
]


@pytest.mark.parametrize(("function", "cls", "names"), BLOCKS)
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_block_functions_match_the_blocks(function, cls, names, projected, autocast, device, block_of):
    block, options = block_of(cls, 16, 16 // cls.expansion, 2 if projected else 1, device, projected)
    x = torch.randn(2, 16, 7, 7, device=device)
    exact = block.double()(x.double())
    block.float()
    with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        assert_close(function(x, *tensors(block, *names), **options), block(x), exact)


@pytest.mark.parametrize(("function", "cls", "names"), BLOCKS[2:])
@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_preact_convolutions_normalise_on_read(function, cls, names, projected, grad, device, block_of, monkeypatch):
    """As on CUDA: the first convolution and the projection read x, not relu(bn1(x))."""
    grant(monkeypatch, device.type, norm_prologue=True)
    block, options = block_of(cls, 16, 16 // cls.expansion, 2 if projected else 1, device, projected)
    x = torch.randn(2, 16, 7, 7, device=device, requires_grad=grad)
    exact = block.double()(x.double())
    block.float()
    y = function(x, *tensors(block, *names), **options)
    assert_close(y.detach(), block(x).detach(), exact.detach())
    assert y.requires_grad == grad


@pytest.mark.parametrize("autocast", [False, True])
def test_bn_relu_conv_bn_act_matches_its_docstring(autocast, device):
    x, weight = torch.randn(2, 8, 9, 8, device=device), torch.randn(16, 8, 3, 3, device=device)
    pre, bn, residual = norm_of(8, device), norm_of(16, device), torch.randn(2, 16, 5, 4, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        options = dict(stride=2, padding=1, residual=None if autocast else residual)
        actual = functional.bn_relu_conv_bn_act(x, pre, weight, bn, **options)
        expected = functional.conv_bn_act(functional.bn_add_act(x, pre), weight, bn, **options)
        assert actual.dtype is (torch.bfloat16 if autocast else torch.float32)
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_conv_bn_act_matches_its_docstring(dtype, device):
    bn = norm_of(6, device)
    x, weight = torch.randn(2, 4, 9, 8, device=device).to(dtype), torch.randn(6, 2, 3, 2, device=device).to(dtype)
    residual, bias = torch.randn(2, 6, 5, 9, device=device).to(dtype), torch.randn(6, device=device).to(dtype)
    bn = BatchNorm(*(t.detach().to(dtype) for t in bn[:4]), 1e-3)
    arguments = dict(bias=bias, stride=(2, 1), padding=(1, 1), dilation=1, groups=2)

    def equivalent(dtype):
        y = F.conv2d(x.to(dtype), weight.to(dtype), bias.to(dtype), (2, 1), (1, 1), 1, 2)
        mean, var, gamma, beta = (t.to(dtype) for t in bn[:4])
        return F.relu(F.batch_norm(y, mean, var, gamma, beta, eps=bn.eps) + residual.to(dtype))

    actual = functional.conv_bn_act(x, weight, bn, residual=residual, **arguments)
    assert_close(actual, equivalent(dtype), equivalent(torch.float64))


def test_norm_and_relu_are_optional(device):
    x, weight = torch.randn(1, 3, 5, 5, device=device), torch.randn(4, 3, 3, 3, device=device)
    torch.testing.assert_close(functional.conv_bn_act(x, weight, relu=False), F.conv2d(x, weight))
    torch.testing.assert_close(functional.conv_bn_act(x, weight), F.relu(F.conv2d(x, weight)))
    torch.testing.assert_close(functional.bn_add_act(x, None, residual=x, relu=False), 2 * x)


def test_conv_bn_relu_pool_matches_its_docstring(device):
    x, weight = torch.randn(1, 3, 32, 32, device=device), torch.randn(8, 3, 7, 7, device=device)
    bn = norm_of(8, device)
    with torch.no_grad():
        actual = functional.conv_bn_relu_pool(x, weight, bn)
        y = functional.conv_bn_act(x, weight, bn, stride=2, padding=3)
        torch.testing.assert_close(actual, F.max_pool2d(y, 3, 2, 1))


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_conv_bn_proj_act_matches_its_docstring(pre, autocast, device):
    x, weight = torch.randn(1, 8, 4, 4, device=device), torch.randn(8, 8, 3, 3, device=device)
    proj_x, proj_weight = torch.randn(1, 5, 8, 8, device=device), torch.randn(8, 5, 1, 1, device=device)
    bn, proj_bn = norm_of(8, device), norm_of(8, device)
    projection = Projection(proj_weight, proj_bn, stride=2, pre=norm_of(5, device) if pre else None)

    def composed(dtype):
        norms = [n and BatchNorm(*(t.to(dtype) for t in n[:4]), n.eps) for n in (bn, proj_bn, projection.pre)]
        activated = functional.bn_add_act(proj_x.to(dtype), norms[2]) if pre else proj_x.to(dtype)
        shortcut = functional.conv_bn_act(activated, proj_weight.to(dtype), norms[1], stride=2, relu=False)
        return functional.conv_bn_act(x.to(dtype), weight.to(dtype), norms[0], padding=1, residual=shortcut)

    with torch.no_grad():
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            actual = functional.conv_bn_proj_act(x, weight, bn, proj_x, projection, padding=1)
            rounded = composed(torch.float32)
        assert actual.dtype is rounded.dtype
        assert_close(actual, rounded, composed(torch.float64))


def differentiable_calls(device, dtype=torch.float64):
    """Returns the leaf tensors to differentiate, and calls by name."""
    g = torch.Generator().manual_seed(5)

    def leaf(*shape):
        return (torch.randn(shape, generator=g) / 3).to(device, dtype).requires_grad_()

    def norm():
        mean, var = torch.randn(4, generator=g), torch.rand(4, generator=g) + 0.5
        return BatchNorm(mean.to(device, dtype), var.to(device, dtype), leaf(4), leaf(4))

    x, other, weight, wide, proj_weight = (
        leaf(2, 4, 6, 6),
        leaf(2, 4, 6, 6),
        leaf(4, 4, 3, 3),
        leaf(4, 4, 3, 3),
        leaf(4, 4, 1, 1),
    )
    one, bias, a, b, c, d = leaf(4, 4, 1, 1), leaf(4), norm(), norm(), norm(), norm()
    down, even = Projection(proj_weight, d, stride=2), Projection(proj_weight, d, bias)
    leaves = [x, other, weight, wide, proj_weight, one, bias, *(t for bn in (a, b, c, d) for t in (bn.weight, bn.bias))]
    f = functional
    return leaves, {
        "conv_bn_act": lambda: f.conv_bn_act(x, weight, a, bias=bias, padding=1, residual=other),
        "conv_bn_act without bn": lambda: f.conv_bn_act(x, weight, stride=2, bias=bias),
        "bn_relu_conv_bn_act": lambda: f.bn_relu_conv_bn_act(x, a, weight, b, padding=1, residual=x),
        "conv_bn_proj_act": lambda: f.conv_bn_proj_act(x, weight, a, other, even, padding=1),
        "conv_bn_proj_act, pre": lambda: f.conv_bn_proj_act(x, weight, a, other, even._replace(pre=b), padding=1),
        "conv_bn_relu_pool": lambda: f.conv_bn_relu_pool(x, weight, a),
        "bn_add_act": lambda: f.bn_add_act(x, a, residual=other),
        "basic_block": lambda: f.basic_block(x, weight, a, wide, b),
        "basic_block, projection": lambda: f.basic_block(x, weight, a, wide, b, stride=2, projection=down),
        "basic_block, pre": lambda: f.basic_block(x, weight, a, wide, b, projection=even._replace(pre=c)),
        "bottleneck": lambda: f.bottleneck(x, one, a, weight, b, proj_weight, c),
        "bottleneck, projection": lambda: f.bottleneck(x, one, a, weight, b, one, c, projection=even),
        "preact_block": lambda: f.preact_block(x, a, weight, b, wide),
        "preact_block, projection": lambda: f.preact_block(x, a, weight, b, wide, stride=2, projection=down),
        "preact_bottleneck": lambda: f.preact_bottleneck(x, a, one, b, weight, c, proj_weight, dilation=2),
    }


def with_gradients(call, leaves):
    y = call()
    direction = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view_as(y)
    gradients = torch.autograd.grad((y * direction).sum(), leaves, allow_unused=True)
    return is_trained(y) or "MaxPool" in type(y.grad_fn).__name__, [y.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", list(differentiable_calls("cpu")[1]))
def test_gradients_match_eager(name, dtype, device, monkeypatch):
    """By the criterion. On devices with training ops a call is one differentiable op."""
    leaves, calls = differentiable_calls(device, dtype)
    trained, found = with_gradients(calls[name], leaves)
    assert trained or not CAPABILITIES[device.type].trains
    with torch.no_grad():
        without = calls[name]()
    assert not without.requires_grad
    torch.testing.assert_close(without, found[0])
    grant(monkeypatch, device.type, trains=False)
    fused_or_pooled, expected = with_gradients(calls[name], leaves)
    assert not fused_or_pooled or "pool" in name
    double, exact = differentiable_calls(device)
    truth = with_gradients(exact[name], double)[1]
    for actual, eager, true in zip(found, expected, truth, strict=True):
        assert (actual is None) == (eager is None) == (true is None)
        if dtype is torch.float64 and actual is not None:
            torch.testing.assert_close(actual, eager, rtol=1e-10, atol=1e-10)
        elif actual is not None:
            assert_gradient_close(actual, eager, true)


@pytest.mark.parametrize("name", ["conv_bn_act", "conv_bn_proj_act, pre", "bottleneck, projection", "preact_block"])
def test_gradients_by_finite_differences(name, device):
    leaves, calls = differentiable_calls(device)
    used = [g is not None for g in with_gradients(calls[name], leaves)[1][1:]]
    learning = [leaf for leaf, needed in zip(leaves, used, strict=True) if needed]
    assert torch.autograd.gradcheck(lambda *_: calls[name](), learning, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *_: calls[name](), learning, fast_mode=True)


@pytest.mark.skipif(not CAPABILITIES["cpu"].trains, reason="the library has no training ops")
def test_basic_block_saves_no_inner_activation():
    leaves, calls = differentiable_calls("cpu")
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = calls["basic_block"]()
    activations = {t.data_ptr() for t in saved if t.shape == y.shape}
    assert len(activations) == 4, "the input, two pre-BN outputs, the output"
    assert {leaves[0].data_ptr(), y.data_ptr()} <= activations


def test_one_input_with_grad_makes_outputs_differentiable(device):
    x, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(4, 4, 1, 1, device=device)
    bn = BatchNorm(*(torch.ones(4, device=device) for _ in range(3)), torch.zeros(4, device=device, requires_grad=True))
    assert functional.conv_bn_act(x, weight, bn).requires_grad
    assert functional.bn_add_act(x, bn).requires_grad
    assert functional.conv_bn_act(x, weight, residual=x.clone().requires_grad_()).requires_grad
    assert functional.conv_bn_proj_act(x, weight, None, x.clone().requires_grad_(), Projection(weight)).requires_grad


def test_differentiable_statistics_are_refused(device):
    x, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(4, 4, 1, 1, device=device, requires_grad=True)
    mean, var = (torch.ones(4, device=device, requires_grad=True) for _ in range(2))
    with pytest.raises(RuntimeError, match="not differentiable with respect to argument 'running_mean'"):
        functional.conv_bn_act(x, weight, BatchNorm(mean, var))


def test_gradients_under_autocast(device):
    """Blocks and layers train in autocast's dtype.

    A pre-activation trains only if x already has that dtype: eager normalises a float32 x before rounding it.
    """
    trains = CAPABILITIES[device.type].trains
    for dtype in (torch.float32, torch.bfloat16):
        leaves, _ = differentiable_calls(device, torch.float32)
        x, weight, bn = leaves[0].detach().to(dtype), leaves[2], norm_of(4, device)
        bn = BatchNorm(*(t.detach() for t in bn[:4]), bn.eps)
        with torch.autocast(device.type, torch.bfloat16):
            layer = functional.conv_bn_act(x, weight, bn)
            block = functional.basic_block(x, weight, bn, weight, bn)
            pre = functional.bn_relu_conv_bn_act(x, bn, weight, bn)
        assert layer.dtype is block.dtype is torch.bfloat16
        assert is_trained(layer) == is_trained(block) == trains
        assert is_trained(pre) == (trains and dtype is torch.bfloat16)
        for y in (layer, block, pre):
            y.float().square().sum().backward()
        assert weight.grad.isfinite().all()
        assert weight.grad.dtype is torch.float32


def test_autocast_follows_eager(device):
    x, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(4, 4, 1, 1, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert functional.conv_bn_act(x, weight).dtype is torch.bfloat16
        wide = functional.conv_bn_act(x, weight, residual=x)
        assert wide.dtype is reference.conv_bn_act(x, weight, residual=x).dtype is torch.float32
        assert functional.bn_add_act(x, None).dtype is torch.float32
        assert functional.conv_bn_act(x.double(), weight.double()).dtype is torch.float64


def test_wrong_arguments_are_refused():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(8, 4, 3, 3)
    with pytest.raises(ValueError, match=r"stride is \(1, 2, 3\); an int or two ints"):
        functional.conv_bn_act(x, weight, stride=(1, 2, 3))
    with pytest.raises(ValueError, match="padding is 'same'"):
        functional.conv_bn_act(x, weight, padding="same")
    with pytest.raises(TypeError, match=r"bn is the module BatchNorm2d; pass BatchNorm.of\(module\)"):
        functional.conv_bn_act(x, weight, nn.BatchNorm2d(8))
    with pytest.raises(ValueError, match="keeps no running statistics"):
        BatchNorm.of(nn.BatchNorm2d(8, track_running_stats=False))
    with pytest.raises(RuntimeError, match=r"expected input\[.*\] to have 3 channels, but got 4 channels"):
        functional.conv_bn_act(x, weight[:, :3])
    with pytest.raises(RuntimeError, match="weight has dtype"):
        functional.conv_bn_act(x, weight.double())
    with pytest.raises(RuntimeError, match="residual has shape"):
        functional.conv_bn_act(x, weight, residual=x)


@pytest.fixture
def _switch_of_tf32():
    yield
    # The older switch also sets all newer ones; torch.export fails if they disagree.
    torch.backends.cudnn.allow_tf32 = True


@pytest.mark.usefixtures("_switch_of_tf32")
def test_tf32_follows_torchs_switch():
    for precision in ("ieee", "tf32"):
        torch.backends.cudnn.conv.fp32_precision = precision
        assert policy.torch_allows_tf32() == (precision == "tf32")
    # the older switch, which torch refuses to read once the newer one was set
    torch.backends.cudnn.allow_tf32 = False
    assert not policy.torch_allows_tf32()
    torch.backends.cudnn.allow_tf32 = True
    assert policy.torch_allows_tf32()


@pytest.mark.usefixtures("_switch_of_tf32")
@pytest.mark.parametrize("allowed", [False, True])
def test_compile_and_export_read_tf32_while_tracing(allowed):
    class Network(nn.Module):
        def forward(self, x):
            return x + 1 if policy.torch_allows_tf32() else x - 1

    torch.backends.cudnn.allow_tf32 = allowed  # torch 2.13's own tracing fails after fp32_precision = "ieee"
    x = torch.zeros(2)
    torch._dynamo.reset()
    calls = [torch.compile(Network(), fullgraph=True, backend="eager")]
    calls += [torch.export.export(Network(), (x,), strict=strict).module() for strict in (False, True)]
    for call in calls:
        assert call(x).tolist() == ([1, 1] if allowed else [-1, -1])


def test_packed_weights_are_kept_on_request_and_forgotten():
    gc.collect()  # frees packed weights of earlier tests now, not while this test counts
    before = ops.packed_bytes()
    x, weight = torch.randn(1, 16, 6, 6), torch.randn(16, 16, 3, 3)
    functional.conv_bn_act(x, weight)
    assert ops.packed_bytes() == before
    first = functional.conv_bn_act(x, weight, keep_packed=True)
    weight.mul_(2)
    torch.testing.assert_close(functional.conv_bn_act(x, weight, keep_packed=True), 2 * first)
    functional.forget_packed(weight)
    assert ops.packed_bytes() == before
    functional.forget_packed([weight, weight])


def test_projection_of_any_size_reads_its_source(device):
    """A projection other than 1x1 is a convolution of its own: of ``proj_x``, normalised by ``pre``."""
    x, source = torch.randn(2, 8, 6, 4, device=device), torch.randn(2, 8, 6, 6, device=device)
    weight, wide = torch.randn(8, 8, 1, 1, device=device), torch.randn(8, 8, 1, 3, device=device)
    pre, bn = (norm_of(8, device) for _ in range(2))
    for normalised in (None, pre):
        y = functional.conv_bn_proj_act(x, weight, bn, source, Projection(wide, pre=normalised))
        read = source if normalised is None else functional.bn_add_act(source, pre)
        expected = functional.conv_bn_act(x, weight, bn, residual=F.conv2d(read, wide))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_autocast_rounds_a_projection_after_its_norm(device):
    source = 1000 + torch.randn(2, 8, 6, 6, device=device)
    pre = BatchNorm(torch.full((8,), 1000.0, device=device), torch.ones(8, device=device))
    x, weight, proj = (torch.randn(shape, device=device) for shape in ((2, 8, 6, 6), (8, 8, 1, 1), (8, 8, 1, 1)))
    expected = torch.conv2d(x, weight) + torch.conv2d(torch.relu(source - 1000), proj)
    with torch.autocast(device.type, torch.bfloat16):
        y = functional.conv_bn_proj_act(x, weight, None, source, Projection(proj, pre=pre), relu=False)
    assert (y.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_shortcuts_of_another_shape_train_as_in_eager(device):
    x = torch.randn(2, 1, 6, 6, device=device, requires_grad=True)
    weight, bn = torch.randn(4, 1, 1, 1, device=device), norm_of(4, device)
    residual = torch.randn(2, 1, 6, 6, device=device)
    y = functional.conv_bn_act(x, weight, bn, residual=residual)
    rest = (bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
    torch.testing.assert_close(y, reference.conv_bn_act(x, weight, None, *rest, residual=residual))
    assert not is_trained(y)


def test_incomplete_batch_norms_are_refused(device):
    x, weight = torch.randn(1, 4, 6, 6, device=device), torch.randn(4, 4, 1, 1, device=device)
    with pytest.raises(ValueError, match="the BatchNorm has only running_mean; running_mean and running_var expected"):
        functional.conv_bn_act(x, weight, BatchNorm(torch.ones(4, device=device), None))
    plain = functional.conv_bn_act(x, weight)
    torch.testing.assert_close(functional.conv_bn_act(x.requires_grad_(), weight, BatchNorm(None, None)), plain)
    bn = norm_of(4, device)
    with pytest.raises(ValueError, match=r"projection\.pre is given, but a pre-activation block's projection reads"):
        functional.preact_block(x, bn, weight, bn, weight, projection=Projection(weight, pre=bn))


ONE_CHANNEL = {
    "conv_bn_act": lambda x, w, bn: functional.conv_bn_act(x, w, bn, padding=1),
    "conv_bn_relu_pool": lambda x, w, bn: functional.conv_bn_relu_pool(x, w, bn, padding=1),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("engine", [None, "direct", "onednn", "composed"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ONE_CHANNEL)
def test_one_channel_has_the_strides_of_its_format(name, training, engine, memory_format, monkeypatch):
    """Its buffer has both formats, and the next convolution reads the format from the strides."""
    if engine is not None:
        monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", engine)
    x = torch.randn(2, 8, 9, 9).to(memory_format=memory_format)
    first = torch.randn(1, 8, 3, 3).to(memory_format=memory_format).requires_grad_(training)
    y = ONE_CHANNEL[name](x, first, norm_of(1, "cpu"))
    assert y.stride() == torch.empty(y.shape, memory_format=memory_format).stride()
    z = functional.conv_bn_act(y, torch.randn(8, 1, 3, 3), padding=1)
    assert z.is_contiguous(memory_format=memory_format)


def test_gradients_and_argmax_of_one_channel_are_contiguous():
    x, grad, weight = torch.randn(2, 1, 9, 9), torch.randn(2, 4, 9, 9), torch.randn(4, 1, 3, 3)
    mean, var = torch.zeros(1), torch.ones(1)
    norm = (None, None, mean, var, 0.0)
    geometry = ([1, 1], [1, 1])
    found = [
        ops.conv_backward_input(grad, weight, *geometry, None, False),
        ops.conv_backward_reduce(grad, weight, *geometry, x, *norm, None, False)[0],
        *ops.bn_relu_max_pool(x, *norm, [2, 2], [2, 2], [0, 0]),
    ]
    for each in found:
        assert each.stride() == torch.empty(each.shape).stride()
