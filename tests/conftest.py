"""Fixtures that every test may use."""

import ctypes
import gc
import os

import before_torch  # noqa: F401
import gpu_guard
import not_run
import pytest
import torch
import torchvision_shim
import verdicts
from cuda_cases import fixtures
from hypothesis import settings

from resnet_fused import ops

torchvision_shim.install()

# A kernel that is wrong shall fail its test, and not be replaced by eager PyTorch. CUDA reads it once a process.
os.environ.setdefault("RESNET_FUSED_CUDA_CHECK", "0")

# The same examples on every run: a red test is a change's doing. HYPOTHESIS_PROFILE=explore looks for new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

# Tests that are about threads set how many. A second one doubles or triples the CPU time of tensors this small, which
# another test needs; GPU tests compute large truths on the CPU.
THREADS = torch.get_num_threads() if torch.cuda.is_available() else 1
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))  # of the processes that tests start

DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else [])]


def pytest_addoption(parser):
    fixtures.add_options(parser)
    verdicts.add_options(parser)


def pytest_configure(config):
    for plugin in (gpu_guard, fixtures, not_run, verdicts):
        config.pluginmanager.register(plugin)


def pytest_collection_finish():
    """Freezes modules and tests, which live as long as the process, to speed up garbage collection."""
    gc.collect()
    gc.freeze()


# "": what the plan prefers, with all that the processor has
CPU_ENGINES = ["", "direct", "onednn", "composed"]
CPU_ISAS = ["", "avx512_bf16", "avx512", "avx2"]


def plans(engine, isa):
    """The plans of convolutions that distinguish the engines."""
    with pytest.MonkeyPatch.context() as environment:
        set_cpu(environment, engine, isa)
        calls = [(dtype, kernel) for dtype in ("float32", "bfloat16") for kernel in (1, 3)]
        return {(*call, plan_of_cpu(*call)) for call in calls}


def plan_of_cpu(dtype, kernel):
    shape = ([8, 64, 56, 56], [64, 64, kernel, kernel], [1, 1], [kernel // 2] * 2, [1, 1], 1)
    return ops.explain_cpu(*shape, dtype).partition(":")[0]


def set_cpu(monkeypatch, engine, isa):
    for variable, value in (("RESNET_FUSED_CPU_ENGINE", engine), ("RESNET_FUSED_CPU_ISA", isa)):
        if value:
            monkeypatch.setenv(variable, value)


def choices_of_cpu():
    """(engine, ISA) choices that together cover every distinct plan."""
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
    """Returns a file's freed memory to the system, which glibc would keep."""
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
    """Disables the CPU engines that the plan prefers to this one, or some of the processor's instructions."""
    set_cpu(monkeypatch, *request.param)
    return request.param[0]


@pytest.fixture
def no_amx(monkeypatch):
    """With AMX the plan leaves bfloat16 to oneDNN: for tests of our own kernels."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "avx512_bf16")
