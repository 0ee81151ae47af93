"""A block is read again when anything that its output depends on has changed since the last call."""

import copy
import functools
import gc
import pickle
import threading
import weakref

import pytest
import torch
from support import ops_of, randomise
from torch import nn

import resnet_fused
from resnet_fused import modules, ops
from resnet_fused.chain import layers


def block(**options):
    torch.manual_seed(0)
    return randomise(modules.FusedBasicBlock(8, 8, **options)).eval()


def new_parameter(made):
    made.conv1.weight = nn.Parameter(made.conv1.weight.detach().flip(0))


def equal_parameter_then_changed(made):
    made.conv1.weight = nn.Parameter(made.conv1.weight.detach().clone())
    made.conv1.weight.data.copy_(made.conv1.weight.data.flip(0))


def new_data(made):
    made.conv1.weight.data = made.conv1.weight.data.flip(0)


def other_shape(made):
    made.conv2.weight.data = made.conv2.weight.data[:, :, 1:2, 1:2].clone()
    made.conv2.padding = (0, 0)


def new_buffer(made):
    made.bn1.running_mean = made.bn1.running_mean + 1


def new_module(made):
    made.conv2 = nn.Conv2d(8, 8, 1)


def other_class(made):
    class Doubled(nn.ReLU):
        def forward(self, x):
            return 2 * super().forward(x)

    made.relu.__class__ = Doubled


def hook(made):
    made.bn2.register_forward_hook(lambda _module, _args, y: y + 1)


def hook_without_register(made):
    made.bn2._forward_hooks[0] = lambda _module, _args, y: y + 1


def swapped_tensors(made):
    torch.utils.swap_tensors(made.conv1.weight, nn.Parameter(made.conv1.weight.detach().flip(0)))


def loaded(made):
    made.load_state_dict(
        {k: v * 1.5 if v.is_floating_point() else v for k, v in made.state_dict().items()}, assign=True
    )


def edited_list(made):
    made.conv2.dilation[0] = 2
    made.conv2.padding[0] = 2


def appended_to_the_shortcut(made):
    made.downsample.append(nn.Conv2d(8, 8, 1))


def shortcut_added(made):
    made.downsample = nn.Conv2d(8, 8, 1)


def shortcut_as_a_function(made):
    made.__dict__["downsample"] = lambda x: 3 * x


def parametrised(made):
    torch.nn.utils.parametrizations.weight_norm(made.conv1)
    with torch.no_grad():
        original = made.conv1.parametrizations.weight.original1
        original.copy_(original.flip(0))


CHANGES = [new_parameter, equal_parameter_then_changed, new_data, other_shape, new_buffer, new_module, other_class]
CHANGES += [edited_list, appended_to_the_shortcut, shortcut_added, shortcut_as_a_function, hook, hook_without_register]
CHANGES += [swapped_tensors, loaded, parametrised]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_between_calls_is_seen(change, training, grad):
    made = block().train(training)
    made.downsample = nn.Sequential() if change is appended_to_the_shortcut else None
    if change is edited_list:
        made.conv2.dilation, made.conv2.padding = [1, 1], [1, 1]
    x = torch.randn(2, 8, 6, 5)
    with torch.set_grad_enabled(grad):
        before = made(x).detach()
        torch.manual_seed(1)
        change(made)
        twin = resnet_fused.revert(copy.deepcopy(made))
        y, expected = made(x), twin(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    if not (change is new_buffer and training):
        assert not torch.allclose(y, before, rtol=1e-2), "the change has no effect, so the test shows nothing"


def test_channels_of_one_element_are_read_on_every_call():
    """Tensors of one element have a truth value: an equal one in their place is another tensor nevertheless."""
    made = randomise(modules.FusedBasicBlock(1, 1)).eval()
    x = torch.randn(2, 1, 6, 5)
    with torch.no_grad():
        made(x)
        made.bn1.weight = nn.Parameter(made.bn1.weight.detach().clone())
        made(x)
        made.bn1.weight.data.mul_(3)
        torch.testing.assert_close(made(x), made._eager_class.forward(made, x), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_other_shapes_and_dtypes_are_checked_again():
    made = block(downsample=nn.Sequential(nn.AdaptiveAvgPool2d(3)))
    assert made(torch.randn(2, 8, 3, 3)).shape == (2, 8, 3, 3)
    with pytest.raises(RuntimeError, match="must match the size"):
        made(torch.randn(2, 8, 6, 6))
    assert made(torch.randn(1, 8, 3, 3)).shape == (1, 8, 3, 3)
    with pytest.raises(RuntimeError):
        made(torch.randn(2, 8, 3, 3).bfloat16())


@torch.no_grad()
def test_nothing_is_read_again_without_a_change(monkeypatch):
    made = block()
    x = torch.randn(2, 8, 6, 5)
    y = made(x)
    monkeypatch.setattr(layers, "read", lambda *_: pytest.fail("read again"))
    assert torch.equal(made(x), y)


def test_blocks_and_tensors_are_not_kept_alive():
    made = block()
    with torch.no_grad():
        made(torch.randn(2, 8, 6, 5))
    storage, owner = weakref.ref(made.conv1.weight.untyped_storage()), weakref.ref(made)
    made.conv1.owner = [made]  # a cycle
    made.conv2.register_state_dict_pre_hook(functools.partial(print, made))
    with torch.no_grad():
        made(torch.randn(2, 8, 6, 5))
    made.float().double()  # moves drop what is remembered
    gc.collect()
    assert storage() is None
    del made
    gc.collect()
    assert owner() is None


def test_graphs_of_temporary_norms_are_not_kept_alive():
    made, x = block(), torch.randn(2, 8, 6, 5)
    gamma = torch.rand(8, requires_grad=True) * 2
    alive = weakref.ref(gamma)
    torch.func.functional_call(made, {"bn1.weight": gamma}, (x,))
    del gamma
    gc.collect()
    assert alive() is None


@torch.no_grad()
def test_a_removed_hook_is_forgotten():
    made, x = block(), torch.randn(2, 8, 6, 5)
    handle = made.conv1.register_forward_hook(lambda *_: None)
    assert not ops_of(made, x)
    handle.remove()
    assert ops_of(made, x)


@torch.no_grad()
def test_copies_and_reverted_blocks_carry_no_memory():
    made = block()
    made(torch.randn(2, 8, 6, 5))
    assert made.__dict__["_seen"]
    for copied in (copy.deepcopy(made), copy.copy(made.__dict__["_seen"]), pickle.loads(pickle.dumps(made))):
        assert not (copied if isinstance(copied, dict) else copied.__dict__["_seen"])
    assert "_seen" not in resnet_fused.revert(made).__dict__


@torch.no_grad()
@pytest.mark.parametrize("replace", ["update", "setstate", "dict of a layer"])
def test_replaced_dictionaries_are_seen(replace):
    made, other = block(), copy.deepcopy(block())
    for tensor in other.state_dict().values():
        if tensor.dim():
            tensor.copy_(tensor.flip(0))
    x = torch.randn(2, 8, 6, 5)
    want, before = other(x), made(x)
    state = copy.deepcopy(other).__dict__
    if replace == "update":
        made.__dict__.update(state)
    elif replace == "setstate":
        made.__setstate__(state)
    else:
        for name, module in made.named_children():
            module.__dict__ = getattr(other, name).__dict__
    assert not torch.allclose(want, before, rtol=1e-2)
    torch.testing.assert_close(made(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grad", [False, True])
def test_momentum_that_becomes_a_tensor_means_the_same(grad):
    made = block().train()
    twin = copy.deepcopy(made)
    x = torch.randn(2, 8, 6, 5)
    with torch.set_grad_enabled(grad):
        for momentum in (0.1, torch.tensor(0.1)):
            made.bn1.momentum = twin.bn1.momentum = momentum
            made(x), twin._eager_class.forward(twin, x)
    torch.testing.assert_close(made.bn1.running_mean, twin.bn1.running_mean)


@torch.no_grad()
def test_threads_with_different_shapes_get_their_own_answer():
    """The shortcut fits one of the shapes only, so that a mixed-up answer would show."""
    made = block(downsample=nn.Sequential(nn.AdaptiveAvgPool2d(3)))
    wrong = []

    def run(size):
        x = torch.randn(2, 8, size, size)
        expected = made._eager_class.forward(made, x) if size == 3 else None
        for _ in range(200):
            try:
                y = made(x)
                if expected is None or not torch.allclose(y, expected, rtol=1e-4, atol=1e-4):
                    wrong.append(size)
            except RuntimeError:
                if size == 3:
                    wrong.append(size)

    threads = [threading.Thread(target=run, args=(size,)) for size in (3, 6, 3, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@torch.no_grad()
def test_a_moved_block_still_packs_and_frees_its_weights():
    made = block()
    made(torch.randn(2, 8, 6, 5))
    made.forget_packed()
    before = ops.packed_bytes()
    assert ops_of(made, torch.randn(2, 8, 6, 5))
    made.double()
    assert ops.packed_bytes() == before
