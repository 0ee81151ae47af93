"""A whole network in a CUDA graph on a GPU: captured once, then replayed with new inputs."""

from __future__ import annotations

import copy
import functools
import os
import weakref

import pytest
import torch
from criterion import assert_close
from gpu_case import by_kind, less_exact
from support import randomise, run_python

from benchmarks import gpu
from resnet_fused import convert, models

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

pytestmark = pytest.mark.gpu
LAST = torch.channels_last


def captured(model, x):
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
    return graph, y


@by_kind
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_resnet18_replays_with_a_new_input(dtype, tf32, batch):
    """A replay is bit-identical to a call outside a graph: no kernel uses atomics, and overlap keeps their order."""
    torch.backends.cudnn.allow_tf32 = tf32
    model = randomise(models.resnet18()).eval().cuda().to(dtype).to(memory_format=LAST)
    double = copy.deepcopy(model).double()
    eager = copy.deepcopy(model)
    convert(model)
    x = torch.randn(batch, 3, 224, 224, device="cuda").to(dtype).contiguous(memory_format=LAST)
    graph, y = captured(model, x)
    for _ in range(5):
        new = torch.randn_like(x)
        x.copy_(new)
        graph.replay()
        got = y.clone()
        assert torch.equal(got, model(new))
        expected, truth = eager(new), double(new.double())
        if tf32:
            expected = less_exact(expected, truth, lambda new=new: double(new.double()))
        assert_close(got, expected, truth)


@pytest.mark.skipif(os.environ.get("RESNET_FUSED_CUDA_OVERLAP") == "0", reason="this is the run without")
def test_replay_without_overlap():
    """RESNET_FUSED_CUDA_OVERLAP=0 launches kernels without overlap. It is read once per process."""
    test = f"{__file__}::test_resnet18_replays_with_a_new_input"
    done = run_python("-m", "pytest", "-q", "-x", test, timeout=50, RESNET_FUSED_CUDA_OVERLAP="0")
    assert done.returncode == 0, done.stdout[-4000:]


def test_captured_benchmarks_keep_their_inputs_alive():
    x = torch.ones(1 << 20, device="cuda")
    alive = weakref.ref(x)
    replay, _ = gpu.captured(functools.partial(torch.neg, x))
    del x
    assert alive() is not None
    replay()
    torch.cuda.synchronize()
