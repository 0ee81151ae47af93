"""Fixtures that every test may use."""

import ctypes
import gc
import os

import before_torch  # noqa: F401
import gpu_guard
import not_run
import pytest
import thinning
import torch
import torchvision_shim
import verdicts
from cuda_cases import fixtures
from hypothesis import settings
from op_case import isa_of_kernels

from resnet_fused import ops
from resnet_fused.plans import read as read_plan

torchvision_shim.install()

# A wrong kernel must fail its test, not be replaced by eager PyTorch. The variable is read once per process.
os.environ.setdefault("RESNET_FUSED_CUDA_CHECK", "0")

# The same examples on every run, so that only a change can break a test. HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Tests of threading set their own number of threads. For tensors this small a second thread doubles or triples the CPU
# time, which other tests need. With a GPU all threads are used, because GPU tests compute large references on the CPU.
THREADS = torch.get_num_threads() if torch.cuda.is_available() else 1
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # for processes that tests start

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def pytest_addoption(parser):
    fixtures.add_options(parser)
    thinning.add_options(parser)
    verdicts.add_options(parser)


def pytest_configure(config):
    for plugin in (gpu_guard, fixtures, not_run, thinning, verdicts):
        config.pluginmanager.register(plugin)


def pytest_collection_finish():
    """Excludes modules and tests, which live as long as the process, from garbage collection to speed it up."""
    gc.collect()
    gc.freeze()


# "": the preferred plan with all instruction sets of the processor
CPU_ENGINES = ["", "direct", "onednn", "composed"]
CPU_ISAS = ["", "avx512_bf16", "avx512", "avx2"]


def plans(engine, isa):
    """Returns the plans of a few convolutions, chosen so that they distinguish the engines."""
    with pytest.MonkeyPatch.context() as environment:
        set_cpu(environment, engine, isa)
        calls = [(dtype, kernel) for dtype in ("float32", "bfloat16", "float16") for kernel in (1, 3)]
        return {(*call, plan_of_cpu(*call)) for call in calls}


def plan_of_cpu(dtype, kernel):
    shape = ([8, 64, 56, 56], [64, 64, kernel, kernel], [1, 1], [kernel // 2] * 2, [1, 1], 1)
    return read_plan(ops.explain_cpu(*shape, dtype)).summary


def set_cpu(monkeypatch, engine, isa):
    for variable, value in (("RESNET_FUSED_CPU_ENGINE", engine), ("RESNET_FUSED_CPU_ISA", isa)):
        if value:
            monkeypatch.setenv(variable, value)


def choices_of_cpu():
    """Returns (engine, ISA) choices that together cover every distinct plan."""
    seen, chosen = set(), []
    for isa in CPU_ISAS if not os.environ.get("RESNET_FUSED_CPU_ISA") else [""]:
        for engine in CPU_ENGINES:
            found = plans(engine, isa)
            if not found <= seen:
                chosen.append((engine, isa))
                seen |= found
    return chosen


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads():
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True, scope="module")
def _memory():
    """Returns freed memory to the system after each test file; glibc would keep it."""
    yield
    ops.release_memory()
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(autouse=True)
def _exact_cudnn(request):
    """On a GPU: torch uses float32 (not TF32) and deterministic algorithms unless a test says otherwise."""
    if request.node.get_closest_marker("gpu") is None:
        yield
        return
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, cudnn.deterministic = False, True
    yield
    cudnn.allow_tf32, cudnn.deterministic = before


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=choices_of_cpu(), ids=lambda choice: "-".join(filter(None, choice)) or "preferred")
def engine(request, monkeypatch):
    """Selects a CPU engine and an instruction set by disabling the preferred ones."""
    set_cpu(monkeypatch, *request.param)
    return request.param[0]


def isas_of_kernels():
    """Returns caps that together cover the instruction sets of our convolutions on this processor."""
    found = {}
    for isa in ("amx", "avx512_bf16", "avx512", "avx2"):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("RESNET_FUSED_CPU_ISA", isa)
            found.setdefault((isa_of_kernels(torch.float32), isa_of_kernels(torch.bfloat16)), isa)
    return list(found.values())


@pytest.fixture(params=isas_of_kernels())
def own_isa(request, monkeypatch):
    """Selects an instruction set of our own convolutions."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", request.param)
    return request.param


# With AMX no convolution of bfloat16 is Winograd's.
@pytest.fixture(params=[isa for isa in isas_of_kernels() if isa != "amx"] or [""])
def winograd_isa(request, monkeypatch):
    """Selects an instruction set of our Winograd kernels."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", request.param)
    return request.param
