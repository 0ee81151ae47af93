"""A network's later calls replay the captured ops as one, and notice whatever has changed."""

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from criterion import assert_close
from replay_case import (
    FORMATS,
    NETWORKS,
    block,
    call,
    conv,
    first_stage,
    image,
    network,
    norm,
    torchvision_models,
    warm,
)
from support import RecordedOps, truth
from torch import nn
from training import eager_twin

import resnet_fused
from resnet_fused import models, modules, ops, reference
from resnet_fused.chain import program
from resnet_fused.chain.program import Program


@pytest.fixture
def replays(monkeypatch):
    """The programs that ran, in the order of their calls."""
    called = []
    run = Program.__call__

    def counted(self, x):
        called.append(self)
        return run(self, x)

    monkeypatch.setattr(Program, "__call__", counted)
    return called


def block_by_block(module, x):
    with RecordedOps():  # which sees every op
        return call(module, x)


def test_capture_releases_the_memory_of_its_call(monkeypatch):
    released = []
    release = ops.release_pool
    monkeypatch.setattr(ops, "release_pool", lambda: (release(), released.append(ops.packed_bytes())))
    fused = network()
    for size in (32, 40):
        for _ in range(3):
            call(fused, image(size=size))
    assert len(released) == 2
    assert all(released), "packed weights stay"


@pytest.mark.thinned
@pytest.mark.parametrize("memory_format", FORMATS, ids=str)
@pytest.mark.parametrize("weights", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_replay_is_the_same_call(name, dtype, weights, memory_format, replays):
    fused = network(name, dtype, weights)
    x, other = (image(dtype, memory_format=memory_format) for _ in range(2))
    expected = {image: block_by_block(fused, image) for image in (x, other)}
    call(fused, x)
    assert not replays
    for given in (x, other, x):
        y = call(fused, given)
        assert replays.pop() and not replays
        assert torch.equal(y, expected[given]) and y.stride() == expected[given].stride()


def test_inputs_have_programs_of_their_own(replays):
    fused = network()
    for x in (image(), image(size=40), image(batch=1), image(memory_format=torch.channels_last)):
        expected = call(fused, x)
        assert not replays
        assert torch.equal(call(fused, x), expected)
        assert replays.pop()


def test_many_shapes_keep_few_programs():
    fused = network()
    for batch in range(1, 20):
        call(fused, image(batch=batch, size=8))
    assert 0 < len(fused._seen.programs) <= 16


# ----- whatever changes between two calls
def edited(fused):
    with torch.no_grad():
        conv(fused).weight[0] += 1


def edited_data(fused):
    conv(fused).weight.data[0] += 1


def edited_numpy(fused):
    conv(fused).weight.detach().numpy()[0] += 1


def new_weight(fused):
    conv(fused).weight = nn.Parameter(conv(fused).weight.detach() * 2)


def new_data(fused):
    conv(fused).weight.data = conv(fused).weight.detach() * 2


def new_buffer(fused):
    norm(fused).running_mean = norm(fused).running_mean + 1


def edited_buffer(fused):
    norm(fused).running_var.mul_(3)


def gamma_removed(fused):
    norm(fused).weight = None


def new_eps(fused):
    norm(fused).eps = 0.5


def new_conv(fused):
    parent = block(fused)
    name = next(n for n, m in parent.named_children() if m is conv(fused))
    setattr(parent, name, copy.deepcopy(conv(fused)))
    edited(fused)


def no_statistics(fused):
    norm(fused).train()


def new_relu(fused):
    block(fused).relu = nn.LeakyReLU(0.5)


def new_block(fused):
    first_stage(fused)[0] = resnet_fused.revert(first_stage(fused)[0])
    with torch.no_grad():
        next(first_stage(fused)[0].parameters()).mul_(2)


def block_removed(fused):
    del first_stage(fused)[-1]


def block_repeated(fused):
    first_stage(fused).append(first_stage(fused)[-1])


def new_stem(fused):
    fused.conv1 = nn.Conv2d(3, fused.conv1.out_channels, 3, padding=1)


def loaded(fused):
    fused.load_state_dict({name: value + 1 for name, value in fused.state_dict().items()})


def assigned(fused):
    state = {name: nn.Parameter(v + 1) if v.is_floating_point() else v for name, v in fused.state_dict().items()}
    fused.load_state_dict(state, assign=True)


CHANGES = [edited, edited_data, edited_numpy, new_weight, new_data, new_buffer, edited_buffer, gamma_removed, new_eps]
CHANGES += [new_conv, no_statistics, new_relu, new_block, block_removed, block_repeated, new_stem, loaded, assigned]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_every_change_is_seen(change, replays):
    fused, x = network(), image()
    before = [call(fused, x) for _ in range(2)][-1]
    assert replays
    change(fused)
    for _ in range(3):
        reference_module = eager_twin(fused)
        actual, expected = call(fused, x), call(reference_module, x)
        assert not torch.equal(actual, before)
        assert_close(actual, expected, truth(eager_twin(fused), x))


@pytest.mark.parametrize("of", [block, conv, norm, first_stage, lambda fused: fused.conv1, lambda fused: fused.fc])
def test_hooks_run(of, replays):
    fused, x = network(), image()
    before = [call(fused, x) for _ in range(2)][-1]
    calls = []
    handle = of(fused).register_forward_hook(lambda module, args, output: calls.append(1) or output * 2)
    changed = [call(fused, x) for _ in range(3)]
    assert len(calls) == 3
    assert not torch.equal(changed[0], before) and torch.equal(changed[0], changed[2])
    handle.remove()
    assert torch.equal(call(fused, x), before)


def test_an_observing_hook_runs(replays):
    fused, x, calls = network(), image(), []
    for module in (block(fused), first_stage(fused), fused.conv1):
        module.register_forward_hook(lambda *_: calls.append(1))  # changes no tensor
    for _ in range(3):
        call(fused, x)
    assert len(calls) == 9 and not replays


def test_a_hook_on_an_identity_pool_runs():
    fused, x, calls = resnet_fused.convert(torchvision_models.resnet18().eval()), image(), []
    fused.maxpool = nn.Identity()
    fused.maxpool.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        call(fused, x)
    assert len(calls) == 3


def test_a_global_hook_runs(replays):
    fused, x, calls = network(), image(), []
    for _ in range(2):
        call(fused, x)
    assert replays
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        call(fused, x)
    finally:
        handle.remove()
    assert len(calls) > 10


def doubled(function):
    return lambda self, x: function(self, x) * 2


PATCHES = {
    "forward of the eager block": (reference.BasicBlock, "forward", doubled(reference.BasicBlock.forward)),
    "forward of the fused block": (modules.FusedBasicBlock, "forward", doubled(modules.FusedBasicBlock.forward)),
    "relu": (F, "relu", lambda x, inplace=False: x * 2),
    "conv2d": (nn.Conv2d, "forward", lambda self, x: torch.zeros(x.shape[0], self.out_channels, *x.shape[2:])),
    "stem": (models.CifarResNet, "_stem", lambda self, x: torch.ones(x.shape[0], 16, *x.shape[2:])),
}


@pytest.mark.parametrize("patch", PATCHES)
def test_every_patched_class_is_seen(patch, replays, monkeypatch):
    fused, x = network(), image()
    before = [call(fused, x) for _ in range(2)][-1]
    assert replays
    replays.clear()
    monkeypatch.setattr(*PATCHES[patch])
    for _ in range(3):
        assert not torch.equal(call(fused, x), before)
    assert not replays


def test_a_setting_of_the_class_is_seen(replays, monkeypatch):
    fused, x = warm()
    replays.clear()
    monkeypatch.setattr(type(fused), "eager_memory_format", True)
    call(fused, x)
    assert not replays


def test_a_weights_memory_format_is_seen(replays):
    fused, x = network("stage"), image()
    contiguous = [call(fused, x) for _ in range(2)][-1]
    assert replays
    for layer in fused.modules():
        if isinstance(layer, nn.Conv2d):
            layer.to(memory_format=torch.channels_last)  # exchanges weight.data
    for _ in range(3):
        y = call(fused, x)
        assert y.stride() == call(eager_twin(fused), x).stride() != contiguous.stride()


def test_a_change_during_the_capture_is_seen(monkeypatch):
    fused, x = network(), image()
    note, noted = program._note, []

    def changing(*args):  # as another thread may
        noted.append(args)
        if len(noted) == 4:
            norm(fused).eps = 0.5
        note(*args)

    monkeypatch.setattr(program, "_note", changing)
    call(fused, x)
    assert norm(fused).eps == 0.5
    for _ in range(3):
        assert_close(call(fused, x), call(eager_twin(fused), x), truth(eager_twin(fused), x))


def test_functional_call_is_seen(replays):
    fused, x = network(), image()
    before = [call(fused, x) for _ in range(2)][-1]
    others = {name: value * 2 for name, value in fused.named_parameters()}
    with torch.no_grad():
        changed = torch.func.functional_call(fused, others, x)
        others = {name: value.detach() for name, value in others.items()}
        again = [torch.func.functional_call(fused, others, x) for _ in range(2)]
    assert not torch.equal(changed, before) and all(torch.equal(y, changed) for y in again)
    assert torch.equal(call(fused, x), before)


def test_a_stem_of_the_users_runs():
    class Counts(models.CifarResNet):
        calls = 0

        def _stem(self, x):
            Counts.calls += 1
            return super()._stem(x)

    fused = resnet_fused.convert(Counts([1, 1, 1]).eval())
    for _ in range(3):
        call(fused, image())
    assert Counts.calls == 3


class InPlace(nn.Module):
    """Returns its input, which it has changed."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x.mul_(2)


@pytest.mark.parametrize("name", ["CIFAR", "pre-activation"])
def test_user_code_in_the_stem_runs(name, replays):
    fused, x = network(name), torch.randn(2, 16, 8, 8)
    fused.conv1 = InPlace()
    if name == "CIFAR":  # its stem
        fused.bn1 = fused.relu = nn.Identity()
    results = [call(fused, x.clone()) for _ in range(4)]
    assert fused.conv1.calls == 4 and not replays
    assert all(torch.equal(y, results[0]) for y in results)


def test_a_hook_on_a_shortcut_outside_of_the_modules_runs():
    shortcut, calls = nn.Identity(), []
    first = reference.BasicBlock(8, 8)
    del first.downsample
    object.__setattr__(first, "downsample", shortcut)
    fused = resnet_fused.convert(nn.Sequential(first, reference.BasicBlock(8, 8)).eval())
    for _ in range(2):
        call(fused, torch.randn(1, 8, 8, 8))
    shortcut.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        call(fused, torch.randn(1, 8, 8, 8))
    assert len(calls) == 2


def test_user_code_in_a_shortcut_runs(replays):
    class Doubles(nn.Module):
        calls = 0

        def forward(self, x):
            Doubles.calls += 1
            return x

    torch.manual_seed(0)
    blocks = [reference.BasicBlock(8, 8) for _ in range(3)]
    blocks[1].downsample = Doubles()
    fused = resnet_fused.convert(nn.Sequential(*blocks).eval())
    for _ in range(3):
        call(fused, torch.randn(1, 8, 8, 8))
    assert Doubles.calls == 3 and not replays


# ----- where calls are not replayed
def test_gradients_and_autocast_are_not_replayed(replays):
    fused, x = warm()
    replays.clear()
    fused(x).sum().backward()
    assert block(fused).conv1.weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fused(x)
    assert not replays
    call(fused, x)
    assert replays


def test_modes_see_every_op(replays):
    fused, x = warm()
    replays.clear()
    with RecordedOps() as recorded:
        call(fused, x)
    assert len(recorded.ours) > 3 and not replays


def test_explain_still_sees_every_block(replays):
    fused, x = warm()
    with torch.no_grad():
        shown = str(resnet_fused.explain(fused, x))
    assert "3 fused, 0 eager" in shown and shown.count("inference") == 3


def test_a_failed_capture_is_tried_again(replays):
    fused, x = network(), image()
    handle = block(fused).register_forward_hook(lambda *_: None)
    call(fused, x)
    handle.remove()
    for _ in range(101):
        call(fused, x)
    assert not replays
    for _ in range(2):
        call(fused, x)
    assert replays


# ----- memory, copies and threads
def test_copies_have_no_programs():
    fused, x = network(), image()
    expected = [call(fused, x) for _ in range(2)][-1]
    for made in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert not made._seen.programs
        for _ in range(2):
            assert torch.equal(call(made, x), expected)
    assert "_seen" not in vars(resnet_fused.revert(fused))


@pytest.mark.parametrize("name", ["CIFAR", "stage"])
def test_a_program_keeps_nothing_alive(name):
    fused, _ = warm(name)
    weight = weakref.ref(conv(fused).weight)
    gc.disable()
    try:
        del fused
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["CIFAR", "stage"])
def test_loading_frees_what_was_assigned_before(name):
    fused, _ = warm(name)
    weight = weakref.ref(conv(fused).weight)
    assigned(fused)
    assert weight() is None


def test_a_new_input_frees_outdated_programs():
    fused = network()
    for _ in range(2):
        call(fused, image())
    weight = weakref.ref(conv(fused).weight)
    new_weight(fused)
    call(fused, image(size=40))
    assert weight() is None


def test_threads_may_call_and_change_a_network():
    fused, xs = network(), [image(batch=batch) for batch in (1, 2, 3)]
    expected = [call(fused, x) for x in xs]
    wrong = []

    def work():
        for _ in range(10):
            for x, y in zip(xs, expected, strict=True):
                if not torch.equal(call(fused, x), y):
                    wrong.append(x.shape)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        fused._seen.programs.clear()
    for thread in threads:
        thread.join()
    assert not wrong
