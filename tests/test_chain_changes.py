"""Modules of ``convert(model, chains=True)`` that change later, or run under tracers, compilers and torch's modes."""

import copy

import pytest
import torch
import torch.nn.functional as F
from chain_modules import CASES, ConvNormAct, Nested, OneConvolution, SEBottleneck, Stem, vgg
from chain_parity import call, check, converted, explained, fused_ops, image, pair
from criterion import assert_close
from handwritten_blocks import Basic, conv1, conv3
from support import randomise
from torch import nn
from torch.nn.utils import parametrizations, prune

import resnet_fused

every_case = pytest.mark.parametrize("name", CASES)


class Flags(nn.Module):
    """Its ``forward`` reads attributes, a list and a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.unit = conv3(8, 8), nn.BatchNorm2d(8), ConvNormAct(8, 8)
        self.flag, self.order, self.act, self.scale = True, [0, 1], F.relu, nn.Parameter(torch.ones(1))

    def forward(self, x):
        for i in self.order:
            x = self.act(self.bn(self.conv(x))) if i == 0 else self.unit(x)
        return self.finish(x * self.scale)

    def finish(self, x):
        return x * 2 if self.flag else x


def set_to(name, value):
    def change(module):
        *path, attribute = name.split(".")
        setattr(module.get_submodule(".".join(path)), attribute, value() if callable(value) else value)

    return change


def edit(name, value):
    def change(module):
        with torch.no_grad():
            {**dict(module.named_parameters()), **dict(module.named_buffers())}[name].copy_(value)

    return change


def new(make):
    def made():
        torch.manual_seed(4)
        return randomise(make()).double().eval()

    return made


def parameter(*shape):
    return lambda: nn.Parameter(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))


def hook(name, kind="register_forward_hook"):
    def change(module):
        getattr(module.get_submodule(name), kind)(
            (lambda _, args, y: y + 1) if "pre" not in kind else lambda _, args: (args[0] + 1,)
        )

    return change


def training(name):
    return lambda module: module.get_submodule(name).train()


def forward_replaced(name):
    def change(module):
        part = module.get_submodule(name)
        part.forward = lambda x: type(part).forward(part, x) * 3

    return change


CHANGES = {
    "convolution": set_to("conv", new(lambda: conv1(8, 8, bias=True))),
    "norm": set_to("bn", new(lambda: nn.BatchNorm2d(8))),
    "norm is another kind": set_to("bn", new(lambda: nn.GroupNorm(2, 8))),
    "norm is none": set_to("bn", nn.Identity),
    "instance norm": set_to("bn", new(lambda: nn.InstanceNorm2d(8))),
    "activation": set_to("unit.act", nn.Hardtanh),
    "unit": set_to("unit", new(lambda: ConvNormAct(8, 8, 1, nn.SiLU))),
    "unit is a convolution": set_to("unit", new(lambda: conv3(8, 8))),
    "subclass of a convolution": set_to("conv", new(lambda: Doubled(8, 8, 1))),
    "flag": set_to("flag", False),
    "list": lambda module: module.order.append(0),
    "function": set_to("act", lambda: F.silu),
    "stride": set_to("conv.stride", (2, 2)),
    "padding mode": set_to("conv.padding_mode", "circular"),
    "padding": set_to("conv.padding", lambda: "same"),
    "eps": set_to("bn.eps", 0.5),
    "inplace": set_to("unit.act.inplace", True),
    "weight": set_to("conv.weight", parameter(8, 8, 3, 3)),
    "weight of another shape": set_to("conv.weight", parameter(8, 8, 1, 1)),
    "bias": set_to("conv.bias", parameter(8)),
    "gamma": set_to("bn.weight", parameter(8)),
    "no gamma": set_to("bn.weight", None),
    "data": lambda module: setattr(module.conv.weight, "data", parameter(8, 8, 3, 3)().data),
    "weight in place": edit("conv.weight", 0.25),
    "gamma in place": edit("unit.norm.weight", 3.0),
    "mean in place": edit("bn.running_mean", 3.0),
    "variance in place": edit("unit.norm.running_var", 9.0),
    "scale": edit("scale", 7.0),
    "hook of a convolution": hook("conv"),
    "hook of a norm": hook("bn", "register_forward_pre_hook"),
    "hook of a unit": hook("unit"),
    "hook of an activation": hook("unit.act"),
    "hook of the module": hook(""),
    "pre-hook of the module": hook("", "register_forward_pre_hook"),
    "one norm trains": training("bn"),
    "a unit trains": training("unit"),
    "the module trains": training(""),
    "no statistics": set_to("bn", new(lambda: nn.BatchNorm2d(8, track_running_stats=False))),
    "no buffers": lambda module: (set_to("bn.running_mean", None)(module), set_to("bn.running_var", None)(module)),
    "forward of a convolution": forward_replaced("conv"),
    "forward of a norm": forward_replaced("bn"),
    "forward of a unit": forward_replaced("unit"),
    "method of the instance": set_to("finish", lambda: lambda x: x * 5),
    "parametrisation": lambda module: parametrizations.weight_norm(module.conv),
    "spectral norm": lambda module: parametrizations.spectral_norm(module.unit.conv),
    "pruning": lambda module: prune.l1_unstructured(module.conv, "weight", 0.5),
    "class of a unit": lambda module: setattr(module.unit, "__class__", Negative),
}


class Doubled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


class Negative(ConvNormAct):
    def forward(self, x):
        return -super().forward(x)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_after_a_call(change):
    eager, fused = pair(Flags)
    check(eager, fused)
    before = call(fused, image())[0]
    for module in (eager, fused):
        torch.manual_seed(6)
        change(module)
    for _ in range(2):
        check(eager, fused)
    if change not in [CHANGES[name] for name in ("inplace", "padding", "parametrisation")]:
        after = call(eager, image())[0]
        assert after.shape != before.shape or not torch.allclose(after, before), "the change changes nothing"


def test_changes_between_calls_are_undone():
    eager, fused = pair(Flags)
    handles = []
    for _ in range(2):
        for flag in (True, False):
            for module in (eager, fused):
                module.flag = flag
                handles.append(module.conv.register_forward_hook(lambda _, args, y: y + 1))
            check(eager, fused)
            while handles:
                handles.pop().remove()
            check(eager, fused)
            assert fused_ops(fused) == 2


def test_modes_of_all_modules_switch_back_and_forth():
    eager, fused = pair(SEBottleneck)
    for mode in (True, False, True, False):
        check(eager.train(mode), fused.train(mode))
        assert torch.equal(fused.bn2.running_mean, eager.bn2.running_mean)
        assert fused.bn2.num_batches_tracked == eager.bn2.num_batches_tracked
    assert fused_ops(fused) == 3


@pytest.mark.parametrize("mode", [True, False])
def test_batch_statistics_without_gradients_say_so(mode):
    _, fused = pair(OneConvolution)
    fused.bn = randomise(nn.BatchNorm2d(6, track_running_stats=mode)).double().train(mode)
    run = explained(fused)
    assert run.how == "eager"
    assert run.reason


def test_replaced_method_of_the_class(monkeypatch):
    class Own(Flags):
        pass

    eager, fused = pair(Own)
    check(eager, fused)
    monkeypatch.setattr(Own, "finish", lambda self, x: x - 3, raising=False)
    check(eager, fused)
    monkeypatch.setattr(ConvNormAct, "forward", lambda self, inputs: inputs * 2)
    check(eager, fused)
    monkeypatch.setattr(Own, "forward", lambda self, x: self.conv(x))
    check(eager, fused)


def test_patched_torch_layers(monkeypatch):
    eager, fused = pair(Flags)
    check(eager, fused)
    forward = nn.BatchNorm2d.forward
    monkeypatch.setattr(nn.BatchNorm2d, "forward", lambda self, x: forward(self, x) * 2)
    check(eager, fused)
    assert "patched" in explained(fused).reason


def test_global_hook():
    eager, fused = pair(Flags)
    handle = nn.modules.module.register_module_forward_hook(lambda module, _, y: y * 2)
    try:
        check(eager, fused)
    finally:
        handle.remove()
    check(eager, fused)


def test_reason_of_a_hook_inside():
    _, fused = pair(Flags)
    fused.unit.act.register_forward_hook(lambda *_: None)
    assert explained(fused).reason == "a forward hook is registered on unit.act"


def test_convolutions_of_another_padding_run_as_in_eager():
    eager, fused = pair(lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(8)))
    check(eager, fused)
    assert fused_ops(fused) == 0


@pytest.mark.parametrize("strict", [True, False])
def test_functional_call(strict):
    eager, fused = pair(SEBottleneck)
    check(eager, fused)
    other = {name: t * 2 + 0.5 for name, t in eager.state_dict().items() if t.is_floating_point()}
    if not strict:
        other = {name: t for name, t in other.items() if "2" in name}
    expected, actual = (
        call(lambda x, module=module: torch.func.functional_call(module, other, (x,)), image())
        for module in (eager, fused)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    check(eager, fused)


def test_vmap_and_jvp():
    eager, fused = (module.requires_grad_(False) for module in pair(SEBottleneck))
    x = image()
    actual, expected = (torch.func.vmap(module)(torch.stack([x, x + 1])) for module in (fused, eager))
    torch.testing.assert_close(actual, expected)
    actual, expected = (torch.func.jvp(module, (x,), (x,)) for module in (fused, eager))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("make", [SEBottleneck, vgg, Nested, Stem])
def test_compile(make):
    eager, fused = pair(make, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    x = image(dtype=torch.float32)
    expected, actual = call(eager, x)[0], call(compiled, x)[0]
    assert_close(actual, expected, call(copy.deepcopy(eager).double(), x.double())[0])
    assert actual.stride() == expected.stride()


@pytest.mark.parametrize("make", [SEBottleneck, vgg, Nested, Stem])
def test_export(make):
    eager, fused = pair(make)
    call(fused, image())
    with torch.no_grad():
        program = torch.export.export(fused, (image(),))
    torch.testing.assert_close(program.module()(image()), eager(image()))


@pytest.mark.parametrize("make", [SEBottleneck, vgg, Nested])
def test_fx_sees_the_eager_layers(make):
    eager, fused = pair(make)
    for trace in (torch.fx.symbolic_trace, lambda m: torch.fx.GraphModule(m, resnet_fused.Tracer().trace(m))):
        graph = trace(fused)
        assert any(type(m) is nn.Conv2d for m in graph.modules())
        torch.testing.assert_close(graph(image()), eager(image()), rtol=0, atol=0)


def test_jit_trace_and_script():
    eager, fused = pair(SEBottleneck, torch.float32)
    x = image(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.trace(fused, x)(x), eager(x))
    with pytest.raises(RuntimeError, match="revert"):
        torch.jit.script(fused)


@every_case
def test_autocast(name):
    """No worse than eager; its dtypes and strides."""
    eager, fused = pair(CASES[name].make, torch.float32)
    x = image(CASES[name].size, dtype=torch.float32)
    exact = call(copy.deepcopy(eager).double(), x.double())
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = call(eager, x), call(fused, x)
        again = call(fused, x)
    for i, y in expected.items():
        assert_close(actual[i], y, exact[i])
        assert actual[i].stride() == y.stride()
        assert torch.equal(actual[i], again[i])
    check(eager.double(), fused.double(), x.double())


@pytest.mark.parametrize("make", [SEBottleneck, vgg])
def test_inference_mode(make):
    eager, fused = pair(make)
    with torch.inference_mode():
        x = image()
        actual = fused(x)
        assert actual.is_inference()
        torch.testing.assert_close(actual, eager(x), rtol=1e-9, atol=1e-9)
    check(eager, fused)
    with torch.inference_mode():
        assert fused_ops(fused) == 3


@pytest.mark.parametrize("make", [SEBottleneck, vgg, Nested])
def test_other_dtypes_and_moves(make):
    eager, fused = pair(make)
    check(eager, fused)
    for dtype in (torch.float32, torch.float64):
        for module in (eager, fused):
            module.to(dtype)
        expected, actual = call(eager, image(dtype=dtype))[0], call(fused, image(dtype=dtype))[0]
        torch.testing.assert_close(actual, expected)
        fused.load_state_dict(eager.state_dict(), assign=True)


@pytest.mark.parametrize("size", [(0, 8, 7, 9), (2, 8, 1, 9)])
@pytest.mark.parametrize("name", ["se", "nested", "res2", "activations", "two outputs", "one"])
def test_empty_and_thin_inputs(name, size):
    eager, fused = pair(CASES[name].make)
    check(eager, fused, torch.randn(size, dtype=torch.float64).contiguous(memory_format=torch.channels_last))
    check(eager, fused, torch.randn(size, dtype=torch.float64))


@pytest.mark.parametrize(
    "x",
    [image(channels=5), image()[0, :5], image().to(torch.int64), image().float(), image((1, 1))[..., :0]],
    ids=["channels", "channels of an image", "integers", "another dtype", "no pixels"],
)
@pytest.mark.parametrize("make", [SEBottleneck, vgg, Nested])
def test_wrong_inputs_raise_as_in_eager(make, x):
    eager, fused = pair(make)
    with pytest.raises(Exception) as expected:
        call(eager, x)
    with pytest.raises(expected.type) as actual:
        call(fused, x)
    if "expected input" in str(expected.value):
        assert str(x.shape[-3]) in str(actual.value)


def test_views_and_expanded_inputs():
    eager, fused = pair(SEBottleneck)
    x = image((9, 9))
    check(eager, fused, x[:, :, 1:8:2, 2:])
    check(eager, fused, x.transpose(2, 3))
    check(eager, fused, x[:1].expand(3, -1, -1, -1))
    check(eager, fused, x.flip(1)[1:])


def test_two_modules_share_a_child():
    shared = ConvNormAct(8, 8)
    eager = randomise(nn.Sequential(nn.Sequential(shared, conv1(8, 8), nn.BatchNorm2d(8)), shared)).double().eval()
    fused = converted(copy.deepcopy(eager))
    check(eager, fused)
    for module in (eager, fused):
        module[1].conv.weight.data.mul_(2)
    check(eager, fused)


def test_sequential_is_edited_and_sliced():
    eager, fused = pair(vgg)
    check(eager, fused)
    check(eager[:3], fused[:3])
    check(eager[0], fused[0])
    for module in (eager, fused):
        module.append(nn.Sigmoid())
        module.insert(1, nn.Tanh())
    check(eager, fused)
    for module in (eager, fused):
        del module[1]
        module[-1] = nn.ReLU()
    check(eager, fused)
    assert fused_ops(fused) == 3


class WithoutAutocast(Basic):
    """Both its convolutions and those of the shortcut run in float32."""

    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


class OneWithoutAutocast(OneConvolution):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return F.relu(self.bn(self.conv(x)))


class WithGradients(OneConvolution):
    def forward(self, x):
        with torch.enable_grad():
            return F.relu(self.bn(self.conv(x)))


@pytest.mark.parametrize("make", [OneWithoutAutocast, lambda: WithoutAutocast(8, 6, 2)], ids=["chain", "block"])
def test_forward_that_disables_autocast(make):
    eager, fused = pair(make, torch.float32)
    x = image(dtype=torch.float32)
    call(fused, x)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = call(eager, x)[0], call(fused, x)[0]
    assert actual.dtype is expected.dtype is torch.float32
    torch.testing.assert_close(actual, expected)


def test_forward_that_enables_gradients():
    eager, fused = pair(WithGradients)
    check(eager, fused)
    with torch.no_grad():
        assert fused(image()).requires_grad == eager(image()).requires_grad
