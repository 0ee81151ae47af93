"""Host side of CUDA ops, without launches: nothing is allocated, planned or encoded twice.

No time is asserted; benchmarks/host_time.py measures it.
"""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu.host_calls import calls

from resnet_fused.cli._gpus import GPUS

OPS = ["conv_bn_act", "bn_relu_conv_bn_act", "conv_bn_proj_act", "bn_add_act", "basic_block"]
ENGINES = ["sm80:64x64:1", "sm80:64x64:3", "sm90:128x128", "sm90:rows", "sm90:block"]


def arguments_of(args):
    """Counts what torch's boxing allocates: a control block for each tensor and a vector for each list."""
    return sum(isinstance(a, torch.Tensor | list) for a in args)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPS)
@torch.no_grad()
def test_only_outputs_are_allocated(host, name, engine):
    host.set_device(*GPUS["h200"])
    host.set_engine(engine)
    op, args = calls(channels=64, size=8)[name]
    op(*args)  # makes plans, tensor maps and whatever else is made once
    before = host.allocations()
    op(*args)
    convolutions = 2 if name == "basic_block" and not engine.startswith(("sm90:rows", "sm90:block")) else 1
    partials = engine == "sm80:64x64:3" and name != "bn_add_act"
    outputs = convolutions * (1 + partials)  # two launches store the activation between them
    most = 2 * convolutions if engine.startswith("sm90") else outputs  # stream-K tiles also have partial sums
    assert outputs <= host.allocations() - before - arguments_of(args) <= most


@torch.no_grad()
def test_allocation_count_includes_weight_copies(host):
    """A weight that is not channels_last is copied through torch's dispatcher on every call."""
    host.set_device(*GPUS["h200"])
    host.set_engine("sm80:64x64:1")
    op, args = calls(channels=64, size=8)["conv_bn_act"]
    args = [args[0], args[1].contiguous(), *args[2:]]
    op(*args)
    before = host.allocations()
    op(*args)
    assert host.allocations() - before > arguments_of(args) + 1


@torch.no_grad()
def test_tensor_maps_are_cached_by_address_and_shape(host):
    host.set_device(*GPUS["h200"])
    host.set_engine("sm90:128x128")
    op, args = calls(channels=64, size=10)["conv_bn_act"]  # no other test uses this size, so no maps are cached
    outputs = {op(*args).data_ptr() for _ in range(2)}
    made = host.tensor_maps_made()
    for _ in range(3):
        out = op(*args)
        outputs.add(out.data_ptr())
        del out
    if len(outputs) == 1:  # the allocator reused the memory
        assert host.tensor_maps_made() == made
    others = [args[0].clone(memory_format=torch.channels_last) for _ in range(len(outputs) + 1)]
    other = next(tensor for tensor in others if tensor.data_ptr() not in outputs)
    kept = [op(other, *args[1:]), op(*args)]
    assert host.tensor_maps_made() > made
    made = host.tensor_maps_made()
    narrow = other[:, :, :, :4].contiguous(memory_format=torch.channels_last)
    kept.append(op(narrow, *args[1:12], narrow, *args[13:]))
    assert host.tensor_maps_made() >= made + 3  # x, the residual and the output; the weight's is cached


def test_concurrent_cache_lookups_are_correct(host):
    wrong, made = host.stress_cache(4, 200, 20_000)  # the cache has 32 entries
    assert wrong == 0
    assert made > 200, "more keys than entries: some are made again"
    wrong, made = host.stress_cache(1, 4, 1000)
    assert (wrong, made <= 4) == (0, True)


@pytest.mark.parametrize(
    ("ptx", "binary", "overlaps"),
    [(90, 90, True), (100, 100, True), (80, 90, False), (80, 120, False), (80, 80, False), (89, 89, False)],
)
def test_only_code_with_griddepcontrol_overlaps(host, ptx, binary, overlaps):
    """PTX for 8.0 that the driver compiles for a 9.0 GPU has no griddepcontrol, so an early launch would race."""
    assert host.overlapping_launches(ptx, binary, [0]) == ([overlaps], 1)
    assert host.overlapping_launches(ptx, binary, [0, 0, 3, 0, 3]) == ([overlaps] * 5, 2), "once for each device"
    assert host.overlapping_launches(ptx, binary, [64, 64]) == ([overlaps] * 2, 2), "devices beyond those remembered"
