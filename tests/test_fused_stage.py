"""An ``nn.Sequential`` with several fused blocks becomes a ``FusedStage`` if its network is not known as a whole."""

import copy
import io
import pickle

import pytest
import torch
from chain_modules import Own
from criterion import assert_close
from handwritten_blocks import Basic, NoLastReLU, conv3
from handwritten_parity import ALL_MODES, FORMATS, MODES, assert_same, input_of, step
from support import ops_of, randomise
from torch import nn

import resnet_fused
from resnet_fused import models, reference
from resnet_fused.modules import FusedStage

STAGES = {
    "two blocks": lambda: nn.Sequential(Basic(), Basic()),
    "projection": lambda: nn.Sequential(Basic(6, 8, 2), Basic(8, 8), Basic(8, 8)),
    "reference": lambda: nn.Sequential(reference.BasicBlock(6, 6), reference.BasicBlock(6, 6)),
    "convolution between": lambda: nn.Sequential(Basic(), conv3(6, 6), Basic()),
    "in place between": lambda: nn.Sequential(
        NoLastReLU(), nn.Hardtanh(inplace=True), NoLastReLU(), nn.SiLU(inplace=True)
    ),
    "view between": lambda: nn.Sequential(Basic(), Flattens(), Basic()),
    "flattened": lambda: nn.Sequential(Basic(), Basic(), nn.Flatten()),
    "pooled": lambda: nn.Sequential(nn.MaxPool2d(2), Basic(), nn.AvgPool2d(2, 1), Basic()),
    "two outputs": lambda: nn.Sequential(Basic(), Basic(), Twice()),
    "the same block twice": lambda: nn.Sequential(*2 * [Basic()]),
    "nested": lambda: nn.Sequential(Basic(), nn.Sequential(Basic(), Basic()), Basic()),
}
every_stage = pytest.mark.parametrize("name", STAGES)


class Flattens(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0], -1).view(x.shape)  # an error if x is channels_last


class Twice(nn.Module):
    def forward(self, x):
        return torch.stack([x, x * 2])


class Records(nn.Module):
    """Records the strides of its input."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, x):
        self.seen.append(x.stride())
        return x


def pair(make, dtype=torch.float64, memory_format=torch.contiguous_format):
    """A network in eval mode, and its converted copy."""
    torch.manual_seed(0)
    eager = randomise(make()).to(dtype).eval().to(memory_format=memory_format)
    return eager, resnet_fused.convert(copy.deepcopy(eager))


def check(eager, fused, x=None, modes=ALL_MODES):
    for memory_format in FORMATS:
        given = (input_of() if x is None else x).contiguous(memory_format=memory_format)
        if name_needs_contiguous(eager) and memory_format is torch.channels_last:
            continue
        for mode in modes:
            expected, actual = (step(module, given, mode) for module in (eager, fused))
            assert_same(actual, expected, f" ({mode}, {memory_format})")
            for name in ("output", "gradient of input"):
                assert name not in expected or actual[name].stride() == expected[name].stride(), name


def name_needs_contiguous(module):
    return any(isinstance(part, Flattens) for part in module.modules())


def strides(x):
    return tuple(each.stride() for each in x if isinstance(each, torch.Tensor))


@pytest.mark.parametrize("weights", FORMATS, ids=["contiguous", "channels_last"])
@every_stage
def test_stage_equals_eager(name, weights):
    if name == "view between" and weights is torch.channels_last:
        pytest.skip("eager raises an error")
    eager, fused = pair(STAGES[name], memory_format=weights)
    assert type(fused) is FusedStage
    assert isinstance(fused, nn.Sequential)
    check(eager, fused)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_stage
def test_stage_in_narrow_dtypes(name, dtype):
    eager, fused = pair(STAGES[name], dtype)
    x = input_of(dtype=dtype, size=(7, 9))
    if name == "pooled":
        x = input_of(dtype=dtype, size=(8, 8))
    exact = copy.deepcopy(eager).double()
    with torch.no_grad():
        expected, actual = eager(x), fused(x)
        assert_close(actual, expected, exact(x.double()))
    assert actual.stride() == expected.stride()
    assert ops_of(fused, x)


@pytest.mark.parametrize("weights", FORMATS, ids=["contiguous", "channels_last"])
def test_network(weights):
    eager, fused = pair(Own, memory_format=weights)
    kinds = {name for name, module in fused.named_modules() if type(module) is FusedStage}
    assert kinds == {"layer1", "layer2", "layer3.0"}
    check(eager, fused, input_of(3, (9, 9)))
    assert fused.state_dict().keys() == eager.state_dict().keys()
    eager.load_state_dict(fused.state_dict())


def test_report_lists_no_stage():
    _, fused = pair(Own)
    report = resnet_fused.report(fused)
    assert all(entry.status == "converted" and "block" in entry.kind for entry in report.values())
    assert len(report) == report.coverage.fused == 8
    runs = resnet_fused.explain(fused.requires_grad_(False), input_of(3))
    assert {run.how for run in runs.values()} == {"inference"}
    assert set(runs) == set(report)


def test_hooks_see_the_formats_of_eager():
    seen = []
    for network in pair(Own):
        calls = []
        for _, module in network.named_modules():
            module.register_forward_hook(lambda _, args, y, calls=calls: calls.append((strides(args), y.stride())))
        for memory_format in FORMATS:
            for mode in MODES.values():
                step(network, input_of(3, (9, 9), memory_format), mode)
        seen.append(calls)
    inside = [call for call in seen[0] if call in seen[1]]
    assert len(inside) > 0
    assert seen[1] == seen[0], "hooks of layers make the blocks run eagerly"


@pytest.mark.parametrize("where", ["layer1", "layer1.0", "layer1.1", "layer2.2", "layer2.4", "layer3", "layer3.0.1"])
@pytest.mark.parametrize("kind", ["forward", "pre", "backward"])
def test_hook_of_a_stage_or_block(where, kind):
    seen = []
    x = input_of(3, (9, 9))
    for network in pair(Own):
        calls = []
        module = network.get_submodule(where)
        if kind == "forward":
            module.register_forward_hook(lambda _, args, y, calls=calls: calls.append((strides(args), y.stride())))
        elif kind == "pre":
            module.register_forward_pre_hook(lambda _, args, calls=calls: calls.append(strides(args)))
        else:
            module.register_full_backward_hook(lambda _, a, b, calls=calls: calls.append((strides(a), strides(b))))
        for mode in MODES.values():
            step(network, x, mode)
        seen.append(calls)
    assert seen[0] == seen[1]
    assert len(seen[0]) == (2 if kind == "backward" else 3)


def test_hook_changes_the_output_of_a_block():
    eager, fused = pair(STAGES["two blocks"])
    for module in (eager, fused):
        module[0].register_forward_hook(lambda _, args, y: y * 2)
        module[1].register_forward_pre_hook(lambda _, args: (args[0] + 1,))
        module.register_forward_hook(lambda _, args, y: y - 1)
    check(eager, fused)


def test_modules_between_see_the_format_of_eager():
    seen = []
    for convert in (False, True):
        calls = []
        torch.manual_seed(0)
        stage = nn.Sequential(Records(calls), Basic(), Records(calls), Basic(), Basic(), Records(calls)).double()
        if convert:
            stage = resnet_fused.convert(stage)
            assert type(stage) is FusedStage
        for memory_format in FORMATS:
            for mode in MODES.values():
                step(stage, input_of(memory_format=memory_format), mode)
        seen.append(calls)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 2


EDITS = {
    "append": lambda stage: stage.append(nn.Conv2d(8, 5, 1)),
    "append a block": lambda stage: stage.append(resnet_fused.convert(Basic(8, 8))),
    "insert": lambda stage: stage.insert(1, nn.Conv2d(8, 8, 2, groups=2)),
    "extend": lambda stage: stage.extend([nn.ReLU(), nn.Flatten(1)]),
    "delete": lambda stage: stage.__delitem__(1),
    "pop": lambda stage: stage.pop(2),
    "exchange": lambda stage: stage.__setitem__(1, nn.BatchNorm2d(8)),
    "exchange the first": lambda stage: stage.__setitem__(0, nn.Conv2d(6, 8, 1)),
    "forward of a block": lambda stage: setattr(stage[1], "forward", lambda x: x.contiguous().view(x.shape) + 1),
    "forward of the stage": lambda stage: setattr(stage, "forward", lambda x: stage[0](x) * 2),
    "name": lambda stage: stage.add_module("last", nn.Softplus()),
    "empty": lambda stage: [stage.pop(0) for _ in range(3)],
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_stage_is_edited(edit):
    eager, fused = pair(STAGES["projection"])
    check(eager, fused, modes=ALL_MODES[:1])
    for stage in (eager, fused):
        torch.manual_seed(3)
        edit(stage)
        stage.double()
    check(eager, fused)


@pytest.mark.parametrize("part", [slice(1), slice(2), slice(1, None), slice(0, 3, 2), slice(0, 0), 0, -1])
def test_stage_is_indexed_and_sliced(part):
    eager, fused = (copy.deepcopy(stage) for stage in pair(STAGES["two blocks"]))
    for stage in (eager, fused):
        stage.append(nn.Conv2d(6, 6, 1).double())
        torch.manual_seed(1)
        nn.init.normal_(stage[2].weight)
        nn.init.zeros_(stage[2].bias)
    assert len(fused) == 3
    assert isinstance(fused[part], nn.Sequential) == isinstance(part, slice)
    check(eager[part], fused[part])


def test_sums_and_products_of_stages():
    eager, fused = pair(STAGES["two blocks"])
    check(eager + eager, fused + fused)
    check(eager * 2, fused * 2)
    check(nn.Sequential(*eager), nn.Sequential(*fused))


def test_nested_stages():
    eager, fused = pair(lambda: nn.Sequential(*(nn.Sequential(Basic(), Basic()) for _ in range(3))))
    assert type(fused) is nn.Sequential
    assert [type(stage) for stage in fused] == [FusedStage] * 3
    check(eager, fused)


def test_one_block_needs_no_stage():
    _, fused = pair(lambda: nn.Sequential(nn.Conv2d(6, 6, 1), Basic()))
    assert type(fused) is nn.Sequential


def test_subclass_of_sequential_keeps_its_class():
    class Doubles(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * 2

    eager, fused = pair(lambda: Doubles(Basic(), Basic()))
    assert type(fused) is Doubles
    check(eager, fused)


def test_copies_and_pickles():
    eager, fused = pair(Own)
    x = input_of(3, (9, 9))
    check(eager, fused, x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    twins = (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False))
    for twin in twins:
        assert [*map(type, twin.modules())] == [*map(type, fused.modules())]
        check(copy.deepcopy(eager), twin, x)


def test_revert_and_convert_again():
    eager, fused = pair(Own)
    kinds = [*map(type, fused.modules())]
    assert [*map(type, resnet_fused.convert(fused).modules())] == kinds
    resnet_fused.revert(fused)
    assert [*map(type, fused.modules())] == [*map(type, eager.modules())]
    check(eager, fused, input_of(3, (9, 9)))
    assert [*map(type, resnet_fused.convert(fused).modules())] == kinds
    resnet_fused.revert(fused.layer1[0])
    check(eager, fused, input_of(3, (9, 9)))


def test_filter_leaves_single_blocks_without_a_stage():
    model = nn.Sequential(Basic(), Basic())
    resnet_fused.convert(model, filter_fn=lambda _, name: name == "0")
    assert type(model) is nn.Sequential


def test_empty_batch_and_other_inputs():
    eager, fused = pair(STAGES["projection"])
    check(eager, fused, input_of()[:0], modes=(MODES["eval"],))
    for wrong in (input_of(5), input_of()[0], torch.zeros(2, 6, 4, 4, dtype=torch.int64), None):
        with pytest.raises(Exception) as expected:
            eager(wrong)
        with pytest.raises(expected.type):
            fused(wrong)


def test_autocast_and_inference_mode():
    eager, fused = pair(STAGES["convolution between"], torch.float32)
    x = input_of(dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected, actual = eager(x), fused(x)
    exact = copy.deepcopy(eager).double()(x.double())
    assert_close(actual, expected, exact)
    assert actual.stride() == expected.stride()
    with torch.inference_mode():
        assert_close(fused(x), eager(x), exact)


@pytest.mark.parametrize("training", [True, False])
def test_compile(training):
    eager, fused = (module.train(training) for module in pair(Own, torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    x = input_of(3, (9, 9), dtype=torch.float32)
    with torch.set_grad_enabled(training):
        expected, actual = eager(x), compiled(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert actual.stride() == expected.stride()


def test_export_and_fx():
    eager, fused = pair(Own)
    x = input_of(3, (9, 9))
    with torch.no_grad():
        program = torch.export.export(fused, (x,))
        torch.testing.assert_close(program.module()(x), eager(x))
        assert any("resnet_fused" in str(node.target) for node in program.graph.nodes)
        traced = torch.fx.GraphModule(fused, resnet_fused.Tracer().trace(fused))
        torch.testing.assert_close(traced(x), eager(x))
        assert torch.equal(torch.fx.symbolic_trace(fused)(x), eager(x))
        torch.testing.assert_close(torch.jit.trace(fused, x)(x), eager(x))


@pytest.mark.parametrize("build", [models.small_resnet, models.small_preact_resnet])
def test_networks_with_a_fused_stem_keep_their_stages(build):
    model = resnet_fused.convert(build(5))
    assert not any(type(module) is FusedStage for module in model.modules())


def test_torchvision_keeps_its_stages():
    resnet = pytest.importorskip("torchvision.models").resnet
    model = resnet_fused.convert(resnet.ResNet(resnet.BasicBlock, [2, 2, 1, 1], 5), strict=True)
    assert type(model.layer1) is nn.Sequential
    inside = resnet_fused.convert(nn.ModuleDict({"backbone": resnet.ResNet(resnet.BasicBlock, [2, 1, 1, 1], 5)}))
    assert type(inside["backbone"].layer1) is nn.Sequential


def test_stages_of_torchvision_taken_out_are_fused():
    resnet = pytest.importorskip("torchvision.models").resnet
    model = resnet.ResNet(resnet.BasicBlock, [2, 2, 1, 1], 5)
    eager, fused = pair(lambda: nn.Sequential(*list(model.children())[:-2]))
    assert [type(part) for part in fused[4:6]] == [FusedStage] * 2
    check(eager, fused, input_of(3, (33, 33)))
