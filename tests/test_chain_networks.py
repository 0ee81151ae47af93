"""``convert(model, chains=True)`` of whole networks: what is converted, what is traced, and what is said about it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from chain_modules import ConvNormAct, OneConvolution, SEBottleneck, Stem, vgg
from chain_parity import check, converted, explained, fused_ops, image, pair, step
from handwritten_blocks import Basic, conv1, conv3
from handwritten_parity import FORMATS, MODES, assert_same
from support import RecordedOps
from torch import nn

import resnet_fused
from resnet_fused.modules import FusedStage
from resnet_fused.recognise import chains


@pytest.fixture
def traces(monkeypatch):
    """The modules that calls traced, in order."""
    found = []
    rewrite_of = chains.rewrite_of
    monkeypatch.setattr(chains, "rewrite_of", lambda module: found.append(module) or rewrite_of(module))
    return found


class SpatialAttention(nn.Module):
    """CBAM's: a convolution to one channel; https://arxiv.org/abs/1807.06521."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = conv3(2, 1), nn.BatchNorm2d(1)

    def forward(self, x):
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.bn(self.conv(pooled)))


TRACED = {
    "block": SEBottleneck,
    "sequential": vgg,
    "network": Stem,
    "one channel": SpatialAttention,
    "one channel inside": lambda: nn.Sequential(conv3(8, 8), nn.BatchNorm2d(8), SpatialAttention()),
    "synchronised": lambda: nn.Sequential(conv3(8, 8), nn.SyncBatchNorm(8)),
}


@pytest.mark.parametrize("make", TRACED.values(), ids=TRACED)
def test_calls_do_not_trace_again(make, traces):
    _, fused = pair(make)
    for _ in range(2):  # the first call of fused blocks inside changes them
        fused_ops(fused)
    traces.clear()
    for size in ((7, 9), (5, 5)):
        for memory_format in FORMATS:
            fused_ops(fused, image(size, memory_format))
    assert not traces


def hooked(module):
    module.conv.register_forward_hook(lambda *_: None)


def without_norm(module):
    module.bn = nn.Identity()


def random_numbers(module):
    module.between = F.dropout


@pytest.mark.parametrize("change", [hooked, without_norm, random_numbers])
def test_modules_that_run_eagerly_are_not_traced_each_time(change, traces):
    eager, fused = pair(OneConvolution)
    change(eager)
    change(fused)
    check(eager, fused)
    check(eager, fused)
    traces.clear()
    check(eager, fused)
    assert not traces


def test_training_does_not_trace(traces):
    _, fused = pair(SEBottleneck)
    step(fused.train(), image())
    assert not traces


def test_reason_of_contiguous_inputs():
    """Without channels_last each layer runs by itself."""
    _, fused = pair(SEBottleneck)
    x = image(memory_format=torch.contiguous_format)
    assert fused_ops(fused, x) == 0
    run = explained(fused, x)
    assert run.how == "eager"
    assert "channels_last" in run.reason


def test_reason_if_no_convolution_runs_fused():
    _, fused = pair(OneConvolution)
    fused.conv.padding_mode = "circular"
    assert fused_ops(fused) == 0
    run = explained(fused)
    assert run.how == "eager"
    assert "padding_mode" in run.reason


def test_report_says_why_a_converted_module_runs_eagerly():
    _, fused = pair(OneConvolution)
    assert not resnet_fused.report(fused)[""].reason
    hooked(fused)
    reason = resnet_fused.report(fused)[""].reason
    assert reason == "converted, but runs eagerly: a forward hook is registered on conv"


def test_explain_names_modules_in_a_network():
    model = nn.Sequential(SEBottleneck(), Basic(8, 8), nn.Sequential(ConvNormAct(8, 8))).double().eval()
    converted(model)
    with torch.no_grad():
        runs = resnet_fused.explain(model, image())
    assert {name: (run.kind, run.how) for name, run in runs.items()} == {
        "0": ("chains of a residual block", "inference"),
        "1": ("basic block", "inference"),
        "2.0": ("chains", "inference"),
    }


def test_parts_wrapped_by_compile_are_left_alone():
    model = nn.Sequential(SEBottleneck(), SEBottleneck(), nn.Identity())
    model[0].compile(backend="eager")
    model[2] = torch.compile(SEBottleneck(), backend="eager")
    converted(model)
    assert type(model[0]) is SEBottleneck
    assert type(model[1]) is not SEBottleneck
    assert type(model[2]._orig_mod) is SEBottleneck


def test_known_blocks_before_a_stage_with_a_stem():
    """A stage that begins with a convolution, as in ``nn.Sequential(*list(network.children()))``."""
    eager, fused = pair(lambda: nn.Sequential(conv3(8, 6), nn.BatchNorm2d(6), nn.ReLU(), Basic(), Basic()))
    check(eager, fused)
    assert fused_ops(fused) == fused_ops(nn.Sequential(*[fused[i] for i in (3, 4)]), image(channels=6)) + 1


def test_layers_of_torchvision_in_a_sequential():
    resnet = pytest.importorskip("torchvision.models").resnet

    def make():
        model = resnet.ResNet(resnet.BasicBlock, [2, 2, 1, 1], 5)
        return nn.Sequential(*list(model.children())[:-2])

    eager, fused = pair(make)
    x = image((64, 64), channels=3)
    check(eager, fused, x)
    check(eager, fused, x.contiguous())
    plain = resnet_fused.convert(copy.deepcopy(eager))
    assert fused_ops(fused, x) == fused_ops(plain, x) + 1
    for mode in MODES.values():
        for model in (eager, fused):
            model.train(mode.training)
        assert_same(step(fused, x), step(eager, x))


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_stages_in_a_converted_network_copy_nothing_more(memory_format):
    copies = []
    for options in ({}, {"chains": True}):
        model = resnet_fused.convert(Stem().eval(), **options)
        assert type(model.layer1) is FusedStage
        x = image(dtype=torch.float32, memory_format=memory_format)
        for _ in range(2):
            with RecordedOps() as recorded, torch.no_grad():
                model(x)
        copies.append(sum("clone" in str(op) or "copy" in str(op) for op in recorded.called))
    assert copies[1] <= copies[0]


def test_hint_is_kept():
    """Wherever a hint says that chains=True fuses a module's convolutions, it does."""
    models = [SEBottleneck, vgg, Stem, lambda: nn.Sequential(conv3(8, 8), nn.BatchNorm2d(8), Basic(8, 8), Basic(8, 8))]
    for make in models:
        for before in (lambda model: model, resnet_fused.convert):
            model = before(make().double().eval())
            hints = [name for name, entry in resnet_fused.report(model).items() if "chains=True" in entry.reason]
            converted(model)
            report = resnet_fused.report(model)
            assert all(report[name].kind.startswith("chains") for name in hints)


def test_coverage_counts_blocks_inside_a_converted_network():
    """The stem is a chain of the network itself; the blocks cannot be fused as a whole, so they are chains too."""

    class Network(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    model = Network(conv3(8, 8), nn.BatchNorm2d(8), nn.ReLU(), SEBottleneck(), SEBottleneck(), Basic(8, 8))
    before = resnet_fused.report(model).coverage
    report = resnet_fused.report(converted(model))
    assert tuple(report.coverage) == tuple(before) == (1, 3)
    assert report[""].kind == "chains"
    assert {report[name].kind for name in "34"} == {"chains of a residual block"}
    assert not any("chains=True" in entry.reason for entry in report.values())


def test_lists_and_dictionaries_of_modules():
    class Lists(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList([conv3(8, 8), conv1(8, 8)])
            self.norms = nn.ModuleDict({"a": nn.BatchNorm2d(8), "b": nn.BatchNorm2d(8)})

        def forward(self, x):
            for conv, name in zip(self.convs, self.norms, strict=True):
                x = F.relu(self.norms[name](conv(x)))
            return {"out": x}["out"]

    eager, fused = pair(Lists)
    check(eager, fused)
    assert fused_ops(fused) == 2
    for module in (eager, fused):
        module.norms["a"].running_mean.add_(1)
        module.convs.append(conv1(8, 8).double())
        module.norms["c"] = nn.BatchNorm2d(8).double().eval()
    fused.load_state_dict(eager.state_dict())
    check(eager, fused)
    assert fused_ops(fused) == 3


def test_large_networks_are_converted_in_parts():
    _, fused = pair(lambda: nn.Sequential(*(vgg().append(conv3(4, 8)) for _ in range(20))))
    assert type(fused) is nn.Sequential
    assert all(type(part) is not nn.Sequential for part in fused)


def test_modules_called_recursively_or_twice():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv3(8, 8), nn.BatchNorm2d(8)

        def forward(self, x, depth=2):
            y = F.relu(self.bn(self.conv(x)))
            return y if depth == 0 else self.forward(y, depth - 1)

    eager, fused = pair(Shared)
    check(eager, fused)
    check(eager, fused, image(), 0)
    check(eager, fused, image(), depth=3)


def test_a_network_with_one_block_that_cannot_be_fused():
    """Its addition is the only one in the trace of the network, which is no residual block itself."""

    class Network(nn.Sequential):
        def forward(self, x):
            return super().forward(x).mean((2, 3))

    model = converted(Network(conv3(8, 8), nn.BatchNorm2d(8), nn.ReLU(), SEBottleneck(), Basic(8, 8), Basic(8, 8)))
    kinds = {"": "chains", "3": "chains of a residual block", "4": "basic block", "5": "basic block"}
    assert {name: entry.kind for name, entry in resnet_fused.report(model).items()} == kinds
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        runs = resnet_fused.explain(model.float().eval(), x)
    assert {name: run.how for name, run in runs.items()} == dict.fromkeys(kinds, "inference")
