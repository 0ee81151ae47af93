"""Packed weights are never stale, and their memory is freed."""

import concurrent.futures
import ctypes
import gc
import os
import weakref

import pytest
import torch
from criterion import assert_close
from op_case import Case

from resnet_fused import functional, ops


@pytest.fixture(autouse=True, scope="module")
def _quick_collections():
    """Excludes what earlier files left from this file's garbage collections, which would take 0.3 s each."""
    gc.collect()
    gc.freeze()


def case_of(kind, dtype=torch.float32):
    kernel, padding = (1, 0) if kind == "1x1" else (3, 1)
    case = Case(1, 32, 16, 16, 32, kernel, kernel, (1, 1), (padding, padding), (1, 1), dtype=dtype)
    if kind == "dirac":  # almost all zeros, so a digest of a few elements would miss edits
        torch.nn.init.dirac_(case.weight)
    case.weight = torch.nn.Parameter(case.weight)
    return case


# What to edit: each function returns a mask of the weight's elements and their new values.
def one_element(w):
    mask = torch.zeros_like(w, dtype=torch.bool)
    mask[17, 17, -1, -1] = True
    return mask, w + 3


def one_filter(w):
    mask = torch.zeros_like(w, dtype=torch.bool)
    mask[13] = True
    return mask, w * -3 + 0.5


def two_filters_exchanged(w):
    mask = torch.zeros_like(w, dtype=torch.bool)
    mask[[3, 21]] = True
    new = w.clone()
    new[[3, 21]] = w[[21, 3]]
    return mask, new


def everything(w):
    return torch.ones_like(w, dtype=torch.bool), w * 1.5 + 0.25


# How to edit it: with and without a new version, with torch and without.
def in_place(w, mask, new):
    with torch.no_grad():
        w[mask] = new[mask]


def data(w, mask, new):
    w.data[mask] = new[mask]


def data_assigned(w, mask, new):
    w.data = torch.where(mask, new, w.data)


def numpy_view(w, mask, new):
    # numpy has no bfloat16
    view, values = (t.detach().view(torch.int16 if t.dtype is torch.bfloat16 else t.dtype) for t in (w, new))
    view.numpy()[mask.numpy()] = values.numpy()[mask.numpy()]


def dlpack_view(w, mask, new):
    torch.from_dlpack(w.detach())[mask] = new[mask]


def storage_copied(w, mask, new):
    w.untyped_storage().copy_(torch.where(mask, new, w.detach()).untyped_storage())


def inference_mode(w, mask, new):
    with torch.inference_mode():
        w.data[mask] = new[mask]


def another_process(w, mask, new):
    w.data.share_memory_()  # moves the weight to shared memory
    values = torch.where(mask, new, w.detach())
    child = os.fork()
    if not child:  # the child has no torch threads, so it must not call an op
        ctypes.memmove(w.data_ptr(), values.data_ptr(), values.untyped_storage().nbytes())
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def sgd(w, mask, new):
    w.grad = torch.where(mask, w.detach() - new, 0)
    torch.optim.SGD([w], lr=1.0).step()


def fused_adamw(w, mask, _new):
    w.grad = mask.to(w.dtype)
    torch.optim.AdamW([w], lr=0.1, weight_decay=0.0, fused=True).step()


def vector_to_parameters(w, mask, new):
    torch.nn.utils.vector_to_parameters(torch.where(mask, new, w.detach()).flatten(), [w])


WAYS = [in_place, data, data_assigned, numpy_view, dlpack_view, storage_copied, inference_mode, another_process]
WAYS += [sgd, fused_adamw, vector_to_parameters]


@pytest.mark.thinned(3)
@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("edit", [one_element, one_filter, two_filters_exchanged, everything], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["3x3", "dirac", "1x1"])
def test_every_edit_is_seen(engine, kind, edit, way):
    case = case_of(kind)
    with torch.no_grad():
        before, _ = case.check(keep_packed=True)
    way(case.weight, *edit(case.weight.detach()))
    with torch.no_grad():
        after, _ = case.check(keep_packed=True)
    assert not torch.equal(before, after), "the edit changes nothing"


@pytest.mark.parametrize("way", WAYS, ids=lambda f: f.__name__)
def test_every_edit_of_a_bfloat16_weight_is_seen(engine, way):
    case = case_of("3x3", torch.bfloat16)
    with torch.no_grad():
        before, _ = case.check(keep_packed=True)
    way(case.weight, *one_filter(case.weight.detach()))
    with torch.no_grad():
        after, _ = case.check(keep_packed=True)
    assert not torch.equal(before, after)


def test_batch_norm_edited_between_calls(engine):
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=True)
    for t in case.bn:
        t.data[3] *= 2
        case.check(keep_packed=True)


def test_reused_address_is_packed_again(engine):
    addresses = set()
    for _ in range(50):
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.check(keep_packed=True)
        addresses.add(case.weight.data_ptr())
        for _ in range(4):
            case.weight.data = torch.randn_like(case.weight) * 0.05
            addresses.add(case.weight.data_ptr())
            case.check(keep_packed=True)
    assert len(addresses) < 250, "no address came back: this tests nothing"


def test_weights_made_in_inference_mode(engine):
    with torch.inference_mode():
        case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
        case.check(keep_packed=True)
        case.weight.mul_(2)
        case.check(keep_packed=True)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_weight_inside_a_larger_storage(engine, step):
    """The weight is every ``step``-th input channel of a larger tensor.

    At step 3 most elements of the storage are not the weight's, and no packed copy is kept.
    """
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    around = torch.randn(32, 32 * step, 3, 3)
    case.weight = around[:, ::step]
    before = kept_bytes()
    first, _ = case.check(keep_packed=True)
    assert (ops.packed_bytes() == before) == (step == 3 or engine == "composed")
    around[5] += 1
    assert not torch.equal(first, case.check(keep_packed=True)[0])


def kept_bytes():
    gc.collect()
    return ops.packed_bytes()


def test_forget_packed_frees_its_memory(engine):
    before = kept_bytes()
    case = Case(1, 32, 16, 16, 32, 3, 3, (1, 1), (1, 1), (1, 1))
    case.check(keep_packed=False)
    assert ops.packed_bytes() == before
    case.check(keep_packed=True)
    packed = ops.packed_bytes() - before
    assert (packed == 0) == (engine == "composed")
    case.check(keep_packed=True)
    assert ops.packed_bytes() - before == packed
    ops.forget_packed([case.weight])
    assert ops.packed_bytes() == before


def call(weight, size=16):
    padding = weight.shape[2] // 2
    with torch.no_grad():
        return functional.conv_bn_act(
            torch.ones(1, weight.shape[1], size, size), weight, padding=padding, keep_packed=True
        )


def test_packed_copy_dies_with_its_weight():
    before = kept_bytes()
    weight = torch.nn.Parameter(torch.randn(32, 32, 3, 3))
    view = weight.detach()[:]
    call(weight)
    one = ops.packed_bytes()
    assert one > before
    for _ in range(10):  # each new storage frees the copy of the previous one
        weight.data = torch.randn_like(weight)
        call(weight)
    assert ops.packed_bytes() == 2 * one - before, "view keeps the first storage, weight the last"
    del view
    assert kept_bytes() == one
    loss = torch.nn.functional.conv2d(torch.ones(1, 32, 8, 8), weight).sum()
    del weight
    assert kept_bytes() == one, "the graph keeps the weight"
    del loss
    assert kept_bytes() == before


def test_packed_copy_keeps_no_weight_alive():
    weight = torch.randn(32, 32, 3, 3)
    alive = weakref.ref(weight)
    call(weight)
    del weight
    gc.collect()
    assert alive() is None


def test_release_memory_returns_packed_weights():
    weight = torch.randn(32, 32, 3, 3)
    call(weight)
    kept = ops.packed_bytes()
    ops.release_pool()
    assert ops.packed_bytes() == kept > 0
    ops.release_memory()
    assert ops.packed_bytes() == 0
    call(weight)
    assert ops.packed_bytes() == kept


def test_limit_drops_the_least_recently_used(monkeypatch):
    ops.release_memory()
    weights = [torch.randn(256, 256, 3, 3) for _ in range(3)]  # 2.25 MiB each, slightly more when packed
    call(weights[0])
    one = ops.packed_bytes()
    monkeypatch.setenv("RESNET_FUSED_CPU_PACKED_MB", str(2 * one / 2**20 + 1).split(".")[0])
    call(weights[1])
    assert ops.packed_bytes() == 2 * one
    call(weights[0])
    call(weights[2])  # evicts weights[1]
    assert ops.packed_bytes() == 2 * one
    ops.forget_packed([weights[1]])
    assert ops.packed_bytes() == 2 * one
    ops.forget_packed([weights[0]])
    assert ops.packed_bytes() == one
    monkeypatch.setenv("RESNET_FUSED_CPU_PACKED_MB", "0")
    call(weights[0])
    assert ops.packed_bytes() == one, "what is larger than the limit is not kept, and drops nothing"


def test_many_image_sizes_keep_few_copies():
    weight = torch.randn(32, 32, 3, 3)
    before = kept_bytes()
    call(weight, 8)
    one = ops.packed_bytes() - before
    for size in (*range(8, 24), *range(8, 24)):
        torch.testing.assert_close(
            call(weight, size), torch.conv2d(torch.ones(1, 32, size, size), weight, padding=1).relu()
        )
    assert ops.packed_bytes() - before <= 4 * one + 32 * 32 * 16 * 4  # Winograd's copies are larger than the first


@pytest.mark.parametrize("value", ["garbage", "-1", "1.5", "12 MiB", "9" * 30])
def test_bad_memory_limit_is_refused(monkeypatch, value):
    monkeypatch.setenv("RESNET_FUSED_CPU_PACKED_MB", value)
    with pytest.raises(RuntimeError, match=f"RESNET_FUSED_CPU_PACKED_MB is {value}; a whole number of MiB"):
        call(torch.randn(32, 32, 3, 3))


def test_swapped_tensors():
    weight, other = (torch.nn.Parameter(torch.randn(32, 32, 3, 3)) for _ in range(2))
    first, second = call(weight), call(other)
    torch.utils.swap_tensors(weight, other)
    assert torch.equal(call(weight), second)
    assert torch.equal(call(other), first)


def test_refilled_storage_is_packed_again():
    """FSDP does this. While the storage is empty, eager raises RuntimeError too."""
    weight = torch.randn(32, 32, 3, 3)
    values = weight.clone()
    before = call(weight)
    storage = weight.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)
    with pytest.raises(RuntimeError, match=f"needs {size} bytes but its storage has 0"):
        call(weight)
    ops.forget_packed([weight])
    storage.resize_(size)
    weight.copy_(values * 2)
    torch.testing.assert_close(call(weight), 2 * before)


class CallsBack:
    """Runs a convolution when it is destroyed."""

    def __init__(self, weight):
        self.weight = weight

    def __del__(self):
        call(self.weight)


def test_weight_destructor_may_call_an_op():
    """Hangs if a lock is held while copies are destroyed or torch is called."""
    other = torch.randn(32, 32, 3, 3)
    for _ in range(20):
        weight = torch.randn(32, 32, 3, 3)
        weight.owner = CallsBack(other)
        weakref.finalize(weight.untyped_storage(), call, other).atexit = False
        call(weight)
        del weight
    ops.release_memory()


def test_threads_pack_and_forget_concurrently():
    weights = [torch.randn(32, 32, 3, 3) for _ in range(4)]
    wanted = [call(w) for w in weights]

    def work(seed):
        for i in range(50):
            k = (seed + i) % 4
            if (seed + i) % 7 == 0:
                ops.forget_packed([weights[k]])
            if (seed + i) % 13 == 0:
                ops.release_memory()
            torch.testing.assert_close(call(weights[k]), wanted[k])
            call(weights[k].clone())

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))


def test_the_criterion_sees_a_stale_filter():
    case = case_of("3x3")
    with torch.no_grad():
        stale = case.fused()
        case.weight[13] *= -3
        with pytest.raises(AssertionError):
            assert_close(stale, case.eager(), case.eager(torch.float64))
