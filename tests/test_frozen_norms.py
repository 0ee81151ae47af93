"""Blocks with frozen BatchNorms, and with norms that contain an activation: torchvision's, timm's, transformers'."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from handwritten_blocks import Basic, conv1, conv3, part
from handwritten_parity import FORMATS, MODES, assert_same, how, input_of, step
from support import TINY_EPS, ops_of, randomise
from torch import nn
from training import assert_trains_as_eager

import resnet_fused
from resnet_fused.chain import norms

ops = pytest.importorskip("torchvision.ops")
resnet = pytest.importorskip("torchvision.models").resnet
FrozenBatchNorm2d = ops.FrozenBatchNorm2d


def like(name, base=nn.Module, **attributes):
    """A class that has the full name of another library's."""
    module, _, short = name.rpartition(".")
    return type(short, (base,), {**attributes, "__module__": module, "__qualname__": short})


@pytest.fixture(autouse=True)
def accept_their_forward(monkeypatch):
    """Only their own code makes a norm known; here, that of the classes below does too."""
    original = norms._is_original
    monkeypatch.setattr(norms, "_is_original", lambda kind: kind in THEIRS or original(kind))


def _frozen(self, channels, eps=1e-5, act=None):
    nn.Module.__init__(self)
    self.eps = eps
    for name, value in zip(("weight", "bias", "running_mean", "running_var"), (1.0, 0.0, 0.0, 1.0), strict=True):
        self.register_buffer(name, torch.full((channels,), value))
    if act is not None:
        self.drop, self.act = nn.Identity(), act()


def _affine(self, x, eps):
    w, b, mean, var = (t.reshape(1, -1, 1, 1) for t in (self.weight, self.bias, self.running_mean, self.running_var))
    scale = w * (var + eps).rsqrt()
    return x * scale + (b - mean * scale)


def _with_act(self, channels, act=nn.ReLU, drop=nn.Identity, **settings):
    nn.BatchNorm2d.__init__(self, channels, **settings)
    self.drop, self.act = drop(), act()


Detr = like(
    "transformers.models.detr.modeling_detr.DetrFrozenBatchNorm2d",
    __init__=_frozen,
    forward=lambda self, x: _affine(self, x, 1e-5),
)
BatchNormAct2d = like(
    "timm.layers.norm_act.BatchNormAct2d",
    nn.BatchNorm2d,
    __init__=_with_act,
    forward=lambda self, x: self.act(self.drop(nn.BatchNorm2d.forward(self, x))),
)
FrozenBatchNormAct2d = like(
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    __init__=functools.partialmethod(_frozen, act=nn.ReLU),
    forward=lambda self, x: self.act(self.drop(_affine(self, x, self.eps))),
)


THEIRS = (Detr, BatchNormAct2d, FrozenBatchNormAct2d)


class Timm(nn.Module):
    """A bottleneck whose norms contain the ReLU, as in timm's networks; the last has none."""

    def __init__(self, norm=BatchNormAct2d):
        super().__init__()
        self.conv1, self.bn1 = conv1(6, 4), norm(4)
        self.conv2, self.bn2 = conv3(4, 4), norm(4)
        self.conv3, self.bn3 = conv1(4, 6), norm(6)
        self.bn3.act = nn.Identity()

    def forward(self, x):
        return F.relu(self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x)))))) + x)


def basic(norm=FrozenBatchNorm2d):
    return resnet.BasicBlock(6, 6, norm_layer=norm)


def bottleneck(norm=FrozenBatchNorm2d):
    down = nn.Sequential(conv1(6, 8, 2), norm(8))
    return resnet.Bottleneck(6, 2, 2, down, norm_layer=norm)


def mixed():
    block = Basic(6, 8, 2)
    block.bn1, block.downsample[1] = FrozenBatchNorm2d(8), FrozenBatchNorm2d(8)
    return block


BLOCKS = {
    "basic": basic,
    "bottleneck": bottleneck,
    "hand-written": part(Basic, 6, 8, 2, FrozenBatchNorm2d),
    "mixed": mixed,
    "transformers": part(Basic, 6, 6, 1, Detr),
    "timm": Timm,
    "frozen timm": part(Timm, FrozenBatchNormAct2d),
    "no eps": part(basic, functools.partial(FrozenBatchNorm2d, eps=0.0)),
    "tiny eps": part(basic, functools.partial(FrozenBatchNorm2d, eps=TINY_EPS)),
}
every_block = pytest.mark.parametrize("name", BLOCKS)


def randomised(block):
    """Randomises frozen norms too."""
    randomise(block)
    for module in block.modules():
        if "Frozen" in type(module).__name__:
            module.weight.uniform_(0.5, 1.2)
            module.bias.normal_(0, 0.2)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return block


def pair(make, dtype=torch.float64):
    torch.manual_seed(0)
    eager = randomised(make()).to(dtype)
    fused = resnet_fused.convert(copy.deepcopy(eager), strict=True)
    return eager, fused


def check(eager, fused):
    for memory_format in FORMATS:
        for mode in MODES.values():
            x = input_of(memory_format=memory_format)
            expected, actual = step(eager, x, mode), step(fused, x, mode)
            assert_same(actual, expected, f" ({mode}, {memory_format})")
            assert actual["output"].stride() == expected["output"].stride()


@every_block
def test_block_equals_eager(name):
    eager, fused = pair(BLOCKS[name])
    check(eager, fused)
    check(*(block.to(memory_format=torch.channels_last) for block in (eager, fused)))


@every_block
def test_block_runs_fused(name):
    _, fused = pair(BLOCKS[name])
    x = input_of()
    assert how(fused, x, MODES["eval"]) == "inference"
    assert how(fused, x, MODES["eval-grad"]) == how(fused, x, MODES["train"]) == "training"
    report = resnet_fused.report(fused)
    assert report[""].status == "converted"
    assert not report[""].reason
    assert ops_of(fused.eval(), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_block
def test_inference_in_narrow_dtypes(name, dtype):
    eager, fused = pair(BLOCKS[name], dtype)
    for memory_format in FORMATS:
        x = input_of(memory_format=memory_format, dtype=dtype)
        exact = step(copy.deepcopy(eager).double(), x.double(), MODES["eval"])["output"]
        expected, actual = (step(block, x, MODES["eval"])["output"] for block in (eager, fused))
        assert_close(actual, expected, exact)


@every_block
def test_training_in_float32(name):
    _, fused = pair(BLOCKS[name], torch.float32)
    assert_trains_as_eager(fused.train(), input_of(dtype=torch.float32).requires_grad_(), fused=True)


def trained(block, x, direction):
    """The output and all gradients of a training step in float64, and their dtypes."""
    block.train().zero_grad()
    leaf = x.clone().requires_grad_()
    y = block(leaf)
    y.backward(direction.to(y.dtype))
    found = [y.detach(), leaf.grad, *(p.grad for p in block.parameters())]
    return [t.double() for t in found], [t.dtype for t in found]


@pytest.mark.parametrize("name", ["basic", "hand-written", "mixed", "transformers", "timm", "frozen timm"])
def test_training_in_bfloat16(name):
    """On average over networks: in one of them, rounding may change a ReLU's mask, of eager or of the block."""
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in range(8):
        torch.manual_seed(seed)
        eager = randomised(BLOCKS[name]()).bfloat16()
        fused = resnet_fused.convert(copy.deepcopy(eager), strict=True)
        x = input_of(dtype=torch.bfloat16)
        direction = torch.randn_like(eager(x))
        exact, _ = trained(copy.deepcopy(eager).double(), x.double(), direction)
        (expected, dtypes), (actual, own_dtypes) = (trained(block, x, direction) for block in (eager, fused))
        assert own_dtypes == dtypes
        for i, found in enumerate((expected, actual)):
            errors[i] += sum((t - true).norm() / true.norm() for t, true in zip(found, exact, strict=True))
    assert errors[0] < 8 * len(exact) * 0.2, "eager learns the same"
    assert errors[1] <= 2 * errors[0]


@every_block
def test_buffers_may_be_edited_or_replaced(name):
    eager, fused = pair(BLOCKS[name])
    check(eager, fused)
    before = fused.eval()(input_of()[:, :, :4])
    norms = [path for path, module in eager.named_modules() if hasattr(module, "running_var")]
    for path in norms:
        for block in (eager, fused):
            norm = block.get_submodule(path)
            norm.running_mean += 0.5
            norm.running_var.mul_(3)
            norm.weight.data = norm.weight.data * 2
            norm.running_mean = norm.running_mean + 1
            norm.eps = 0.01
    check(eager, fused)
    assert not torch.allclose(fused.eval()(input_of()[:, :, :4]), before)
    fused.load_state_dict(pair(BLOCKS[name])[0].state_dict())
    eager.load_state_dict(fused.state_dict())
    check(eager, fused)


WIDE = "a frozen BatchNorm has parameters of a wider dtype than torch.bfloat16"


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", ["basic", "bottleneck", "hand-written", "transformers", "frozen timm"])
def test_autocast_runs_eager(name, mode):
    """The norm's float32 buffers make eager's output float32."""
    eager, fused = pair(BLOCKS[name], torch.float32)
    x = input_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = step(eager, x, mode), step(fused, x, mode)
        run = resnet_fused.explain(fused.train(mode.training), x)[""]
    assert all(torch.equal(actual[key], value) for key, value in expected.items())
    assert actual["output"].dtype is expected["output"].dtype
    adds_x = "the shortcut adds x, torch.float32 [3, 6, 6, 6], to torch.bfloat16 [3, 6, 6, 6]"
    assert (run.how, run.reason) == ("eager", adds_x if name in ("basic", "transformers", "frozen timm") else WIDE)


def test_wider_buffers_run_eager():
    eager, fused = pair(basic, torch.bfloat16)
    for block in (eager, fused):
        block.bn1.float()
    x = input_of(dtype=torch.bfloat16)
    with torch.no_grad():
        with pytest.raises(RuntimeError) as expected:
            eager(x)
        with pytest.raises(RuntimeError) as actual:
            fused(x)
    assert str(actual.value) == str(expected.value)


def test_autocast_of_timm_norms():
    """They are BatchNorms, whose output has their input's dtype."""
    eager, fused = pair(Timm, torch.float32)
    x = input_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        expected, actual = (step(block, x, MODES["eval"])["output"] for block in (eager, fused))
    assert_close(actual, expected, step(copy.deepcopy(eager).double(), x.double(), MODES["eval"])["output"])


@pytest.mark.parametrize("make", [basic, part(Basic)])
def test_freezing_after_conversion(make):
    eager, fused = pair(functools.partial(make, norm=nn.BatchNorm2d))
    check(eager, fused)
    for block in (eager, fused):
        for name in ("bn1", "bn2"):
            old, new = getattr(block, name), FrozenBatchNorm2d(6).double()
            new.load_state_dict(old.state_dict())
            setattr(block, name, new)
    check(eager, fused)  # a matched block runs eagerly: its code is new
    resnet_fused.convert(fused)
    check(eager, fused)
    assert how(fused, input_of(), MODES["eval"]) == "inference"
    assert how(fused, input_of(), MODES["train"]) == "training"
    for block in (eager, fused):
        block.bn2 = randomise(nn.BatchNorm2d(6)).double() if block is eager else copy.deepcopy(eager.bn2)
    check(eager, fused)


def test_requires_grad_and_eval_freeze_a_norm():
    eager, fused = pair(part(Basic))
    for block in (eager, fused):
        block.bn1.requires_grad_(False)
    freeze = functools.partial(_eval, "bn1")
    for mode in MODES.values():
        x = input_of()
        assert_same(step(fused, x, mode, freeze), step(eager, x, mode, freeze))


def _eval(name, block):
    block.get_submodule(name).eval()


@pytest.mark.parametrize("make", [basic, part(Basic), bottleneck])
def test_synchronised_norms_convert(make):
    eager, fused = pair(functools.partial(make, norm=nn.SyncBatchNorm))
    assert isinstance(fused.bn1, nn.SyncBatchNorm)
    x = input_of()
    for mode in (MODES["eval"], MODES["eval-grad"]):
        assert_same(step(fused, x, mode), step(eager, x, mode))
    assert how(fused, x, MODES["eval"]) == "inference"


@pytest.mark.parametrize("act", [nn.SiLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish])
def test_another_activation_is_refused(act):
    make = part(Timm, functools.partial(BatchNormAct2d, act=act))
    torch.manual_seed(0)
    eager = randomise(make()).double()
    entry = resnet_fused.report(eager)[""]
    assert entry.status == "refused"
    assert entry.reason.startswith("bn2 (timm.layers.norm_act.BatchNormAct2d) comes before conv3")
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert type(fused) is Timm
    check(eager, resnet_fused.convert(fused, chains=True))


@pytest.mark.parametrize("change", ["act", "drop"])
def test_activation_exchanged_after_conversion(change):
    eager, fused = pair(Timm)
    check(eager, fused)
    for block in (eager, fused):
        setattr(block.bn1, change, nn.SiLU())
    check(eager, fused)
    assert how(fused, input_of(), MODES["eval"]) == "eager"
    for block in (eager, fused):
        setattr(block.bn1, change, nn.Identity())
    check(eager, fused)


class Chain(nn.Module):
    """No residual block: a convolution, a norm with or without activation, and a ReLU."""

    def __init__(self, act):
        super().__init__()
        self.conv, self.bn, self.relu = conv3(6, 6), BatchNormAct2d(6, act=act), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


@pytest.mark.parametrize("act", [nn.Identity, nn.ReLU, nn.SiLU])
def test_chains_with_an_activation_in_the_norm(act):
    torch.manual_seed(0)
    eager = randomise(Chain(act)).double()
    check(eager, resnet_fused.convert(copy.deepcopy(eager), chains=True))


@pytest.mark.parametrize("norm", [FrozenBatchNorm2d, Detr, FrozenBatchNormAct2d])
def test_chains_with_a_frozen_norm(norm):
    torch.manual_seed(0)
    eager = randomised(nn.Sequential(conv3(6, 8), norm(8), nn.ReLU(), nn.MaxPool2d(2), conv1(8, 4), norm(4))).double()
    fused = resnet_fused.convert(copy.deepcopy(eager), chains=True)
    check(eager, fused)
    x = input_of(memory_format=torch.channels_last)
    assert len(ops_of(fused, x)) == 2
    for module in (eager, fused):
        module[1].running_mean.add_(1)
    check(eager, fused)
    x, eager, fused = x.float(), eager.float(), fused.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, actual = eager(x), fused(x)
    assert actual.dtype is expected.dtype
    assert_close(actual, expected, copy.deepcopy(eager).double()(x.double()))


@pytest.mark.parametrize("name", ["basic", "bottleneck", "transformers", "timm", "mixed"])
def test_copies_and_revert(name):
    eager, fused = pair(BLOCKS[name])
    twin = copy.deepcopy(fused)
    check(copy.deepcopy(eager), twin)
    resnet_fused.revert(twin)
    assert [*map(type, twin.modules())] == [*map(type, eager.modules())]
    assert twin.state_dict().keys() == eager.state_dict().keys()
    assert resnet_fused.report(twin)[""].status == "convertible"


def test_network_of_a_detector():
    """torchvision's detectors freeze all norms and train the last stages."""
    eager, fused = pair(lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 5, norm_layer=FrozenBatchNorm2d))
    assert resnet_fused.report(fused).coverage.fused == 4
    for model in (eager, fused):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("layer3" in name or "layer4" in name)
    x = input_of(3, (32, 32))
    for mode in MODES.values():
        assert_same(step(fused, x, mode), step(eager, x, mode))


def test_norms_of_the_libraries_themselves():
    timm = pytest.importorskip("timm.layers.norm_act")
    for norm in (timm.BatchNormAct2d, timm.FrozenBatchNormAct2d):
        check(*pair(part(Timm, norm)))
    eager = pair(part(Timm, timm.BatchNormAct2d))[0]
    frozen = timm.freeze_batch_norm_2d(copy.deepcopy(eager))
    check(frozen, resnet_fused.convert(copy.deepcopy(frozen), strict=True))
    detr = pytest.importorskip("transformers.models.detr.modeling_detr")
    check(*pair(part(Basic, 6, 6, 1, detr.DetrFrozenBatchNorm2d)))
