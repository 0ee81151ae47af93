"""A pytest plugin: the emulated kernels and what is built from them. Without a compiler their tests are skipped."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def compiler():
    import cuda_on_cpu

    if reason := cuda_on_cpu.missing():
        pytest.skip(f"the kernel emulator needs a compiler: {reason}")


@pytest.fixture(scope="session")
def kernels(compiler):
    """All kernels of csrc/cuda."""
    import cuda_on_cpu

    return cuda_on_cpu.load()


@pytest.fixture(scope="session")
def library(compiler):
    """The op layer of csrc/cuda with emulated kernels."""
    from cuda_on_cpu import op_layer

    return op_layer.load()


@pytest.fixture(scope="session")
def host(compiler):
    """The op layer as compiled for a GPU's host, with launches that do nothing."""
    from cuda_on_cpu import op_layer

    return op_layer.load_host()


@pytest.fixture
def layer(library):
    """(GPU, RESNET_FUSED_CUDA_ENGINE, schedule) -> the ops as functions."""
    from cuda_on_cpu import op_layer

    from resnet_fused.cli._gpus import GPUS

    return lambda gpu="h200", engine="", schedule="stay": op_layer.Layer(library, GPUS[gpu], engine, schedule)


@pytest.fixture(scope="session")
def primitives(compiler):
    """The kernels of cuda_primitives, one for each instruction."""
    from cuda_primitives import emulator

    return emulator.load()


def pytest_configure(config):
    config.addinivalue_line("markers", "planted_bug: the emulator catches the bug that is planted (tests/planting.py)")


@pytest.fixture(scope="session")
def all_planted(request, compiler):
    """Compiles the kernels with the bugs of all selected tests at once."""
    import cuda_on_cpu
    import planting

    cuda_on_cpu.prepare([bug.plant for bug in planting.all_bugs(request.session.items).values()])


@pytest.fixture
def planted(all_planted, bug):
    """The kernels with the test's bug."""
    import cuda_on_cpu

    kernels = cuda_on_cpu.load_planted(bug.plant)
    yield kernels
    kernels.close()
