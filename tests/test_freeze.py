"""Frozen models: weights are packed once and not digested again; what ends a freeze."""

import copy
import gc
import io

import pytest
import torch

import resnet_fused
from resnet_fused import models, ops, plans


@pytest.fixture
def model():
    network = models.small_resnet(10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
    return resnet_fused.convert(network.eval())


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def logits(model, x):
    with torch.no_grad():
        return model(x)


def a_weight(model):
    return next(m for m in model.modules() if isinstance(m, resnet_fused.FusedBasicBlock)).conv2.weight


def is_frozen(model, x):
    """Returns whether an edit in the middle of a weight goes unnoticed if it does not change the version."""
    values = a_weight(model).data.flatten()
    middle = values[len(values) // 2 - 50 : len(values) // 2 + 50]
    before = logits(model, x)
    middle.mul_(2)
    after = logits(model, x)
    middle.mul_(0.5)
    return torch.equal(before, after)


def packs():
    plan = plans.read(ops.explain_cpu([2, 32, 8, 8], [32, 32, 3, 3], [1, 1], [1, 1], [1, 1], 1, "float32"))
    return plan.kernel != "composed"


def test_frozen_model_is_the_same_and_skips_the_digest(model, x):
    before = logits(model, x)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert not is_frozen(model, x)
    assert resnet_fused.freeze(model) is model
    assert torch.equal(logits(model, x), before)
    assert is_frozen(model, x) == packs()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert resnet_fused.unfreeze(model) is model
    assert not is_frozen(model, x)
    assert torch.equal(logits(model, x), before)


def test_an_in_place_change_is_refused(model, x):
    resnet_fused.freeze(model)
    logits(model, x)
    with torch.no_grad():
        a_weight(model).mul_(2)
    shape = str(list(a_weight(model).shape)).replace("[", r"\[")
    with pytest.raises(
        RuntimeError, match=rf"frozen weight of shape {shape} has changed: its version is \d+ and was .*unfreeze"
    ):
        logits(model, x)
    resnet_fused.unfreeze(model)
    changed = logits(model, x)
    assert torch.equal(logits(resnet_fused.freeze(model), x), changed)


def test_training_a_frozen_model_then_inferring_is_refused(model, x):
    resnet_fused.freeze(model)
    logits(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(x).sum().backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"resnet_fused.unfreeze\(model\)"):
        logits(model.eval(), x)
    resnet_fused.freeze(model)
    assert logits(model, x).isfinite().all()


def assign(model):
    block = next(m for m in model.modules() if isinstance(m, resnet_fused.FusedBasicBlock))
    block.conv2.weight = torch.nn.Parameter(block.conv2.weight.detach() * 1.5)
    return model


def set_data(model):
    a_weight(model).data = a_weight(model).data * 1.5
    return model


def load(model):
    model.load_state_dict({name: value * 1 for name, value in model.state_dict().items()})
    return model


ENDINGS = {
    "load_state_dict": load,
    "to": lambda model: model.double().float(),
    "revert": lambda model: resnet_fused.convert(resnet_fused.revert(model)),
    "assigned": assign,
    "data assigned": set_data,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("end", ENDINGS)
def test_replacing_weights_ends_the_freeze(model, x, end):
    resnet_fused.freeze(model)
    logits(model, x)
    model = ENDINGS[end](model)
    assert not is_frozen(model, x)


def test_other_weight_at_a_frozen_address_is_not_frozen():
    """This happens when a storage's memory is freed while the storage lives on, and a new weight gets the address."""
    memory = bytearray(64 * 64 * 3 * 3 * 4)

    def block():
        weight = torch.frombuffer(memory, dtype=torch.float32).view(64, 64, 3, 3)
        torch.nn.init.kaiming_normal_(weight)
        made = resnet_fused.FusedBasicBlock(64, 64).eval()
        made.conv1.weight = torch.nn.Parameter(weight)
        return made

    x = torch.randn(1, 64, 8, 8)
    frozen = resnet_fused.freeze(block())
    logits(frozen, x)
    other = block()
    first, second = frozen.conv1.weight, other.conv1.weight
    assert (first.data_ptr(), first._version) == (second.data_ptr(), second._version)
    eager = resnet_fused.revert(copy.deepcopy(other))
    torch.testing.assert_close(logits(other, x), logits(eager, x))


def test_data_views_of_frozen_weights_are_right(model, x):
    with torch.no_grad():
        a_weight(model).mul_(1.5)  # now the version of the Parameter exceeds that of its .data
    resnet_fused.freeze(model)
    want = logits(model, x)
    with torch.no_grad():
        views = {name: value.data for name, value in model.named_parameters()}
        assert torch.equal(torch.func.functional_call(model, views, (x,)), want)


def test_edits_of_swapped_out_memory_are_seen(model, x):
    resnet_fused.freeze(model)
    before = logits(model, x)
    weight = a_weight(model)
    backup = weight.data
    weight.data = torch.zeros_like(backup)
    assert not torch.equal(logits(model, x), before)
    backup.mul_(2)
    weight.data = backup
    torch.testing.assert_close(logits(model, x), logits(resnet_fused.revert(copy.deepcopy(model)), x))


def test_reused_address_is_not_frozen(x):
    """A freeze belongs to a storage, not to its address, even if no weight in it was ever packed."""
    addresses = set()
    for i in range(30):
        model = resnet_fused.convert(models.small_resnet(10).eval())
        resnet_fused.unfreeze(model) if i == 0 else None
        addresses.add(a_weight(model).data_ptr())
        assert not is_frozen(model, x)
        resnet_fused.freeze(model)
        if i % 2:
            logits(model, x)
        del model
        gc.collect()
    assert len(addresses) < 30, "no address came back: this tests nothing"


def test_a_frozen_model_is_saved_and_loaded(model, x):
    resnet_fused.freeze(model)
    want = logits(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(logits(loaded, x), want)
    assert not is_frozen(loaded, x)


def test_release_memory_leaves_a_model_frozen(model, x):
    resnet_fused.freeze(model)
    want = logits(model, x)
    ops.release_memory()
    assert torch.equal(logits(model, x), want)
    assert is_frozen(model, x) == packs()


def test_a_compiled_model_may_be_frozen(model, x):
    torch._dynamo.reset()  # forget what other tests compiled
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    want = logits(compiled, x)
    resnet_fused.freeze(model)
    assert torch.equal(logits(compiled, x), want)
    torch._dynamo.reset()


@pytest.mark.parametrize("function", [resnet_fused.freeze, resnet_fused.unfreeze])
def test_wrong_arguments_are_refused(function):
    with pytest.raises(
        TypeError, match=f"resnet_fused.{function.__name__} expects a torch.nn.Module, but got NoneType"
    ):
        function(None)
    with pytest.raises(ValueError, match=r"Sequential has no converted block; call resnet_fused.convert first"):
        function(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)))
