"""Blocks that people wrote by hand convert if a chain computes them exactly; no block ever computes something else."""

import copy
import random

import pytest
import torch
from criterion import assert_close
from handwritten_blocks import Basic, Bodied, Flagged, OptionalArgument, Residual, SharedReLU, Units, body, conv3, part
from handwritten_parity import (
    CASES,
    FORMATS,
    MODES,
    SIZES,
    assert_same,
    build,
    compare,
    how,
    input_of,
    pair,
    projected,
    runs_fused,
    step,
)
from handwritten_shortcuts import DiveIntoDeepLearning, PreActivation
from handwritten_traps import (
    AppendsToList,
    CountsCalls,
    NormAfterAdd,
    RemembersOutput,
    ThrowsNormAway,
    with_activation,
)
from support import ops_of, randomise, truth
from torch import nn
from training import assert_trains_as_eager

import resnet_fused

every_case = pytest.mark.parametrize("name", CASES)
TRAINED = [name for name, case in CASES.items() if case.exact_train]


def converted(name):
    return resnet_fused.convert(build(name))


@every_case
def test_case_equals_eager(name):
    eager = build(name).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    # With the next test, every two of size, format of x and format of weights meet.
    for size, memory_format in zip(SIZES, reversed(FORMATS), strict=True):
        compare(eager, fused, sizes=[size], formats=[memory_format])


@every_case
def test_channels_last_weights(name):
    eager = build(name).double().to(memory_format=torch.channels_last)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    for size, memory_format in zip(SIZES, FORMATS, strict=True):
        compare(eager, fused, sizes=[size], formats=[memory_format])


@pytest.mark.parametrize("weights", FORMATS, ids=["contiguous", "channels_last"])
@every_case
def test_output_strides(name, weights):
    """Else a view of the output, which eager allows, could raise."""
    eager = build(name).to(memory_format=weights)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    for mode in (MODES["eval"], MODES["train"]):
        for memory_format in FORMATS:
            x = input_of(CASES[name].channels, (7, 9), memory_format, torch.float32)
            outputs = [step(block, x, mode)["output"] for block in (eager, fused)]
            assert outputs[1].stride() == outputs[0].stride(), f"{mode}, x is {memory_format}"


@every_case
def test_case_infers_in_float32(name):
    eager = build(name).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager)).eval()
    for size in SIZES:
        for memory_format in FORMATS:
            x = input_of(CASES[name].channels, size, memory_format, torch.float32)
            exact = step(copy.deepcopy(eager).double(), x.double(), MODES["eval"])["output"]
            expected, actual = (step(block, x, MODES["eval"])["output"] for block in (eager, fused))
            assert_close(actual, expected, exact)


@pytest.mark.parametrize("name", TRAINED)
def test_case_trains_in_float32(name):
    block = converted(name).train()
    x = input_of(CASES[name].channels, dtype=torch.float32).requires_grad_()
    assert_trains_as_eager(block, x, fused=True)


@every_case
def test_runs_fused_where_exact(name):
    case, x = CASES[name], input_of(CASES[name].channels, dtype=torch.float32)
    block = converted(name)
    by_batch = any(isinstance(m, nn.BatchNorm2d) and m.running_mean is None for m in block.modules())
    for mode, exact in ((MODES["eval"], case.exact_eval), (MODES["train"], case.exact_train)):
        found = how(block, x, mode)
        if exact:
            assert found == ("training" if mode.training or by_batch else "inference")
        if exact is False:
            assert found == "eager"
    block.eval()
    if case.exact_eval is not None:
        assert bool(ops_of(block, x)) == case.exact_eval


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not (case.exact_eval or case.exact_train)])
def test_other_blocks_are_refused(name):
    case, block = CASES[name], build(name)
    kind = type(block)
    entry = resnet_fused.report(resnet_fused.convert(block)).get("")
    if case.exact_eval is case.exact_train is False:
        assert type(block) is kind
        assert entry is None or entry.status == "refused"
    assert entry is None or entry.status != "refused" or len(entry.reason) > 10


def test_all_exact_blocks_convert():
    exact = [name for name, case in CASES.items() if case.exact_eval and case.exact_train]
    reports = {name: resnet_fused.report(converted(name)) for name in exact}
    missed = {name: str(found) for name, found in reports.items() if "" not in found or found[""].status != "converted"}
    assert not missed, f"{len(missed)} of {len(exact)}:\n" + "\n".join(f"{k}: {v}" for k, v in missed.items())


def test_coverage_counts_residual_blocks():
    leaky = with_activation(nn.LeakyReLU(0.1))
    model = nn.Sequential(nn.Sequential(conv3(6, 6), nn.BatchNorm2d(6), nn.ReLU()), Basic(), leaky(), PreActivation())
    assert tuple(resnet_fused.report(model).coverage) == (2, 3)
    coverage = resnet_fused.report(resnet_fused.convert(model)).coverage
    assert (coverage.fused, coverage.blocks) == (2, 3)


def test_only_the_class_changes_and_revert_restores_it():
    block = Flagged(6, 8)
    contents, state = dict(vars(block)), copy.deepcopy(block.state_dict())
    assert resnet_fused.report(block)[""].status == "convertible"
    assert resnet_fused.convert(block, strict=True) is block
    assert isinstance(block, Flagged)
    assert type(block).__name__ == "FusedFlagged"
    assert type(block)._eager_class is Flagged
    assert resnet_fused.report(block)[""].status == "converted"
    compare(*(copy.deepcopy(block).double() for _ in range(2)))
    block.eval()(input_of(dtype=torch.float32))
    resnet_fused.revert(block)
    assert type(block) is Flagged
    assert vars(block).keys() == contents.keys()
    assert all(vars(block)[name] == value for name, value in contents.items() if name not in ("training", "_modules"))
    for name, value in block.state_dict().items():
        assert torch.equal(value, state[name])


@projected
def test_converting_twice_changes_nothing(make):
    block = resnet_fused.convert(make(), strict=True)
    kind = type(block)
    assert type(resnet_fused.convert(block, strict=True)) is kind
    assert type(resnet_fused.convert(resnet_fused.revert(block), strict=True)) is kind


def test_instances_of_one_class_share_a_fused_class():
    first, second = (resnet_fused.convert(Basic(), strict=True) for _ in range(2))
    assert type(first) is type(second)


def test_filter_chooses_blocks():
    model = nn.Sequential(Basic(), Basic(), PreActivation())
    resnet_fused.convert(model, filter_fn=lambda module, name: name != "1", strict=True)
    assert type(model[1]) is Basic
    assert {name: entry.status for name, entry in resnet_fused.report(model).items()} == {
        "0": "converted",
        "1": "convertible",
        "2": "converted",
    }


def test_strict_names_block_and_reason():
    model = nn.Sequential(Basic(), with_activation(nn.LeakyReLU(0.1))())
    with pytest.raises(ValueError, match=r"1 \(.*LeakyReLU"):
        resnet_fused.convert(model, strict=True)
    assert type(model[0]) is Basic, "the model is unchanged"


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NormAfterAdd, "bn2 follows the addition; only a ReLU is supported"),
        (ThrowsNormAway, "it computes bn1 without using it"),
    ],
)
def test_reason_names_a_norm_by_its_path(block, reason):
    assert reason in resnet_fused.report(block())[""].reason


def test_strict_names_the_class():
    class Odd(Bodied):
        pass

    with pytest.raises(ValueError, match="Odd"):
        resnet_fused.convert(nn.Sequential(Odd(nn.Sequential(conv3(6, 6), nn.GroupNorm(2, 6)))), strict=True)


def test_second_argument_is_used():
    eager, fused = pair(OptionalArgument)
    x, other = input_of(), input_of()
    for mode in (True, False):
        assert_same({"y": fused.train(mode)(x, other)}, {"y": eager.train(mode)(x, other)})
        assert_same({"y": fused(x, residual=other)}, {"y": eager(x, residual=other)})
        assert_same({"y": fused(x, None)}, {"y": eager(x, None)})


@pytest.mark.parametrize(("make", "name"), [(Basic, "x"), (Units, "hidden_state"), (DiveIntoDeepLearning, "X")])
def test_keyword_call_equals_eager(make, name):
    eager, fused = pair(make)
    x = input_of()
    for training in (True, False):
        assert_same({"y": fused.train(training)(**{name: x})}, {"y": eager.train(training)(**{name: x})})


@pytest.mark.parametrize("arguments", [(), (torch.ones(1), torch.ones(1)), ("x",)], ids=["none", "two", "string"])
def test_wrong_arguments_raise_as_in_eager(arguments):
    eager, fused = pair(Basic)
    for block in (eager, fused):
        with pytest.raises(TypeError):
            block(*arguments)


class Holder(nn.Module):
    """A container of one block, whose computation is a residual block's too."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(x)


HOLDERS = {"module": Holder, "sequential": nn.Sequential, "nested": lambda block: Holder(nn.Sequential(Holder(block)))}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
@pytest.mark.parametrize("make", [Basic, lambda: Residual(body()), PreActivation], ids=["basic", "residual", "preact"])
def test_only_the_innermost_module_converts(make, hold):
    block = make()
    kind, outer = type(block), hold(block)
    kinds = [type(m) for m in outer.modules() if m is not block]
    entries = resnet_fused.report(resnet_fused.convert(outer, strict=True))
    assert [entry.status for entry in entries.values()] == ["converted"]
    assert type(block)._eager_class is kind
    assert [type(m) for m in outer.modules() if m is not block] == kinds


def test_wrapped_residual_with_a_relu_converts_once():
    model = nn.Sequential(Residual(body()), nn.ReLU()).double()
    eager = copy.deepcopy(model)
    assert type(resnet_fused.convert(model, strict=True)) is nn.Sequential
    assert resnet_fused.report(model)["0"].status == "converted"
    compare(eager, model)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.other, self.head = SharedReLU(), SharedReLU(), nn.Linear(6, 2)
        self.other.relu = self.block.relu

    def forward(self, x):
        return self.head(self.other(self.block(self.block(x))).mean((2, 3)))


def test_network_that_uses_a_block_twice_equals_eager():
    eager = randomise(Twice()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert tuple(resnet_fused.report(fused).coverage) == (2, 2)
    compare(eager, fused)
    eager.block.relu, fused.block.relu = nn.LeakyReLU(), nn.LeakyReLU()
    compare(eager, fused)


class Unchanged(Basic):
    """A subclass of a block."""


class OtherBranch(SharedReLU):
    def branch(self, x):
        return torch.tanh(super().branch(x))


def test_subclasses_are_judged_by_what_they_compute():
    assert type(resnet_fused.convert(Unchanged(), strict=True))._eager_class is Unchanged
    pair(SharedReLU)
    eager = OtherBranch().double()
    compare(eager, resnet_fused.convert(copy.deepcopy(eager)))
    assert type(resnet_fused.convert(OtherBranch())) is OtherBranch


@pytest.mark.parametrize("exact_first", [False, True])
def test_instances_are_judged_one_by_one(exact_first):
    makes = [Flagged, part(Flagged, scale=0.5), part(Flagged, use_relu=False), part(Flagged, 6, 8, 2)]
    statuses = []
    for make in makes if exact_first else reversed(makes):
        eager = randomise(make()).double()
        fused = resnet_fused.convert(copy.deepcopy(eager))
        compare(eager, fused)
        statuses.append(type(fused) is not Flagged)
    assert statuses == ([True, False, True, True] if exact_first else [True, True, False, True])


@projected
def test_converted_block_changes_its_dtype(make):
    eager, fused = pair(make)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        x = input_of(dtype=dtype)
        low, fast = copy.deepcopy(eager).to(dtype).eval(), copy.deepcopy(fused).to(dtype).eval()
        with torch.no_grad():
            assert_close(fast(x), low(x), truth(low, x))


@projected
def test_converted_block_becomes_channels_last(make):
    eager, fused = pair(make)
    for block in (eager, fused):
        block.to(memory_format=torch.channels_last)
    compare(eager, fused, formats=FORMATS)
    assert runs_fused(fused)


@projected
def test_recompute_equals_eager(make):
    eager, fused = pair(make)
    fused.recompute = True
    compare(eager, fused)


@projected
def test_autocast_equals_eager(make):
    block = resnet_fused.convert(randomise(make()), strict=True).eval()
    eager, x = resnet_fused.revert(copy.deepcopy(block)), input_of(dtype=torch.float32)
    with torch.no_grad():
        exact = truth(eager, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert_close(block(x), eager(x), exact)


WIDE_6 = [name for name, case in CASES.items() if case.channels == 6 and case.exact_eval and case.exact_train]


@pytest.mark.parametrize("first", range(6))
def test_networks_of_blocks_equal_eager(first):
    blocks = [build(name).eval() for name in WIDE_6[first::6]]
    x = input_of(dtype=torch.float32)
    eager = nn.Sequential(*(block for block in blocks if block(x).shape == x.shape)).double()
    fused = resnet_fused.convert(copy.deepcopy(eager), strict=True)
    compare(eager, fused, formats=FORMATS)
    seen = []
    for model in (eager, fused):
        model[1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].mean()) or 2 * output)
    compare(eager, fused)
    assert len(seen) == 6


@projected
def test_tracers_get_eager_layers(make):
    eager, fused = pair(make)
    x = input_of()
    traced = torch.jit.trace(fused.eval(), x)
    assert "resnet_fused" not in str(traced.inlined_graph)
    assert_same({"output": traced(x).detach()}, {"output": eager.eval()(x).detach()})
    assert not ours(torch.fx.symbolic_trace(fused).graph)


def ours(graph):
    return [node.target for node in graph.nodes if "resnet_fused" in str(node.target)]


@pytest.mark.parametrize("mode", ["eval", "train"])
@projected
def test_compiled_block_contains_fused_ops(make, mode):
    eager, fused = pair(make)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    x = input_of()
    with torch.set_grad_enabled(MODES[mode].grad):
        expected, actual = eager.train(mode == "train")(x), fused.train(mode == "train") and compiled(x)
    assert_same({"output": actual.detach()}, {"output": expected.detach()})
    assert len(graphs) == 1
    assert ours(graphs[0])


def test_compiled_block_sees_a_flag():
    eager, fused = pair(Flagged)
    torch._dynamo.reset()
    compiled, x = torch.compile(fused.eval(), backend="eager"), input_of()
    for skip in (True, False, True):
        eager.skip = fused.skip = skip
        with torch.no_grad():
            assert_same({"output": compiled(x)}, {"output": eager.eval()(x)})


@projected
def test_exported_block_contains_fused_ops(make):
    eager, fused = pair(make)
    x = input_of()
    with torch.no_grad():
        program = torch.export.export(fused.eval(), (x,))
        assert_same({"output": program.module()(x)}, {"output": eager.eval()(x)})
    assert ours(program.graph)


@projected
def test_functional_call_equals_eager(make):
    eager, fused = pair(make)
    x, weights = input_of(), {name: 2 * p.detach() for name, p in eager.named_parameters()}
    expected, actual = (torch.func.functional_call(block.eval(), weights, (x,)) for block in (eager, fused))
    assert_same({"output": actual.detach()}, {"output": expected.detach()})


def test_empty_batch_equals_eager():
    eager, fused = pair(Basic)
    x = input_of()[:0]
    assert fused.eval()(x).shape == eager.eval()(x).shape


@pytest.mark.parametrize("function", [resnet_fused.report, resnet_fused.convert])
@pytest.mark.parametrize("kind", [AppendsToList, CountsCalls, RemembersOutput])
def test_leaves_no_trace_in_the_block(kind, function):
    block = kind()
    before = {name: copy.copy(value) for name, value in vars(block).items()}
    function(block)
    assert vars(block).keys() == before.keys()
    for name in ("seen", "calls", "last"):
        assert vars(block).get(name) == before.get(name)


@every_case
def test_keeps_buffers_and_seeds(name):
    block = build(name)
    before, state, state_of_python = copy.deepcopy(block.state_dict()), torch.get_rng_state(), random.getstate()
    resnet_fused.convert(block)
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == state_of_python
    assert_same(block.state_dict(), before)


def test_lazy_layers_convert_later():
    class Lazy(Basic):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.LazyConv2d(6, 3, padding=1)

    block, x = resnet_fused.convert(Lazy()), input_of(dtype=torch.float32)
    block(x)
    resnet_fused.convert(block, strict=True)
    eager = resnet_fused.revert(copy.deepcopy(block))
    compare(eager.double(), block.double())


def test_converts_on_the_meta_device():
    block = Basic().to("meta")
    assert type(resnet_fused.convert(block, strict=True)).__name__ == "FusedBasic"
    assert block(torch.empty(2, 6, 5, 5, device="meta")).shape == (2, 6, 5, 5)
