"""Each fused block computes the function of its eager class: on the fused path or, if that is impossible, eagerly."""

import copy

import pytest
import torch
from criterion import assert_close
from support import grant, randomise, truth, zero_eps
from torch import nn
from torch.nn.utils import prune
from training import average_projection, projection, wide_projection

import resnet_fused
from resnet_fused import modules, ops, reference


def conv_only(inplanes, planes, stride):
    return nn.Conv2d(inplanes, planes, 1, stride, bias=False)


def wrapped_conv(inplanes, planes, stride):
    return nn.Sequential(conv_only(inplanes, planes, stride))


TWO, THREE = (8, 8), (16, 4)  # (inplanes, planes) of an identity block
CLASSES = [
    (modules.FusedBasicBlock, TWO),
    (modules.FusedBottleneck, THREE),
    (modules.FusedPreActBlock, TWO),
    (modules.FusedPreActBottleneck, THREE),
    (modules.FusedPlainBlock, TWO),
    (modules.FusedPlainPreActBlock, TWO),
]
SHORTCUTS = [reference.ZeroPadShortcut, projection, average_projection, conv_only, wrapped_conv, wide_projection]


def identity_block(cls):
    return next(cls(*shape) for known, shape in CLASSES if known is cls)


def variants():
    for cls, (inplanes, planes) in CLASSES:
        yield pytest.param(lambda cls=cls, i=inplanes, p=planes: cls(i, p), id=f"{cls.__name__}-identity")
        if "Plain" in cls.__name__:
            continue
        for shortcut in SHORTCUTS:

            def build(cls=cls, i=inplanes, p=2 * planes, shortcut=shortcut):
                return cls(i, p, 2, shortcut(i, p * cls.expansion, 2))

            yield pytest.param(build, id=f"{cls.__name__}-{shortcut.__name__}")
    for cls in (modules.FusedBottleneck, modules.FusedPreActBottleneck):
        grouped = lambda cls=cls: cls(16, 4, 1, None, 4, 128, 2)  # noqa: E731
        yield pytest.param(grouped, id=f"{cls.__name__}-grouped-dilated")


@pytest.fixture
def calls(monkeypatch):
    """Records the names of the ops that blocks call."""
    names = []
    convolutions = ("conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "conv_bn_relu_pool", "basic_block")
    for name in (*convolutions, "bn_add_act"):
        original = getattr(ops, name)
        monkeypatch.setattr(ops, name, lambda *a, _n=name, _o=original, **how: (names.append(_n), _o(*a, **how))[1])
    return names


def eager(block, x):
    return type(block)._eager_class.forward(block, x)


@pytest.mark.parametrize("build", list(variants()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_eval_matches_eager(build, dtype, device, calls):
    block = randomise(build()).eval().to(device, dtype)
    x = torch.randn(2, block.get_submodule("conv1").in_channels, 8, 8).to(device, dtype)
    with torch.no_grad():
        expected = eager(block, x)
        assert not calls
        actual = block(x)
        assert calls, "the fused path did not run"
        exact = eager(copy.deepcopy(block).double(), x.double())
    assert_close(actual, expected, exact)
    assert actual.stride() == expected.stride()


def pre_activated_variants():
    return [variant for variant in variants() if "PreAct" in variant.id]


@pytest.mark.parametrize("build", pre_activated_variants())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_preact_convolutions_normalise_on_read(build, dtype, device, calls, monkeypatch, request):
    """As on CUDA, relu(bn1(x)) is materialised only for a shortcut that is a separate module."""
    grant(monkeypatch, device.type, norm_prologue=True)
    block = randomise(build()).eval().to(device, dtype)
    x = torch.randn(2, block.get_submodule("conv1").in_channels, 8, 8).to(device, dtype)
    with torch.no_grad():
        actual = block(x)
        expected = eager(block, x)
        assert_close(actual, expected, eager(copy.deepcopy(block).double(), x.double()))
    assert actual.stride() == expected.stride()
    made = any(name in request.node.name for name in ("ZeroPad", "average_projection"))
    wide = "wide_projection" in request.node.name  # its convolution is an op of its own
    projected = not (made or wide) and any(
        name in request.node.name for name in ("-projection", "conv_only", "wrapped_conv")
    )
    middle = ["conv_bn_act"] if "Bottleneck" in type(block).__name__ else []
    last = "conv_bn_proj_act" if projected else "conv_bn_act"
    first = ["bn_add_act"] if made else ["bn_relu_conv_bn_act"] if wide else []
    assert calls == [*first, "bn_relu_conv_bn_act", *middle, last]


@pytest.mark.parametrize(("cls", "shape"), CLASSES)
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_memory_format_matches_eager(cls, shape, x_format, weight_format, device):
    block = randomise(cls(*shape)).eval().to(device, memory_format=weight_format)
    x = torch.randn(2, shape[0], 6, 6, device=device).to(memory_format=x_format)
    with torch.no_grad():
        assert block(x).stride() == eager(block, x).stride()


@pytest.mark.parametrize(("cls", "shape"), CLASSES)
def test_strided_and_expanded_inputs_match_eager(cls, shape, device):
    block = randomise(cls(*shape)).eval().to(device)
    whole = torch.randn(4, shape[0], 12, 12, device=device)
    views = [whole[::2, :, 1:9, ::2], whole.transpose(2, 3), whole[:1].expand(3, -1, -1, -1), whole[:0]]
    for x in views:
        with torch.no_grad():
            assert_close(block(x), eager(block, x), eager(copy.deepcopy(block).double(), x.double()))


@pytest.mark.parametrize(("cls", "shape"), CLASSES)
def test_fused_training_off_is_bitwise_eager(cls, shape, device):
    fused = randomise(cls(*shape)).to(device)
    fused.fused_training = False
    plain = resnet_fused.revert(copy.deepcopy(fused))
    assert type(plain) is cls._eager_class
    x = torch.randn(2, shape[0], 6, 6, device=device)
    results = []
    for block in (fused, plain):
        for _ in range(2):
            inputs = x.clone().requires_grad_()
            y = block(inputs)
            gradients = torch.autograd.grad(y.square().sum(), [inputs, *block.parameters()])
        results.append([y, *gradients, *block.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("cls", "shape"), CLASSES)
def test_constructor_matches_the_eager_class(cls, shape):
    torch.manual_seed(1)
    fused = cls(*shape)
    torch.manual_seed(1)
    plain = cls._eager_class(*shape)
    assert isinstance(fused, cls._eager_class)
    assert {k: v.tolist() for k, v in fused.state_dict().items()} == {
        k: v.tolist() for k, v in plain.state_dict().items()
    }
    assert vars(fused).keys() == vars(plain).keys()


def gradient_of_input(block, x):
    x.requires_grad_()


def gradient_of_one_parameter(block, x):
    block.requires_grad_(False)
    block.bn2.bias.requires_grad_()


def norm_in_training(block, x):
    block.bn2.train()


def norm_without_statistics(block, x):
    block.bn2 = nn.BatchNorm2d(block.bn2.num_features, track_running_stats=False).eval()


def other_norm(block, x):
    block.bn2 = nn.GroupNorm(2, block.bn2.num_features)


def other_activation(block, x):
    block.relu = nn.LeakyReLU()


def other_conv(block, x):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    doubled = Doubled(**{k: getattr(block.conv2, k) for k in ("in_channels", "out_channels", "kernel_size", "padding")})
    block.conv2 = doubled


def reflecting_conv(block, x):
    block.conv2.padding_mode = "reflect"


def hook_on_conv(block, x):
    block.conv1.register_forward_hook(lambda module, inputs, output: output + 1)


def pre_hook_on_norm(block, x):
    block.bn2.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def hook_on_relu(block, x):
    block.relu.register_forward_hook(lambda module, inputs, output: output * 2)


def replaced_forward(block, x):
    block.conv2.forward = lambda y: 3 * nn.Conv2d.forward(block.conv2, y)


def weight_norm(block, x):
    torch.nn.utils.parametrizations.weight_norm(block.conv2)
    block.conv2.parametrizations.weight.original0.data.mul_(2)


def pruned(block, x):
    prune.l1_unstructured(block.conv2, "weight", 0.5)


def plain_bias(block, x):
    del block.bn2.bias
    block.bn2.bias = torch.ones(block.bn2.num_features, device=x.device)


def callable_shortcut(block, x):
    block.downsample = None
    del block.downsample
    block.downsample = lambda y: y * 5


CHANGES = [
    gradient_of_input,
    gradient_of_one_parameter,
    norm_in_training,
    norm_without_statistics,
    other_norm,
    other_activation,
    other_conv,
    reflecting_conv,
    hook_on_conv,
    pre_hook_on_norm,
    hook_on_relu,
    replaced_forward,
    weight_norm,
    pruned,
    plain_bias,
    callable_shortcut,
]


@pytest.mark.parametrize("cls", [modules.FusedBasicBlock, modules.FusedBottleneck, modules.FusedPreActBlock])
@pytest.mark.parametrize("change", CHANGES)
def test_unsupported_changes_run_eagerly(cls, change, device, calls):
    block = randomise(identity_block(cls)).eval().to(device)
    block.fused_training = False  # test_training_blocks.py tests the training path
    x = torch.randn(2, block.conv1.in_channels, 6, 6, device=device)
    with torch.no_grad():
        unchanged = block(x)
    assert calls
    change(block, x)
    block.to(device)
    calls.clear()
    needs_grad = change.__name__.startswith("gradient")
    with torch.set_grad_enabled(needs_grad):
        y = block(x)
        expected = eager(block, x)
    assert not [name for name in calls if name != "bn_add_act"]
    assert torch.equal(y, expected)
    assert y.requires_grad == needs_grad
    if not needs_grad and change is not norm_without_statistics:
        assert not torch.equal(y, unchanged), "the change should show"


def test_frozen_parameters_fuse_without_no_grad(device, calls):
    block = randomise(modules.FusedBasicBlock(8, 8)).eval().requires_grad_(False).to(device)
    y = block(torch.randn(1, 8, 4, 4, device=device))
    assert calls == ["basic_block"]
    assert not y.requires_grad


def test_training_mode_of_norms_decides_the_path(device, calls, monkeypatch):
    block = modules.FusedBasicBlock(8, 8).to(device)
    x = torch.randn(2, 8, 4, 4, device=device)
    block.train()
    block.bn1.eval()
    block.bn2.eval()
    with torch.no_grad():
        block(x)
        assert calls, "block.training does not matter while its BatchNorms are frozen"
        calls.clear()
        block.eval()
        block.bn1.train()
        before = block.bn1.num_batches_tracked.item()
        means, conv_bn_act = [], ops.conv_bn_act  # on the CPU training calls it without a BatchNorm
        monkeypatch.setattr(ops, "conv_bn_act", lambda *a, **how: (means.append(a[5]), conv_bn_act(*a, **how))[1])
        y = block(x)
    assert "basic_block" not in calls and set(means) <= {None}, "these fold bn1's running statistics"
    assert block.bn1.num_batches_tracked == before + 1
    with torch.no_grad():
        torch.testing.assert_close(y, eager(block, x))


def test_global_hooks_run_eagerly_and_fire(device, calls):
    block = modules.FusedBasicBlock(8, 8).eval().to(device)
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    try:
        with torch.no_grad():
            block(torch.randn(1, 8, 4, 4, device=device))
    finally:
        handle.remove()
    assert not calls
    assert seen == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d", "ReLU", "FusedBasicBlock"]


def test_block_hooks_fire_on_the_fused_path(device, calls):
    block = modules.FusedBasicBlock(8, 8).eval().to(device)
    seen = []
    block.register_forward_pre_hook(lambda module, inputs: seen.append("before"))
    block.register_forward_hook(lambda module, inputs, output: seen.append("after"))
    with torch.no_grad():
        block(torch.randn(1, 8, 4, 4, device=device))
    assert seen == ["before", "after"]
    assert calls


@pytest.mark.parametrize(("cls", "shape"), CLASSES)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_matches_eager(cls, shape, x_dtype, weight_dtype, device):
    block = randomise(cls(*shape)).eval().to(device, weight_dtype)
    if weight_dtype is torch.bfloat16 and x_dtype is torch.float32:
        for bn in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
            bn.float()  # in eager a float32 input needs a float32 BatchNorm
    x = torch.randn(2, shape[0], 6, 6, device=device).to(x_dtype)
    with torch.no_grad():
        exact = eager(copy.deepcopy(block).double(), x.double())
        with torch.autocast(device.type, torch.bfloat16):
            assert_close(block(x), eager(block, x), exact)


def test_autocast_with_projection_fuses_from_float32(device, calls):
    block = randomise(modules.FusedBasicBlock(8, 16, 2, projection(8, 16, 2))).eval().to(device)
    x = torch.randn(2, 8, 6, 6, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        y = block(x)
        assert calls == ["conv_bn_act", "conv_bn_proj_act"]
        assert_close(y, eager(block, x), truth(resnet_fused.revert(copy.deepcopy(block)), x))


def test_autocast_leaves_float64_alone(device):
    block = randomise(modules.FusedBasicBlock(8, 8)).eval().double().to(device)
    x = torch.randn(1, 8, 4, 4, dtype=torch.float64, device=device)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(block(x), eager(block, x))


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(1, 8, 4, 4, dtype=torch.float64),
        torch.randn(8, 4, 4),
        torch.randn(1, 7, 4, 4),
        torch.ones(1, 8, 4, 4, dtype=torch.int64),
        torch.randn(1, 8, 4, 4, device="meta"),
    ],
    ids=["dtype", "no batch", "channels", "integers", "meta"],
)
def test_wrong_inputs_raise_as_eager_does(x):
    block = modules.FusedBasicBlock(8, 8).eval()
    errors = []
    for call in (block, lambda x: eager(block, x)):
        with torch.no_grad(), pytest.raises((RuntimeError, ValueError)) as error:
            call(x)
        errors.append(error.type)
    assert errors[0] is errors[1]


def test_one_channel_shortcut_is_broadcast():
    block = randomise(modules.FusedBasicBlock(1, 8)).eval()
    x = torch.randn(2, 1, 5, 5)
    with torch.no_grad():
        assert torch.equal(block(x), eager(block, x))


@zero_eps
def test_extreme_batch_norms(device):
    block = randomise(modules.FusedBasicBlock(8, 8)).eval().to(device)
    block.bn1.eps = 0.0
    nn.init.zeros_(block.bn2.weight)
    block.bn1.running_var[0] = 1e-30
    with torch.no_grad():
        x = torch.randn(2, 8, 4, 4, device=device)
        assert_close(block(x), eager(block, x), eager(copy.deepcopy(block).double(), x.double()))
        x[0, 0, 0, 0] = float("nan")
        x[1, 1, 1, 1] = float("inf")
        expected, actual = eager(block, x), block(x)
        assert torch.equal(expected.isnan(), actual.isnan())


def test_norm_without_affine_or_momentum(device):
    def norm(planes):
        return nn.BatchNorm2d(planes, affine=False, momentum=None)

    block = randomise(modules.FusedBasicBlock(8, 8, norm_layer=norm)).eval().to(device)
    x = torch.randn(2, 8, 4, 4, device=device)
    with torch.no_grad():
        assert_close(block(x), eager(block, x), eager(copy.deepcopy(block).double(), x.double()))


def test_func_transforms_run_eagerly(device):
    block = randomise(modules.FusedBasicBlock(8, 8)).eval().to(device)
    x = torch.randn(3, 8, 4, 4, device=device)
    with torch.no_grad():
        mapped = torch.func.vmap(lambda one: block(one[None])[0])(x)
        torch.testing.assert_close(mapped, eager(block, x))
        direction = torch.randn_like(x)
        _, tangent = torch.func.jvp(block, (x,), (direction,))
        _, expected = torch.func.jvp(lambda x: eager(block, x), (x,), (direction,))
        torch.testing.assert_close(tangent, expected)
        with torch.autograd.forward_ad.dual_level():
            dual = block(torch.autograd.forward_ad.make_dual(x, direction))
            torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, expected)
    gradient = torch.func.grad(lambda x: block(x).square().sum())(x)
    torch.testing.assert_close(gradient, torch.func.grad(lambda x: eager(block, x).square().sum())(x))


def test_functional_call_uses_the_given_parameters(device):
    block = randomise(modules.FusedBasicBlock(8, 8)).eval().to(device)
    x = torch.randn(1, 8, 4, 4, device=device)
    with torch.no_grad():
        doubled = {name: 2 * value for name, value in block.named_parameters()}
        expected = torch.func.functional_call(resnet_fused.revert(copy.deepcopy(block)), doubled, (x,))
        torch.testing.assert_close(torch.func.functional_call(block, doubled, (x,)), expected)


def test_tensor_subclasses_run_eagerly(calls):
    class Tagged(torch.Tensor):
        pass

    block = modules.FusedBasicBlock(8, 8).eval()
    x = torch.randn(1, 8, 4, 4).as_subclass(Tagged)
    with torch.no_grad():
        assert type(block(x)) is Tagged
    assert not calls


def test_failed_constructor_emits_no_warning(recwarn):
    with pytest.raises(ValueError, match="FusedBasicBlock supports groups=1"):
        modules.FusedBasicBlock(8, 8, groups=2)
    assert not recwarn.list
