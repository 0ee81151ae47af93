"""explain: how each block and stem runs for an input, and why eager runs."""

import copy

import pytest
import torch
from support import grant, ops_of, randomise
from torch import nn
from training import is_trained

import resnet_fused
from resnet_fused import Run, _indexing, models, reference

resnet = pytest.importorskip("torchvision.models").resnet

NETWORKS = {
    "small_resnet": models.small_resnet,
    "small_preact_resnet": models.small_preact_resnet,
    "cifar_A": lambda: models.cifar_resnet(8),
    "cifar_plain": lambda: models.cifar_resnet(8, residual=False),
    "cifar_preact_B": lambda: models.cifar_resnet(8, preact=True, shortcut="B"),
    "cifar_plain_preact": lambda: models.cifar_resnet(8, preact=True, residual=False),
    "resnet": lambda: models.ResNet(reference.Bottleneck, [1, 1, 1, 1], 10),
    "torchvision": lambda: resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], 10),
}
every_network = pytest.mark.parametrize("name", NETWORKS)


def network(name):
    return resnet_fused.convert(randomise(NETWORKS[name]()), strict=True).eval()


def images():
    return torch.randn(2, 3, 32, 32)


def basic(**options):
    return resnet_fused.convert(nn.Sequential(randomise(reference.BasicBlock(8, 8, **options)))).eval()


def features():
    return torch.randn(2, 8, 6, 5)


def reason_of(model, x, name="0"):
    """Returns why eager runs, after checking that it does."""
    explained = resnet_fused.explain(model, x)
    assert explained[name].how == "eager"
    return explained[name].reason


def hooked(module, args, output):
    return output


@every_network
def test_network_without_gradients_runs_inference(name):
    model = network(name)
    with torch.no_grad():
        explained = resnet_fused.explain(model, images())
    assert {key: run.kind for key, run in explained.items()} == {
        key: entry.kind for key, entry in resnet_fused.report(model).items()
    }
    assert len(explained) > 2
    assert {(run.how, run.reason) for run in explained.values()} == {("inference", "")}


@every_network
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_network_with_gradients_runs_training(name, training):
    explained = resnet_fused.explain(network(name).train(training), images())
    assert {(run.how, run.reason) for run in explained.values()} == {("training", "")}


@every_network
def test_network_that_is_not_converted_runs_eagerly(name):
    model = NETWORKS[name]().eval()
    explained = resnet_fused.explain(model, images())
    assert list(explained) == list(resnet_fused.report(model))
    assert {run.how for run in explained.values()} == {"eager"}
    assert {run.reason for run in explained.values()} == {"not converted yet; call resnet_fused.convert"}


def frozen_statistics(model):
    return model.train().requires_grad_(False)


def frozen(model):
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("prepare", "gradients", "how"),
    [
        (frozen, True, "inference"),
        (frozen_statistics, True, "training"),
        (lambda model: model.train(), False, "training"),
        (lambda model: model.eval(), False, "inference"),
    ],
    ids=["frozen", "frozen, batch statistics", "no_grad, batch statistics", "no_grad"],
)
def test_answer_depends_on_gradients_and_mode(prepare, gradients, how):
    model = prepare(basic())
    with torch.set_grad_enabled(gradients):
        assert resnet_fused.explain(model, features())["0"] == Run("basic block", how)


@pytest.mark.parametrize("hooks", [0, 1], ids=["fused", "eager"])
def test_answer_is_what_runs(hooks):
    model, x = basic(), features()
    for _ in range(hooks):
        model[0].conv1.register_forward_hook(hooked)
    assert resnet_fused.explain(model, x)["0"].how == ("eager" if hooks else "training")
    assert is_trained(model(x)) == (not hooks)
    with torch.no_grad():
        assert resnet_fused.explain(model, x)["0"].how == ("eager" if hooks else "inference")
        assert bool(ops_of(model, x)) == (not hooks)


def other_layer(block):
    block.bn1 = nn.GroupNorm(2, 8)


def other_shortcut(block):
    block.downsample = nn.Sequential(nn.ReLU(inplace=True))


def weight_norm(block):
    torch.nn.utils.parametrizations.weight_norm(block.conv1)


def replace_forward(block):
    block.forward = lambda x: x


CHANGES = {
    "a forward hook is registered on 0.conv2": lambda block: block.conv2.register_forward_hook(hooked),
    "a backward hook is registered on 0.conv1": lambda block: block.conv1.register_full_backward_hook(lambda *_: None),
    "0.bn1 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d": other_layer,
    "0.downsample may modify its input in place or contains a module that is not torch's own": other_shortcut,
    "0.conv1 is parametrised (torch.nn.utils.parametrize)": weight_norm,
    "its forward was replaced on this instance": replace_forward,
}


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_changed_block_has_a_reason(reason, training):
    model = basic().train(training)
    with torch.set_grad_enabled(training):
        resnet_fused.explain(model, features())  # the block remembers what its modules held
        CHANGES[reason](model[0])
        assert reason_of(model, features()) == reason


def test_hook_on_the_block_itself_changes_nothing():
    model = basic()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        assert resnet_fused.explain(model, features())["0"].how == "inference"
    assert calls == [1], "explain calls the model once"


def test_fused_training_off_is_a_reason_in_training_only():
    model = basic()
    model[0].fused_training = False
    assert reason_of(model, features()) == "fused_training is False"
    assert reason_of(model.train(), features()) == "fused_training is False"
    with torch.no_grad():
        assert resnet_fused.explain(model.eval(), features())["0"].how == "inference"


def test_fused_training_off_on_a_network_is_for_its_ends():
    for name in ("small_resnet", "small_preact_resnet"):
        model = network(name).train()
        model.fused_training = False
        explained = resnet_fused.explain(model, images())
        assert explained[""] == Run("stem", "eager", "fused_training is False")
        assert {run.how for key, run in explained.items() if key} == {"training"}


@torch.no_grad()
def test_float32_into_an_identity_block_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        reason = reason_of(basic(), features())
        assert reason == ("the shortcut adds x, torch.float32 [2, 8, 6, 5], to torch.bfloat16 [2, 8, 6, 5]")
        assert resnet_fused.explain(basic(), features().bfloat16())["0"].how == "inference"
        projected = basic(downsample=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
        assert resnet_fused.explain(projected, features())["0"].how == "inference"


@torch.no_grad()
def test_float64_under_autocast():
    model, x = basic().double(), features().double()
    with torch.autocast("cpu", torch.bfloat16):
        assert reason_of(model, x) == "the input is float64 under autocast"
    assert resnet_fused.explain(model, x)["0"].how == "inference"


@pytest.mark.parametrize("name", ["small_resnet", "small_preact_resnet"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_network_under_autocast_runs_fused(name, training):
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(training):
        explained = resnet_fused.explain(network(name).train(training), images())
    assert {run.how for run in explained.values()} == {"training" if training else "inference"}


class Marked(torch.Tensor):
    pass


@torch.no_grad()
def test_tensor_subclass_is_a_reason():
    reason = "the input is a test_explain.Marked, not a plain tensor"
    assert reason_of(basic(), features().as_subclass(Marked)) == reason
    for name in ("small_resnet", "small_preact_resnet"):
        explained = resnet_fused.explain(network(name), images().as_subclass(Marked))
        assert {(run.how, run.reason) for run in explained.values()} == {("eager", reason)}


class Mapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = basic()[0]

    def forward(self, x):
        return torch.func.vmap(self.block)(x)


@torch.no_grad()
def test_vmap_is_a_reason():
    x = torch.randn(3, 2, 8, 6, 5)
    assert reason_of(Mapped(), x, "block") == "a torch.func transform is active"


@torch.no_grad()
def test_global_hook_is_a_reason():
    block, preact = basic(), network("small_preact_resnet")
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert reason_of(block, features()).startswith("a global module hook is registered")
        explained = resnet_fused.explain(preact, images())
        assert all(run.reason.startswith("a global module hook is registered") for run in explained.values())
    finally:
        handle.remove()
    assert resnet_fused.explain(block, features())["0"].how == "inference"


@torch.no_grad()
def test_patched_layers_are_a_reason(monkeypatch):
    model = basic()
    forward = nn.Conv2d.forward
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: forward(self, x))
    assert reason_of(model, features()) == "methods or functions of torch's layers are patched"


@torch.no_grad()
def test_replaced_forward_of_the_class_is_a_reason(monkeypatch):
    model = basic()
    monkeypatch.setattr(reference.BasicBlock, "forward", lambda self, x: x)
    reason = "forward of resnet_fused.reference.BasicBlock was replaced"
    assert reason_of(model, features()) == reason


@torch.no_grad()
def test_index_limit_is_a_reason(monkeypatch):
    model, x = basic(), features()
    monkeypatch.setattr(_indexing, "MAX_ELEMENTS", x.numel() - 1)
    assert reason_of(model, x) == "a tensor has more than 2^31 - 1 elements"
    assert resnet_fused.explain(model, x[:1])["0"].how == "inference"


def test_device_without_training_kernels_is_a_reason(monkeypatch):
    grant(monkeypatch, trains=False)
    model = basic()
    assert reason_of(model, features()) == "there are no training kernels for device cpu"
    with torch.no_grad():
        assert resnet_fused.explain(model, features())["0"].how == "inference"


def test_zero_padding_in_a_pre_activation_block_trains_fused():
    model = resnet_fused.convert(models.cifar_resnet(8, preact=True), strict=True).train()
    explained = resnet_fused.explain(model, images())
    assert {name: run.how for name, run in explained.items()} == dict.fromkeys(
        ["", "layer1.0", "layer2.0", "layer3.0"], "training"
    )
    with torch.no_grad():
        assert {run.how for run in resnet_fused.explain(model.eval(), images()).values()} == {"inference"}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_hook_in_the_stem_is_a_reason_for_the_root_only(name):
    model = network(name)
    model.conv1.register_forward_hook(hooked)
    explained = resnet_fused.explain(model, images())
    assert explained[""] == Run("stem", "eager", "a forward hook is registered on conv1")
    assert {run.how for key, run in explained.items() if key} == {"inference"}


@torch.no_grad()
def test_hook_in_the_tail_is_a_reason_for_the_root_only():
    model = network("small_preact_resnet")
    model.bn1.register_forward_hook(hooked)
    explained = resnet_fused.explain(model, images())
    assert explained[""] == Run("stem", "eager", "a forward hook is registered on bn1")
    assert {run.how for key, run in explained.items() if key} == {"inference"}


@torch.no_grad()
def test_stem_without_a_fusable_pool_runs_fused():
    model = network("torchvision")
    model.maxpool = nn.AvgPool2d(3)
    assert resnet_fused.explain(model, images())[""] == Run("stem", "inference")


class Mine(nn.Sequential):
    pass


class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = basic()[0], basic()[0]
        self.waiting = reference.BasicBlock(8, 8)
        self.mine = Mine(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8))

    def forward(self, x, times=1):
        for _ in range(times):
            x = self.used(x)
        return self.mine(self.waiting(x))


@torch.no_grad()
def test_every_entry_of_the_report_is_explained():
    model = Skips().eval()
    report = resnet_fused.report(model)
    explained = resnet_fused.explain(model, features(), times=2)
    assert list(explained) == list(report) == ["used", "unused", "waiting", "mine"]
    assert explained["used"] == Run("basic block", "inference")
    assert explained["unused"] == Run("basic block", "eager", "it was not called")
    assert explained["waiting"] == Run("basic block", "eager", "not converted yet; call resnet_fused.convert")
    assert explained["mine"] == Run("unknown", "eager", report["mine"].reason)


class Shrinks(nn.Module):
    """Calls its block with two dtypes; autocast runs one of them eagerly."""

    def __init__(self, *dtypes):
        super().__init__()
        self.block, self.dtypes = basic()[0], dtypes

    def forward(self, x):
        for dtype in self.dtypes:
            self.block(x.to(dtype))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
@torch.no_grad()
def test_block_that_once_runs_eagerly_is_eager(dtypes):
    with torch.autocast("cpu", torch.bfloat16):
        assert reason_of(Shrinks(*dtypes), features(), "block").startswith("the shortcut adds x, torch.float32")


@torch.no_grad()
def test_shared_blocks_have_one_entry():
    block = basic()[0]
    assert dict(resnet_fused.explain(nn.Sequential(block, block), features())) == {"0": Run("basic block", "inference")}


@torch.no_grad()
def test_single_block_is_the_root():
    assert dict(resnet_fused.explain(basic()[0], features())) == {"": Run("basic block", "inference")}


class WithDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.network, self.dropout = models.small_preact_resnet(), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.dropout(self.network(x)) * torch.rand(10)


@pytest.mark.parametrize("converts", [False, True], ids=["eager", "converted"])
def test_explain_changes_nothing(converts):
    model = randomise(WithDropout()).train()
    if converts:
        resnet_fused.convert(model)
    model.network.layer1.eval()
    x = images()
    twin = copy.deepcopy(model)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    buffers, flags = [id(b) for b in model.buffers()], [m.training for m in model.modules()]
    resnet_fused.explain(model, x)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [id(b) for b in model.buffers()] == buffers
    assert [m.training for m in model.modules()] == flags
    assert all(p.grad is None for p in model.parameters())
    for (name, before), after in zip(state.items(), model.state_dict().values(), strict=True):
        assert torch.equal(before, after), name
    expected = twin(x)
    torch.set_rng_state(random_state)
    assert torch.equal(model(x), expected)
    assert model.calls == 1


def test_model_computes_the_same_after_explain():
    model = network("small_resnet")
    x = images()
    with torch.no_grad():
        before = model(x)
        resnet_fused.explain(model, x)
        assert torch.equal(model(x), before)


def test_errors_of_the_model_pass_through():
    model = network("small_resnet")
    with pytest.raises(RuntimeError):
        resnet_fused.explain(model, torch.randn(2, 4, 8, 8))
    with torch.no_grad():
        assert resnet_fused.explain(model, images())[""].how == "inference"


@torch.no_grad()
def test_explanation_reads_like_a_table():
    model = Skips().eval()
    explained = resnet_fused.explain(model, features())
    lines = str(explained).splitlines()
    assert lines[0].split() == ["module", "kind", "runs", "reason"]
    assert lines[1].split() == ["used", "basic", "block", "inference"]
    assert lines[2].split(maxsplit=4) == ["unused", "basic", "block", "eager", "it was not called"]
    assert lines[-1] == "1 fused, 3 eager"
    assert len(lines) == len(explained) + 2
    column = lines[0].index("runs")
    assert [line[column:].split()[0] for line in lines[1:-1]] == ["inference", "eager", "eager", "eager"]
    assert not any(line != line.rstrip() for line in lines)
    assert str(resnet_fused.explain(basic()[0], features())).splitlines()[1].startswith("(root)")


@torch.no_grad()
def test_explanation_is_a_mapping():
    explained = resnet_fused.explain(Skips().eval(), features())
    assert isinstance(explained, resnet_fused.Explanation)
    assert len(explained) == 4
    assert "used" in explained
    assert "mine.0" not in explained
    with pytest.raises(KeyError):
        explained["mine.0"]


@pytest.mark.parametrize("value", [{}, "resnet50", None, models.CifarResNet], ids=str)
def test_non_modules_are_refused(value):
    with pytest.raises(TypeError, match=r"expects a torch\.nn\.Module, but got"):
        resnet_fused.explain(value, images())


def test_eval_mode_with_gradients_gets_a_hint():
    model = resnet_fused.convert(models.small_resnet()).eval()
    hint = "The model is in eval mode and gradients are enabled"
    assert hint in str(resnet_fused.explain(model, images()))
    with torch.no_grad():
        assert hint not in str(resnet_fused.explain(model, images()))
    assert hint not in str(resnet_fused.explain(model.train(), images()))
