"""``convert(model, chains=True)``: other modules infer each convolution with BatchNorm and ReLU as one op."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
import torch.nn.functional as F
from chain_modules import (
    CASES,
    Activations,
    ConvNormAct,
    Decoder,
    DenseArguments,
    DenseLayer,
    Nested,
    OneConvolution,
    SEBottleneck,
    Stem,
    TwoOutputs,
    vgg,
)
from chain_parity import LAST, call, check, converted, explained, fused_ops, image, pair, step
from criterion import assert_close
from handwritten_blocks import Basic, conv1
from handwritten_parity import FORMATS, MODES, assert_same
from torch import Tensor, nn

import resnet_fused

every_case = pytest.mark.parametrize("name", CASES)
formats = pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])


@formats
@every_case
def test_outputs_and_strides_equal_eager(name, memory_format):
    eager, fused = pair(CASES[name].make)
    x = image(CASES[name].size, memory_format)
    for _ in range(2):
        check(eager, fused, x)
    last = copy.deepcopy(eager).to(memory_format=LAST)
    check(last, converted(copy.deepcopy(last)), x)


@every_case
def test_each_convolution_and_norm_is_one_op(name):
    case, (_, fused) = CASES[name], pair(CASES[name].make)
    if case.runs is None:
        return
    assert type(fused)._eager_class is type(case.make())
    assert fused_ops(fused, image(case.size)) == case.runs
    if case.runs:
        assert explained(fused, image(case.size)).how == "inference"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_case
def test_outputs_in_narrow_dtypes(name, dtype):
    eager, fused = pair(CASES[name].make, dtype)
    exact = copy.deepcopy(eager).double()
    for memory_format in FORMATS:
        x = image(CASES[name].size, memory_format, dtype)
        expected, actual, truth = call(eager, x), call(fused, x), call(exact, x.double())
        for i, y in expected.items():
            assert_close(actual[i], y, truth[i])
            assert actual[i].stride() == y.stride()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name != "reused"])  # which modifies what autograd saves
def test_gradients_run_the_eager_code(name, training):
    eager, fused = (module.float().train(training) for module in pair(CASES[name].make))
    if CASES[name].size == (1, 1) and training:
        pytest.skip("a BatchNorm needs more than one value")
    for memory_format in FORMATS:
        x = image(CASES[name].size, memory_format, torch.float32)
        expected, actual = step(eager, x), step(fused, x)
        assert all(torch.equal(actual[key], value) for key, value in expected.items())
    run = resnet_fused.explain(fused, x)[""]
    assert run.how == "eager"
    if CASES[name].runs:
        assert run.reason == "gradients are enabled; chains are fused in inference only"


@pytest.mark.parametrize("grad", [True, False])
def test_gradient_of_the_input_only(grad):
    eager, fused = (module.requires_grad_(False) for module in pair(SEBottleneck))
    gradients = []
    for module in (eager, fused):
        x = image().requires_grad_(grad)
        y = module(x)
        assert y.requires_grad == grad
        gradients.append(torch.autograd.grad(y.sum(), x)[0] if grad else y)
    assert_same({"": gradients[1]}, {"": gradients[0]})


@every_case
def test_training_mode_without_gradients(name):
    """Norms use batch statistics and update the running ones."""
    if CASES[name].size == (1, 1):
        pytest.skip("a BatchNorm needs more than one value")
    eager, fused = pair(CASES[name].make)
    check(eager, fused)
    check(eager.train(), fused.train())
    assert_same(dict(fused.named_buffers()), dict(eager.named_buffers()))


# Modules with other inputs


def test_decoder_with_and_without_a_skip():
    eager, fused = pair(Decoder)
    x, skip = image((4, 5)), image((8, 10))
    check(eager, fused, x)
    check(eager, fused, x, skip)
    check(eager, fused, x, skip=skip)


@pytest.mark.parametrize("make", [DenseLayer, lambda: nn.Sequential(DenseLayer())], ids=["alone", "inside"])
def test_dense_layer_of_a_tensor_or_a_list(make):
    eager, fused = pair(make)
    check(eager, fused, image())
    parts = [image(channels=3), image(channels=5)]
    assert_same(call(fused, parts), call(eager, parts))


def test_dense_layer_of_any_number_of_tensors():
    eager, fused = pair(DenseArguments)
    check(eager, fused, image())
    check(eager, fused, image(channels=3), image(channels=5))


class Keyword(OneConvolution):
    def forward(self, pixels, *, negate: bool = False, scale=2.0):
        y = F.relu(self.bn(self.conv(pixels))) * scale
        return -y if negate else y


def test_other_arguments():
    eager, fused = pair(Keyword)
    assert explained(fused).how == "inference"
    check(eager, fused)
    check(eager, fused, negate=True)
    check(eager, fused, scale=3.0)
    with torch.no_grad():
        assert_same({"": fused(pixels=image())}, {"": eager(pixels=image())})


class EmptyIsSpecial(OneConvolution):
    def forward(self, x):
        return x.flatten(1) if x.numel() == 0 else F.relu(self.bn(self.conv(x)))


class ChecksTheInput(OneConvolution):
    def forward(self, x):
        y = F.relu(self.bn(self.conv(x)))
        return y * 2 if torch.is_tensor(x) and isinstance(y, Tensor) else y


class CreatesATensor(OneConvolution):
    def forward(self, x):
        return F.relu(self.bn(self.conv(x))) * torch.tensor(2.0, dtype=torch.float64)


class DependsOnTheShape(OneConvolution):
    def forward(self, x):
        if x.shape[-1] > 8:
            x = F.max_pool2d(x, 2)
        return F.relu(self.bn(self.conv(x)))


class Detects(OneConvolution):
    def forward(self, x):
        y = self.bn(self.conv(x))
        return F.relu(y) if isinstance(self.conv, nn.Conv2d) and self.bn.training is False else y


class NestedInput(OneConvolution):
    def forward(self, x):
        if hasattr(x, "tensors"):
            x = x.tensors
        return F.relu(self.bn(self.conv(x)))


class AddsInPlace(OneConvolution):
    """The augmented assignment changes both names."""

    def forward(self, x):
        y = self.bn(self.conv(x))
        z = y
        z += 1
        return y, z * 2


class MultipliesTheInput(OneConvolution):
    def forward(self, x):
        z = x
        z *= 2
        return F.relu(self.bn(self.conv(x))) + z[:, :6]


@pytest.mark.parametrize(
    "make",
    [
        EmptyIsSpecial,
        ChecksTheInput,
        CreatesATensor,
        DependsOnTheShape,
        Detects,
        NestedInput,
        AddsInPlace,
        MultipliesTheInput,
    ],
)
def test_forward_with_conditions(make):
    eager, fused = pair(make)
    for x in (image(), image((5, 5)), image((5, 5))[:0]):
        check(eager, fused, x)


# The report


def test_report_and_hints():
    model = nn.Sequential(SEBottleneck(), Nested(), Basic(8, 8))
    before = resnet_fused.report(model)
    assert {name: entry.status for name, entry in before.items()} == {
        "0": "refused",
        "1": "refused",
        "2": "convertible",
    }
    for name in ("0", "1"):
        assert before[name].reason.endswith("chains=True fuses its convolutions in inference")
    after = resnet_fused.report(converted(model))
    assert {name: (entry.kind, entry.status) for name, entry in after.items()} == {
        "0": ("chains of a residual block", "converted"),
        "1": ("chains", "converted"),
        "2": ("basic block", "converted"),
    }
    assert [entry.class_name.rpartition(".")[2] for entry in after.values()] == ["SEBottleneck", "Nested", "Basic"]
    assert tuple(before.coverage) == tuple(after.coverage) == (1, 2)


def test_fused_blocks_of_a_network_with_chains_are_reported():
    model = Stem()
    before = resnet_fused.report(model).coverage
    report = resnet_fused.report(converted(model))
    assert tuple(report.coverage) == tuple(before) == (4, 4)
    assert report[""].kind == "chains"
    assert all(report[f"layer{i}.{j}"].kind == "basic block" for i in (1, 2) for j in (0, 1))


def test_stem_of_a_network_and_its_blocks_run_fused():
    eager, fused = pair(Stem)
    check(eager, fused)
    check(eager, fused, image(memory_format=torch.contiguous_format))
    assert fused_ops(fused) == 6
    for mode in MODES.values():
        x = image()
        for module in (eager, fused):
            module.train(mode.training)
        assert_same(step(fused, x), step(eager, x))


def test_blocks_that_are_no_chains_stay_in_a_known_network():
    """A network of torchvision has a fused stem; blocks with squeeze-excitation in it are refused as a whole."""
    resnet = pytest.importorskip("torchvision.models").resnet

    class SEBlock(resnet.BasicBlock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.gate = nn.Conv2d(self.conv2.out_channels, self.conv2.out_channels, 1)

        def forward(self, x):
            out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            out = out * torch.sigmoid(self.gate(out.mean((2, 3), keepdim=True)))
            return self.relu(out + (x if self.downsample is None else self.downsample(x)))

    eager, fused = pair(lambda: resnet.ResNet(SEBlock, [1, 1, 1, 1], 5))
    x = image((32, 32), channels=3)
    check(eager, fused, x)
    entry = resnet_fused.report(fused)["layer1.0"]
    assert (entry.kind, entry.status) == ("chains of a residual block", "converted")


def test_without_chains_nothing_changes():
    model = nn.Sequential(SEBottleneck(), vgg())
    kinds = [*map(type, model.modules())]
    assert [*map(type, resnet_fused.convert(model).modules())] == kinds


@pytest.mark.parametrize("make", [SEBottleneck, vgg, TwoOutputs, Nested])
def test_only_classes_change_and_revert_restores_them(make):
    eager, fused = pair(make)
    assert isinstance(fused, make if isinstance(make, type) else nn.Sequential)
    assert fused.state_dict().keys() == eager.state_dict().keys()
    kinds = [*map(type, fused.modules())]
    check(eager, fused)
    assert [*map(type, converted(fused).modules())] == kinds, "converting twice changes nothing"
    assert resnet_fused.revert(fused) is fused
    assert [*map(type, fused.modules())] == [*map(type, eager.modules())]
    assert all(vars(a).keys() == vars(b).keys() for a, b in zip(fused.modules(), eager.modules(), strict=True))
    assert fused_ops(fused) == 0
    check(eager, converted(fused))


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("make", [SEBottleneck, vgg, Activations])
def test_copies_and_pickles_stay_fused(make, called):
    eager, fused = pair(make)
    if called:
        check(eager, fused)
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(twin) is type(fused)
        assert fused_ops(twin) == fused_ops(fused) > 0
        check(eager, twin)
        with torch.no_grad():
            next(twin.parameters()).mul_(2)
        check(eager, fused)
        assert not torch.equal(twin(image()), fused(image()))


def test_filter_chooses_modules():
    model = nn.Sequential(SEBottleneck(), SEBottleneck(), Basic(8, 8)).double().eval()
    resnet_fused.convert(model, chains=True, filter_fn=lambda module, name: name != "1")
    assert [type(module).__name__ for module in model] == ["FusedSEBottleneck", "SEBottleneck", "FusedBasic"]


def test_filter_that_refuses_the_whole_admits_its_parts():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.body = conv1(8, 8), nn.BatchNorm2d(8), SEBottleneck()

        def forward(self, x):
            return self.body(self.bn(self.conv(x)))

    eager, fused = pair(Network)
    fused = resnet_fused.convert(resnet_fused.revert(fused), chains=True, filter_fn=lambda _, name: name == "body")
    assert type(fused) is Network
    assert fused_ops(fused) == 3
    check(eager, fused)


def test_strict_leaves_the_model_unchanged():
    model = nn.Sequential(SEBottleneck(), nn.Sequential(ConvNormAct(8, 8), nn.GroupNorm(2, 8)))
    kinds = [*map(type, model.modules())]
    with pytest.raises(ValueError, match="SEBottleneck"):
        resnet_fused.convert(model, chains=True, strict=True)
    assert [*map(type, model.modules())] == kinds


def test_memory_is_freed():
    _, fused = pair(SEBottleneck)
    fused_ops(fused)
    dead = [weakref.ref(fused), weakref.ref(fused.conv1), weakref.ref(fused.conv1.weight)]
    del fused
    gc.collect()
    assert [ref() for ref in dead] == [None] * 3
