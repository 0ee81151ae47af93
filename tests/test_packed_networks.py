"""Packed weights of whole networks: correct after any edit, and freed with their weights."""

import copy
import gc

import pytest
import torch
from criterion import assert_close
from torch import nn
from training import eager_twin

import resnet_fused
from resnet_fused import models, ops, plans


@pytest.fixture
def model():
    torch.manual_seed(1)
    return resnet_fused.convert(models.small_resnet(10).eval())


@pytest.fixture
def x():
    return torch.randn(2, 3, 32, 32)


def kept():
    gc.collect()
    return ops.packed_bytes()


def logits(model, x):
    with torch.no_grad():
        return model(x)


def check(model, x):
    twin = eager_twin(model)
    assert_close(logits(model, x), logits(twin, x), logits(twin.double(), x.double()))


def convs(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d)]


def test_edits_through_data_are_seen_in_every_layer(model, x):
    for conv in convs(model):
        before = logits(model, x)
        conv.weight.data[conv.out_channels // 3] *= -3
        assert not torch.equal(logits(model, x), before)
        check(model, x)


def test_functional_calls_with_fresh_weights_cache_nothing(model, x):
    logits(model, x)
    before = kept()
    for i in range(10):
        fresh = {name: value * (1 + i / 20) for name, value in model.state_dict().items()}
        with torch.no_grad():
            found = torch.func.functional_call(model, fresh, (x,))
        twin = eager_twin(model)
        twin.load_state_dict(fresh)
        assert_close(found, logits(twin, x), logits(twin.double(), x.double()))
        del fresh
        assert kept() == before


def set_data(model):
    for conv in convs(model):
        conv.weight.data = conv.weight.data * 1.5


def set_parameters(model):
    for conv in convs(model):
        conv.weight = nn.Parameter(conv.weight.detach() * 1.5)


def set_modules(model):
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and "." in name:
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, copy.deepcopy(module))


def swap_tensors(model):
    for conv in convs(model):
        torch.utils.swap_tensors(conv.weight, nn.Parameter(conv.weight.detach() * 1.5))


@pytest.mark.parametrize("exchange", [set_data, set_parameters, set_modules, swap_tensors], ids=lambda f: f.__name__)
def test_replaced_weights_leave_nothing_packed(model, x, exchange):
    logits(model, x)
    before = kept()
    for _ in range(3):
        exchange(model)
        check(model, x)
    assert kept() == before


def test_ema_weights_swapped_through_data_are_right(model, x):
    """An EMA swaps weights for evaluation: both sets are alive, and both may be packed."""
    averaged = {name: p.detach() * 0.5 for name, p in model.named_parameters()}
    logits(model, x)
    before = kept()
    for _ in range(4):
        for name, p in model.named_parameters():
            p.data, averaged[name] = averaged[name], p.data
        check(model, x)
    assert kept() <= 2 * before
    del averaged
    assert kept() == before


def test_exported_program_frees_its_packed_weights(model, x):
    before = kept()
    with torch.no_grad():
        program = torch.export.export(copy.deepcopy(model), (x,)).module()
        program(x)
    plan = plans.read(ops.explain_cpu([2, 16, 32, 32], [16, 16, 3, 3], [1, 1], [1, 1], [1, 1], 1, "float32"))
    assert (kept() > before) == (plan.kernel != "composed")
    del program
    assert kept() == before


def test_refilled_storages_are_packed_again(x):
    """FSDP frees and refills storages between two forwards."""
    everything = kept()
    model = resnet_fused.convert(models.small_resnet(10).eval())
    want = logits(model, x)
    for _ in range(3):
        saved = [(conv.weight, conv.weight.detach().clone()) for conv in convs(model)]
        for weight, _ in saved:
            weight.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match="its storage has 0"):
            logits(model, x)
        for weight, values in saved:
            weight.untyped_storage().resize_(values.untyped_storage().nbytes())
            weight.data.copy_(values)
        assert torch.equal(logits(model, x), want)
    del saved, weight, values, model
    assert kept() == everything
