"""Blocks that a trace misjudges, and changes that a trace cannot see: they run as in eager."""

import abc
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
from traced_blocks import TwoConvs, assert_same, block_of, either, image, pair

import resnet_fused

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
