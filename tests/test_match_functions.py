"""Functions and partials that a block holds: its shortcut calls them as they are, and nothing of them is traced."""

import copy
import functools
import types

import pytest
import torch
import torch.nn.functional as F
from support import randomise
from torch import nn
from traced_blocks import assert_same, block_of, either, image, outcome

import resnet_fused

STATE = types.SimpleNamespace(on=False)


def modifies(x, on=True):
    return x.mul_(2) if on else x * 2


PARTIALS = {
    "modifies x": lambda self, x: self.relu(self.branch(x) + self.held(x)),
    "modifies x first": lambda self, x: self.relu(self.held(x) + self.branch(x)),
    "reads what the partial calls": either(lambda self, x: self.held.func is modifies),
    "reads its arguments": either(lambda self, x: not self.held.args),
    "reads its keywords": either(lambda self, x: self.held.keywords.get("on")),
    "tests its class": either(lambda self, x: isinstance(self.held, functools.partial)),
    "reads it by vars": either(lambda self, x: vars(self)["held"].keywords.get("on")),
    "reads its attribute": either(lambda self, x: getattr(self.held, "scale", 1) == 3),
    "asks for its attribute": either(lambda self, x: hasattr(self.held, "scale")),
    "reads its dictionary": either(lambda self, x: bool(self.held.__dict__)),
    "compares it": either(lambda self, x: self.held == self.number),
    "tests its identity": either(lambda self, x: self.held is self.number),
    "prints it": either(lambda self, x: "on" in repr(self.held)),
    "gets a number": either(lambda self, x: self.number() > 0),
    "on the main path": lambda self, x: self.relu(self.branch(self.held(x) * 1) + x),
}


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.parametrize("name", PARTIALS)
def test_partials_run_as_in_eager(name, on):
    eager = randomise(block_of(PARTIALS[name])()).double().eval()
    given = [None]  # a partial whose changes nothing shows
    eager.held = functools.partial(lambda x, on, given: modifies(x, on), on=on, given=given)
    eager.number = functools.partial(lambda given: 1, given)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert_same(eager, fused, image(), "inference")
    for block in (eager, fused):
        block.held.keywords["on"] = not on
    assert_same(eager, fused, image(), "inference")
    for block in (eager, fused):
        block.held.scale = 3
    assert_same(eager, fused, image(), "inference")
    for block in (eager, fused):
        block.held = functools.partial(lambda x, given: modifies(x, True), given=given)
    assert_same(eager, fused, image(), "inference")
    for block in (eager, fused):
        block.held = block.number
    if name in ("tests its identity", "reads its attribute"):
        assert_same(eager, fused, image(), "inference")


GLOBAL = {"scale": 1}


def scaled(x, *, by=1):
    return x * GLOBAL["scale"] * by


def function_changes(block):
    """What of a function that a block holds may change."""
    function = block.held
    yield lambda: GLOBAL.update(scale=2)
    yield lambda: function.__kwdefaults__.update(by=3)
    yield lambda: setattr(function, "__code__", scaled.__code__.replace(co_consts=scaled.__code__.co_consts))
    yield lambda: setattr(block, "held", lambda x: x * 5)


def test_functions_as_shortcut_are_called_as_they_are():
    eager = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    eager.held = types.FunctionType(scaled.__code__, globals(), "scaled", None, None)
    eager.held.__kwdefaults__ = {"by": 1}
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert runs(fused) == "inference"
    try:
        for change, other in zip(function_changes(eager), function_changes(fused), strict=True):
            change()
            other()
            assert_same(eager, fused, image(), "inference")
    finally:
        GLOBAL.update(scale=1)


def test_functions_on_the_main_path_are_not_traced():
    block = block_of(lambda self, x: self.relu(self.held(self.branch(x)) + x))().double().eval()
    block.held = lambda x: x
    assert resnet_fused.report(block)[""].status == "refused"


def test_verdicts_of_partials_are_not_shared():
    """A partial of bn2 changes its statistics twice; one of another BatchNorm does not."""
    kind = block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))
    network = randomise(nn.Sequential(kind(), kind())).double()
    network[0].other = nn.BatchNorm2d(6).double()
    network[0].held = functools.partial(network[0].other.forward)
    network[1].other = nn.BatchNorm2d(6).double()
    network[1].held = functools.partial(network[1].bn2.forward)
    fused = resnet_fused.convert(copy.deepcopy(network))
    assert_same(network, fused, image(), "training")
    assert_same(network, fused, image(), "inference")


def test_static_methods_that_are_no_functions_are_refused():
    state = types.SimpleNamespace(on=False)
    kind = block_of(either(lambda self, x: self.held()), held=staticmethod(functools.partial(lambda: state.on)))
    block = kind().eval()
    assert resnet_fused.report(block)[""].status == "refused"


def test_lists_given_to_partials_are_not_copied():
    block = block_of(lambda self, x: self.relu(self.branch(x) + self.held(x, self.log)))().double().eval()
    block.held, block.log = functools.partial(lambda state, x, log: (log.append(1), x)[1], STATE), []
    resnet_fused.convert(block)
    calls = len(block.log)
    block(image())
    assert len(block.log) == calls + 1


def test_partials_with_a_keyword_of_any_name():
    eager = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x, function=2)))()).double().eval()
    eager.held = functools.partial(lambda state, x, function: x * function, STATE)
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert_same(eager, fused, image(), "inference")
    assert runs(fused) == "inference"


@pytest.mark.parametrize("result", [None, 1, torch.zeros(2, 6, 7)], ids=["None", "number", "3-d"])
@pytest.mark.parametrize("grad", [False, True])
def test_partials_that_return_something_else_later(result, grad):
    state = types.SimpleNamespace(result=None)
    block = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    block.held = functools.partial(lambda state, x: x if state.result is None else state.result[0], state)
    resnet_fused.convert(block)
    block.held.args[0].result = [result]
    with torch.set_grad_enabled(grad), pytest.raises(TypeError, match=r"the shortcut of a converted .* returned"):
        block(image())


def test_partials_with_objects_under_compile():
    block = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    block.held = functools.partial(lambda state, x: x * state.scale, types.SimpleNamespace(scale=2))
    expected = block(image()).detach()
    compiled = torch.compile(resnet_fused.convert(block), backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.allclose(compiled(image()), expected, rtol=1e-9)


def test_partials_as_shortcut_are_called_as_they_are():
    eager = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    eager.held = functools.partial(lambda state, x: x * state.scale, types.SimpleNamespace(scale=2))
    fused = resnet_fused.convert(copy.deepcopy(eager))
    for scale in (2, 3):
        for block in (eager, fused):
            block.held.args[0].scale = scale
        assert_same(eager, fused, image(), "inference")
        assert runs(fused) == "inference"


def test_partials_run_fused_under_compile():
    block = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    block.held = functools.partial(Network().scale, by=2)
    expected = block(image())
    ops = []

    def backend(graph, _):
        ops.extend(node for node in graph.graph.nodes if "resnet_fused" in str(node.target))
        return graph

    resnet_fused.convert(block)
    compiled = torch.compile(block, backend=backend)
    with torch.no_grad():
        assert torch.allclose(compiled(image()), expected, rtol=1e-9)
        assert len(ops) == 2
        block.held = functools.partial(Network().scale, by=3)
        assert torch.allclose(compiled(image()), block._eager_class.forward(block, image()), rtol=1e-9)


@pytest.mark.parametrize("mode", ["inference", "gradients", "training", "autocast"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_partials_see_what_eager_passes(mode, memory_format):
    kind = block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))
    stage = nn.Sequential(kind(), kind(), kind()).to(torch.float32 if mode == "autocast" else torch.float64)
    randomise(stage)
    seen = []
    for block in (stage[1], stage[2]):
        block.held = functools.partial(lambda state, x: (seen.append((x.stride(), x.dtype, x.shape)), x * 1)[1], STATE)
    stage[0].held = F.relu
    x = image(next(stage.parameters()).dtype).contiguous(memory_format=memory_format)
    fused = resnet_fused.convert(copy.deepcopy(stage))
    assert [run.how for run in resnet_fused.explain(fused.eval(), x).values()].count("eager") == 0
    seen.clear()
    outcome(stage, x, mode)
    expected = seen.copy()
    seen.clear()
    outcome(fused, x, mode)
    assert seen == expected
    assert len(seen) == 2


def test_partials_may_hold_trained_tensors():
    scale = torch.full((), 2.0, dtype=torch.float64, requires_grad=True)
    eager = randomise(block_of(lambda self, x: self.relu(self.branch(x) + self.held(x)))()).double().eval()
    eager.requires_grad_(False)
    fused = copy.deepcopy(eager)
    gradients = []
    for block in (eager, fused):
        block.held = functools.partial(torch.mul, scale)
    resnet_fused.convert(fused)
    for block in (eager, fused):
        gradients += torch.autograd.grad(block(image()).square().sum(), scale)
    assert torch.allclose(*gradients, rtol=1e-9)


def test_converting_does_not_draw_random_numbers():
    block = block_of(lambda self, x: self.relu(self.branch(x) + self.held(x, training=self.training)))().eval()
    block.held = functools.partial(lambda state, x, training: F.dropout(x, 0.5, training), STATE)
    before = torch.get_rng_state()
    resnet_fused.convert(block)
    assert torch.equal(torch.get_rng_state(), before)


class Network:
    """A network whose method a block has as its shortcut."""

    def scale(self, x, by):
        return x * by


def runs(block):
    with torch.no_grad():
        return resnet_fused.explain(block, image())[""].how


def test_other_attributes_may_change_beside_a_function():
    block = block_of(lambda self, x: self.held(self.branch(x) + x))().double().eval()
    block.held = F.relu
    resnet_fused.convert(block)
    block.epoch = 3
    assert runs(block) == "inference"
