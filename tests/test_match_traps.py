"""Blocks that a trace misjudges, and changes that a trace cannot see: they run as in eager."""

import abc
import contextlib
import copy
import functools
import gc
import threading
import types
import weakref

import pytest
import torch
import torch.nn.functional as F
from support import randomise
from torch import nn
from torch.utils.checkpoint import checkpoint

import resnet_fused


class TwoConvs(nn.Module):
    """A block; ``fits`` is what a chain computes, ``differs`` is not."""

    def __init__(self, planes=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, planes, 3, padding=1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1), nn.BatchNorm2d(planes)
        self.relu, self.proj, self.flag = nn.ReLU(), nn.Conv2d(6, planes, 1), False

    def branch(self, x):
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))

    def fits(self, x):
        return self.relu(self.branch(x) + x)

    def differs(self, x):
        return self.relu(self.branch(x))


def block_of(forward, **attributes):
    return type("Block", (TwoConvs,), {"forward": forward, **attributes})


def either(condition):
    """A ``forward`` that is a chain unless the condition holds."""
    return lambda self, x: self.differs(x) if condition(self, x) else self.fits(x)


STATE = types.SimpleNamespace(on=False)
DTYPES = {torch.bfloat16: True}


def reads_state(block):
    return block.state.on


def autocast_off(self, x):
    with torch.autocast("cpu", enabled=False):
        return self.relu(self.branch(x) + self.proj(x))


def pre_activation(self, x):
    a = self.relu(self.bn1(x))
    return self.conv2(self.relu(self.bn2(self.conv1(a)))) + (self.proj(F.avg_pool2d(x, 1)) if self.flag else x)


def checkpointed(self, x):
    y = checkpoint(self.branch, x, use_reentrant=False) if self.flag else self.branch(x)
    return self.relu(y + x)


def in_place(self, x):
    x += self.branch(x)
    return self.relu(x)


FORWARDS = {
    "autocast off": autocast_off,
    "gradients on": torch.enable_grad()(TwoConvs.fits),
    "no gradients": torch.no_grad()(TwoConvs.fits),
    "grad mode": either(lambda self, x: torch.is_grad_enabled()),
    "autocast mode": either(lambda self, x: torch.is_autocast_enabled("cpu")),
    "set of dtypes": either(lambda self, x: x.dtype in DTYPES),
    "text of dtype": either(lambda self, x: str(x.dtype) != "torch.float32"),
    "requires_grad": either(lambda self, x: x.requires_grad is True),
    "grad_fn": either(lambda self, x: x.grad_fn is not None),
    "is a tensor": either(lambda self, x: isinstance(x, torch.Tensor)),
    "empty": either(lambda self, x: x.numel() == 0),
    "global": either(lambda self, x: STATE.on),
    "modifies x": in_place,
    "type of self": either(lambda self, x: type(self).__name__ != "Block"),
    "contiguous": lambda self, x: (self.relu(self.branch(x)).contiguous() + x).contiguous(),
    "parameters": either(lambda self, x: all(p.requires_grad for p in self.parameters())),
    "pre-activation": pre_activation,
    "checkpoint": checkpointed,
}


def outcome(block, x, mode):
    """Everything that a call shows."""
    block.train(mode == "training")
    x = x.clone().requires_grad_(mode != "inference")
    given = x * 1
    setting = torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()
    with torch.set_grad_enabled(mode in ("training", "gradients")), setting:
        y = block(given)
        if mode in ("training", "gradients") and y.requires_grad:
            y.float().square().sum().backward()
    gradients = [p.grad for p in (x, *block.parameters())]
    return [y.detach(), given.detach(), *block.buffers(), *gradients], y.dtype, y.requires_grad, y.stride()


def assert_same(eager, fused, x, mode, tolerance=1e-9):
    (expected, *rest), (actual, *others) = outcome(eager, x, mode), outcome(fused, x, mode)
    assert rest == others
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert (a.double() - b.double()).norm() <= tolerance * max(b.double().norm(), 1e-3)


def pair(kind):
    eager = randomise(kind()).double()
    return eager, resnet_fused.convert(copy.deepcopy(eager))


def image(dtype=torch.float64, batch=2):
    return torch.randn(batch, 6, 7, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("mode", ["inference", "gradients", "training"])
@pytest.mark.parametrize("name", [name for name in FORWARDS if name != "modifies x"])  # autograd refuses it
def test_forward_runs_as_in_eager(name, mode):
    eager, fused = pair(block_of(FORWARDS[name]))
    assert_same(eager, fused, image(), mode)
    for block in (eager, fused):
        block.flag = True
    assert_same(eager, fused, image(), mode)


@pytest.mark.parametrize("name", FORWARDS)
def test_forward_runs_as_in_eager_under_autocast(name):
    eager = randomise(block_of(FORWARDS[name])()).eval()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert_same(eager, fused, image(torch.float32), "autocast", tolerance=0.02)


@pytest.mark.parametrize("name", FORWARDS)
def test_empty_batches_run_as_in_eager(name):
    eager, fused = pair(block_of(FORWARDS[name]))
    assert_same(eager, fused, image(batch=0), "inference")


def set_state(block):
    block.state = types.SimpleNamespace(on=False)


def wrapped(forward):
    @functools.wraps(forward)
    def called(self, x):
        return self.differs(x) if self.state.on else forward(self, x)

    return called


def closure():
    held = [False]
    kind = block_of(lambda self, x: self.differs(x) if held[0] else self.fits(x))
    return kind, lambda block: held.__setitem__(0, True)


MUTABLE = {
    "list of the class": (
        lambda: block_of(either(lambda self, x: self.held), held=[]),
        lambda b: b.held.append(1),
    ),
    "object in a helper": (
        lambda: block_of(either(lambda self, x: reads_state(self)), state=None),
        lambda b: setattr(b.state, "on", True),
    ),
    "object in a decorator": (
        lambda: block_of(wrapped(TwoConvs.fits)),
        lambda b: setattr(b.state, "on", True),
    ),
    "list in a tuple": (
        lambda: block_of(either(lambda self, x: self.held[0])),
        lambda b: b.held[0].append(1),
    ),
    "partial": (
        lambda: block_of(either(lambda self, x: self.held())),
        lambda b: b.held.keywords.update(on=True),
    ),
    "bound method": (
        lambda: block_of(either(lambda self, x: self.held())),
        lambda b: b.held.__self__.append(1),
    ),
    "tensor": (
        lambda: block_of(either(lambda self, x: bool(self.held > 0))),
        lambda b: b.held.fill_(1),
    ),
    "code of forward": (
        lambda: block_of(types.FunctionType(TwoConvs.fits.__code__, globals())),
        lambda b: setattr(getattr(b, "_eager_class", type(b)).forward, "__code__", TwoConvs.differs.__code__),
    ),
}
HELD = {
    "list in a tuple": lambda: ([],),
    "partial": lambda: functools.partial(lambda on=False: on),
    "bound method": lambda: [].__len__,
    "tensor": lambda: torch.zeros(()),
}


@pytest.mark.parametrize("name", MUTABLE)
def test_changes_that_a_trace_cannot_see(name):
    make, change = MUTABLE[name]
    kind = make()
    block = kind().double().eval()
    set_state(block)
    if name in HELD:
        block.held = HELD[name]()
    resnet_fused.convert(block)
    with torch.no_grad():
        block(image())
        change(block)
        expected = TwoConvs.differs(block, image())
        assert torch.allclose(block(image()), expected, rtol=1e-9)


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


def test_a_closure_that_changes():
    kind, change = closure()
    block = resnet_fused.convert(kind().double().eval())
    with torch.no_grad():
        block(image())
        change(block)
        assert torch.allclose(block(image()), block.differs(image()), rtol=1e-9)


def test_a_verdict_is_not_reused_for_other_code():
    kind = block_of(either(lambda self, x: isinstance(x, torch.Tensor) and self.flag))
    first, second = kind().eval(), kind().eval()
    second.flag = True
    resnet_fused.convert(first)
    resnet_fused.convert(second)
    with torch.no_grad():
        assert torch.allclose(second(image(torch.float32)), TwoConvs.differs(second, image(torch.float32)))


def test_a_global_hook_does_not_skip_the_comparison():
    kind = block_of(either(lambda self, x: isinstance(x, torch.Tensor)))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        block = resnet_fused.convert(kind().double().eval())
    finally:
        handle.remove()
    with torch.no_grad():
        assert torch.allclose(block(image()), TwoConvs.differs(block, image()))


def test_shallow_copies_are_watched_apart():
    block = resnet_fused.convert(block_of(either(lambda self, x: self.flag))().double().eval())
    with torch.no_grad():
        block(image())
        other = copy.copy(block)
        other.flag = True
        assert torch.allclose(other(image()), TwoConvs.differs(block, image()))
        assert torch.allclose(block(image()), TwoConvs.fits(block, image()))


def test_converted_blocks_and_their_classes_are_freed():
    kind = block_of(lambda self, x: self.fits(x))
    block = resnet_fused.convert(kind().eval())
    with torch.no_grad():
        block(image(torch.float32))
    references = weakref.ref(block), weakref.ref(kind)
    gc.disable()
    try:
        del block
        assert references[0]() is None
    finally:
        gc.enable()
    del kind
    gc.collect()
    assert references[1]() is None


def test_converting_in_threads_leaves_torch_alone():
    calls = nn.Module.__call__, nn.Module.__getattr__
    errors, running = [], threading.Event()
    network = nn.Sequential(nn.Conv2d(6, 6, 1), nn.ReLU()).double()
    expected = network(image())

    def use():
        while not running.is_set():
            if not torch.equal(network(image()), expected):
                errors.append("another thread's network changed")

    def load():
        for _ in range(20):
            if type(resnet_fused.convert(block_of(TwoConvs.fits)())).__name__ != "FusedBlock":
                errors.append("a block was refused")

    user = threading.Thread(target=use)
    loaders = [threading.Thread(target=load) for _ in range(2)]
    for thread in (user, *loaders):
        thread.start()
    for thread in loaders:
        thread.join()
    running.set()
    user.join()
    assert not errors
    assert (nn.Module.__call__, nn.Module.__getattr__) == calls


def test_a_copy_of_a_changed_block_is_not_trusted():
    kind = block_of(either(lambda self, x: self.flag and isinstance(x, torch.Tensor)))
    block = resnet_fused.convert(kind().double().eval())
    block.flag = True
    other = copy.deepcopy(block)
    with torch.no_grad():
        assert torch.allclose(other(image()), TwoConvs.differs(block, image()))


def helper(x):
    return F.relu(x)


FLAG = False


@pytest.mark.parametrize("name", ["helper", "FLAG"])
def test_global_variables_that_are_rebound(name, monkeypatch):
    kind = block_of(lambda self, x: helper(self.branch(x) + x) if not FLAG else self.differs(x))
    block = resnet_fused.convert(kind().double().eval())
    with torch.no_grad():
        assert torch.allclose(block(image()), TwoConvs.fits(block, image()))
        monkeypatch.setitem(globals(), name, F.leaky_relu if name == "helper" else True)
        assert torch.allclose(block(image()), type(block)._eager_class.forward(block, image()))


def test_stages_run_under_vmap():
    kind = block_of(TwoConvs.fits)
    stage = resnet_fused.convert(nn.Sequential(kind(), kind()).double().eval())
    assert type(stage) is resnet_fused.modules.FusedStage
    images = torch.stack([image(), 2 * image()])
    with torch.no_grad():
        expected = torch.stack([stage(each) for each in images])
        assert torch.allclose(torch.func.vmap(stage)(images), expected)


def test_an_attribute_named_as_a_global_variable(monkeypatch):
    monkeypatch.setitem(globals(), "conv1", [1])
    assert type(resnet_fused.convert(block_of(TwoConvs.fits)())).__name__ == "FusedBlock"


def test_abstract_base_classes_convert():
    class Base(TwoConvs, abc.ABC):
        @abc.abstractmethod
        def forward(self, x): ...

    class Block(Base):
        def forward(self, x):
            return self.fits(x)

    eager = randomise(Block()).double()
    fused = resnet_fused.convert(copy.deepcopy(eager))
    assert type(fused).__name__ == "FusedBlock"
    for mode in ("inference", "training"):
        assert_same(eager, fused, image(), mode)
