"""Weights that kernels keep in their own order are never stale, and the memory comes back."""

import pytest
import torch
from criterion import assert_close
from op_case import Case

from resnet_fused import ops


def stale_cases():
    def step(w):
        w.grad = torch.ones_like(w)
        torch.optim.SGD([w], lr=0.1).step()

    def set_data(w):
        w.data = w.data * 1.5

    def data_edit(w):
        w.data.mul_(1.5)  # passes the version counter by

    def in_place(w):
        with torch.no_grad():
            w[1, 2, 0, 0] += 3  # one element

    def copy(w):
        with torch.no_grad():
            w.copy_(w * 0.5)

    return [step, set_data, data_edit, in_place, copy]


@pytest.mark.parametrize("edit", stale_cases(), ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_edited_between_calls(engine, edit, dtype):
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1), dtype=dtype)
    case.weight = torch.nn.Parameter(case.weight)
    with torch.no_grad():
        case.check(keep_packed=True)
    edit(case.weight)
    with torch.no_grad():
        before = case.fused(keep_packed=True)
        assert_close(before, case.eager(), case.eager(torch.float64))
    ops.forget_packed([case.weight.detach()])


def test_batch_norm_edited_between_calls(engine):
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=True)
    for t in case.bn:
        t.data[3] *= 2
        case.check(keep_packed=True)
    ops.forget_packed([case.weight])


def test_an_address_that_comes_back():
    """Freed and allocated again at one address with one version: the kept copy holds the storage, so it cannot."""
    for _ in range(20):
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.weight[5, 5, 1, 1] = torch.rand(())
        case.check(keep_packed=True)
        ops.forget_packed([case.weight])


def test_weights_made_in_inference_mode(engine):
    with torch.inference_mode():
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.check(keep_packed=True)
        case.weight.mul_(2)
        case.check(keep_packed=True)
        ops.forget_packed([case.weight])


def test_forgetting_gives_the_memory_back(engine):
    before = ops.packed_bytes()
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=False)
    assert ops.packed_bytes() == before
    case.check(keep_packed=True)
    kept = ops.packed_bytes() - before
    assert (kept == 0) == (engine == "composed")
    case.check(keep_packed=True)
    assert ops.packed_bytes() - before == kept
    ops.forget_packed([case.weight])
    assert ops.packed_bytes() == before
