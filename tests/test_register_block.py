"""register_block: blocks of a user's class convert, infer, train, copy and compile like eager ones."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from registered_blocks import BASIC, SHAPES, SPECS, AddsItsInput, BasicBlock, Nested, PreActBlock, conv
from support import ops_of, randomise, truth
from torch import nn
from training import assert_trains_as_eager

import resnet_fused
from resnet_fused import BlockSpec, modules, reference
from resnet_fused.recognise import registered


@pytest.fixture(autouse=True)
def _clear():
    registered._registered.clear()
    yield
    registered._registered.clear()


BLOCKS = [(kind, projects) for kind in SPECS for projects in (False, True) if not (kind is AddsItsInput and projects)]
every_block = pytest.mark.parametrize(
    ("kind", "projects"), BLOCKS, ids=[f"{kind.__name__}-{'projected' if p else 'identity'}" for kind, p in BLOCKS]
)


def build(kind, projects=False):
    inplanes, same, other = SHAPES.get(kind, (8, 8, 12))
    return randomise(kind(inplanes, other, 2) if projects else kind(inplanes, same))


def input_of(kind, device="cpu"):
    return torch.randn(3, SHAPES.get(kind, (8,))[0], 11, 10, device=device)


def converted(kind, projects=False):
    if kind not in registered._registered:
        resnet_fused.register_block(kind, SPECS[kind])
    return resnet_fused.convert(build(kind, projects), strict=True)


@every_block
def test_block_infers_as_eager(kind, projects, device):
    resnet_fused.register_block(kind, SPECS[kind])
    block = build(kind, projects).eval().to(device)
    x = input_of(kind, device)
    exact = truth(block, x)
    assert not ops_of(block, x)
    with torch.no_grad():
        expected = block(x)
    assert resnet_fused.convert(block, strict=True) is block
    with torch.no_grad():
        actual = block(x)
    assert ops_of(block, x)
    assert actual.stride() == expected.stride()
    assert_close(actual, expected, exact)


@every_block
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_block_gets_eagers_gradients(kind, projects, training, device):
    block = converted(kind, projects).train(training).to(device)
    assert_trains_as_eager(block, input_of(kind, device).requires_grad_())


@pytest.mark.parametrize("kind", SPECS)
def test_report_names_the_class(kind):
    model = nn.Sequential(build(kind))
    assert resnet_fused.report(model)["0"].status == "convertible"
    resnet_fused.register_block(kind, SPECS[kind])
    waiting = resnet_fused.Entry(kind.__name__, "convertible", "not converted yet; call resnet_fused.convert")
    assert dict(resnet_fused.report(model)) == {"0": waiting}
    resnet_fused.convert(model)
    assert dict(resnet_fused.report(model)) == {"0": resnet_fused.Entry(kind.__name__, "converted")}


@every_block
def test_only_the_class_changes_and_revert_restores_it(kind, projects):
    resnet_fused.register_block(kind, SPECS[kind])
    block = build(kind, projects)
    hook = block.register_forward_hook(lambda *_: None)
    contents, state = dict(block.__dict__), copy.deepcopy(block.state_dict())
    flags = [m.training for m in block.modules()]
    random_state = torch.get_rng_state()
    resnet_fused.convert(block, strict=True)
    assert type(block) is not kind
    assert isinstance(block, kind)
    assert isinstance(block, modules.FusedBlock)
    for _ in range(2):
        assert block.__dict__ == contents
        assert hook.id in block._forward_hooks
        assert [m.training for m in block.modules()] == flags
        assert list(block.state_dict()) == list(state)
        assert all(torch.equal(a, b) for a, b in zip(block.state_dict().values(), state.values(), strict=True))
        resnet_fused.revert(block)
        assert type(block) is kind
    assert torch.equal(torch.get_rng_state(), random_state), "the check of the spec draws random numbers"


def on_meta(block):
    return block.to("meta")


def in_bfloat16(block):
    return block.bfloat16()


def channels_last(block):
    return block.to(memory_format=torch.channels_last)


def frozen(block):
    return block.requires_grad_(False)


@pytest.mark.parametrize("prepare", [on_meta, in_bfloat16, channels_last, frozen])
def test_the_check_accepts_models_in_any_state(prepare):
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    block = prepare(build(BasicBlock))
    before = {name: (id(t), t.dtype, t.device, t.requires_grad) for name, t in block.state_dict(keep_vars=True).items()}
    resnet_fused.convert(block, strict=True)
    assert isinstance(block, modules.FusedBlock)
    after = {name: (id(t), t.dtype, t.device, t.requires_grad) for name, t in block.state_dict(keep_vars=True).items()}
    assert after == before


def test_conversion_under_autocast_checks_in_float64():
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(resnet_fused.convert(build(BasicBlock), strict=True), modules.FusedBlock)


class Network(nn.Module):
    """A user's network with blocks of two registered classes."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(3, 8), nn.BatchNorm2d(8)
        self.layers = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16, 2), PreActBlock(16, 16), PreActBlock(16, 24, 2))

    def forward(self, x):
        return self.layers(F.relu(self.bn1(self.conv1(x))))


def test_network_of_registered_blocks_matches_eager(device):
    for kind in (BasicBlock, PreActBlock):
        resnet_fused.register_block(kind, SPECS[kind])
    model = randomise(Network()).eval().to(device)
    x = torch.randn(2, 3, 17, 18, device=device)
    exact = truth(model, x)
    with torch.no_grad():
        expected = model(x)
    resnet_fused.convert(model)
    with torch.no_grad():
        assert_close(model(x), expected, exact)
    report = resnet_fused.report(model)
    assert {name: entry.status for name, entry in report.items()} == {
        "": "refused",  # its stem
        **{f"layers.{i}": "converted" for i in range(4)},
    }


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_registered_block_in_a_known_network(training):
    """The network passes it channels_last tensors that user code cannot see."""
    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    eager = randomise(resnet_fused.models.small_resnet(500))
    eager.layer2.append(randomise(BasicBlock(32, 32)))
    eager.train(training)
    fused = resnet_fused.convert(copy.deepcopy(eager), strict=True)
    x = torch.randn(4, 3, 16, 16)
    with torch.set_grad_enabled(training):
        exact = copy.deepcopy(eager).double()(x.double()).detach()
        expected, actual = eager(x), fused(x)
        assert resnet_fused.explain(fused, x)["layer2.1"].how == ("training" if training else "inference")
    assert_close(actual.detach(), expected.detach(), exact)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_explain_says_how_a_registered_block_runs(training):
    block = converted(Nested).train(training)
    x = input_of(Nested)
    with torch.set_grad_enabled(training):
        assert resnet_fused.explain(block, x)[""] == resnet_fused.Run("Nested", "training" if training else "inference")
        block.body.register_forward_hook(lambda *_: None)
        assert resnet_fused.explain(block, x)[""].reason == "a forward hook is registered on body"


def test_fused_training_off_is_bitwise_eager():
    fused = converted(PreActBlock, projects=True)
    eager = resnet_fused.revert(copy.deepcopy(fused))
    fused.fused_training = False
    x = input_of(PreActBlock)
    for block in (eager, fused):
        block(x).square().mean().backward()
    for a, b in zip(eager.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved_and_loaded])
@every_block
def test_converted_blocks_copy_and_save(kind, projects, copied):
    block = converted(kind, projects).eval()
    block.remembered = [1, 2]
    other = copied(block)
    assert type(other) is type(block)
    assert other.remembered == [1, 2]
    x = input_of(kind)
    assert ops_of(other, x)
    with torch.no_grad():
        assert torch.equal(other(x), block(x))
    assert type(resnet_fused.revert(other)) is kind
    assert type(block) is not kind


def test_block_loads_as_eager_where_it_is_not_registered():
    block = converted(BasicBlock).eval()
    data = pickle.dumps(block)
    registered._registered.clear()
    other = pickle.loads(data)
    assert type(other) is BasicBlock
    x = input_of(BasicBlock)
    with torch.no_grad():
        assert torch.equal(other(x), BasicBlock.forward(block, x))


def test_subclass_that_overrides_nothing_converts():
    class Mine(BasicBlock):
        def extra_repr(self):
            return "mine"

    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    block = build(Mine).eval()
    x = input_of(BasicBlock)
    exact = truth(block, x)
    with torch.no_grad():
        expected = block(x)
    assert resnet_fused.report(block)[""].kind == "BasicBlock"
    resnet_fused.convert(block, strict=True)
    with torch.no_grad():
        assert_close(block(x), expected, exact)
    assert ops_of(block, x)
    assert isinstance(block, Mine)
    assert "mine" in repr(block)
    assert type(resnet_fused.revert(block)) is Mine


def test_subclass_with_another_forward_stays():
    class Doubled(BasicBlock):
        def forward(self, x):
            return 2 * super().forward(x)

    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    block = build(Doubled)
    resnet_fused.convert(block)
    assert type(block) is Doubled
    entry = resnet_fused.report(block)[""]
    assert (entry.kind, entry.status) == ("BasicBlock", "refused")
    assert "Doubled overrides forward of registered_blocks.BasicBlock" in entry.reason


def test_subclass_whose_init_makes_the_spec_wrong_is_refused():
    class WithGroupNorm(BasicBlock):
        def __init__(self, *args):
            super().__init__(*args)
            self.bn2 = nn.GroupNorm(2, 8)

    resnet_fused.register_block(BasicBlock, SPECS[BasicBlock])
    reason = resnet_fused.report(WithGroupNorm(8, 8))[""].reason
    assert reason == "bn2 is torch.nn.GroupNorm, not torch.nn.BatchNorm2d"


def test_subclass_of_a_known_block_can_be_registered():
    class Quiet(reference.BasicBlock):
        def __init__(self, *args):
            super().__init__(*args)
            del self.conv2, self.bn2, self.relu  # a spec has to name all modules

        def forward(self, x):
            return F.relu(self.bn1(self.conv1(x)))

    assert resnet_fused.report(Quiet(8, 8))[""].status == "refused"
    resnet_fused.register_block(Quiet, BlockSpec(("conv1",), (None, "bn1"), relus=()))
    block = randomise(Quiet(8, 8)).eval()
    x = torch.randn(2, 8, 6, 5)
    exact = truth(block, x)
    with torch.no_grad():
        expected = block(x)
    resnet_fused.convert(block, strict=True)
    with torch.no_grad():
        assert_close(block(x), expected, exact)
    assert ops_of(block, x)


def test_classes_may_override_methods_of_modules():
    calls = []

    class Observed(BasicBlock):
        def _apply(self, fn, recurse=True):
            calls.append("_apply")
            return super()._apply(fn, recurse)

        def train(self, mode=True):
            calls.append("train")
            return super().train(mode)

    resnet_fused.register_block(Observed, BASIC)
    block = resnet_fused.convert(build(Observed), strict=True)
    calls.clear()
    block.double().eval()
    assert calls == ["_apply", "train"]


def test_a_replaced_forward_of_the_class_runs(monkeypatch):
    block = converted(BasicBlock).eval()
    x = input_of(BasicBlock)
    monkeypatch.setattr(BasicBlock, "forward", lambda self, x: x + 1)
    with torch.no_grad():
        assert torch.equal(block(x), x + 1)
    assert "was replaced by another function" in resnet_fused.report(block)[""].reason


def ours(graph):
    return [node.target for node in graph.nodes if "resnet_fused" in str(node.target)]


@every_block
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compiled_block_contains_fused_ops(kind, projects, training):
    block = converted(kind, projects).train(training)
    x = input_of(kind)
    graphs = []

    def backend(graph, _):
        graphs.append(graph.graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    with torch.set_grad_enabled(training):
        expected = copy.deepcopy(block)(x)
        actual = compiled(x)
    assert len(graphs) == 1
    assert ours(graphs[0])
    torch.testing.assert_close(actual, expected)


@every_block
def test_exported_block_contains_fused_ops(kind, projects):
    block = converted(kind, projects).eval()
    x = input_of(kind)
    with torch.no_grad():
        program = torch.export.export(block, (x,))
        assert ours(program.graph)
        assert torch.equal(program.module()(x), block(x))
        resnet_fused.revert(block)
        assert not ours(torch.export.export(block, (x,)).graph)
