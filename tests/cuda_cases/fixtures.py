"""pytest plugin with fixtures for the emulated kernels. Without a compiler their tests are skipped."""

from __future__ import annotations

import functools
import hashlib
import subprocess
from pathlib import Path

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
    """The host-only op layer: optimised host code, launches that do nothing."""
    from cuda_on_cpu import op_layer

    return op_layer.load_host()


@pytest.fixture
def layer(library):
    """A function (GPU, RESNET_FUSED_CUDA_ENGINE, schedule) -> the ops as functions."""
    from cuda_on_cpu import op_layer

    from resnet_fused.cli._gpus import GPUS

    return lambda gpu="h200", engine="", schedule="stay": op_layer.Layer(library, GPUS[gpu], engine, schedule)


@pytest.fixture(scope="session")
def primitives(compiler):
    """The kernels of cuda_primitives, one per instruction."""
    from cuda_primitives import emulator

    return emulator.load()


@pytest.fixture
def mutant(compiler, mutation):
    """The kernels with the test's mutation."""
    import cuda_on_cpu

    kernels = cuda_on_cpu.load_mutant(mutation.patch)
    yield kernels
    kernels.close()


SAMPLED = 8  # one in SAMPLED mutations is in the sample


def add_options(parser):
    parser.addoption(
        "--mutations",
        default="all",
        metavar="all|none|sample,sm80,sm90,bn,pool,tile,primitives",
        help="which mutations run: all (default), none, a sample that the commit chooses, those of these folders",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "mutation: the emulator catches this edit of a kernel (tests/mutation.py)")


def pytest_report_header(config):
    if (which := config.getoption("mutations")) != "all":
        more = f" (one of {SAMPLED}, by commit {commit()[:12]})" if "sample" in which else ""
        return f"mutations: {which}{more}; make proof runs all"
    return None


def pytest_collection_modifyitems(config, items):
    import mutation

    which = config.getoption("mutations")
    if which == "all":
        return
    left = {item for item, each in mutation.all_mutations(items).items() if not is_chosen(each, which, item.nodeid)}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def is_chosen(mutation, which, nodeid):
    sampled = hashlib.sha256(f"{commit()} {nodeid}".encode()).digest()[0] % SAMPLED == 0
    return mutation.family in which.split(",") or ("sample" in which.split(",") and sampled)


@functools.cache
def commit():
    """The hash of HEAD, or "none" without git."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip() or "none"


def prepare(session, known):
    """Compiles what the selected emulator tests need in one run: ``known`` libraries and those that fixtures load.

    If all tests are in one file, libraries of fixtures are not compiled in advance but when loaded.
    """
    import cuda_on_cpu
    import mutation

    items = [item for item in session.items if item.get_closest_marker("emulator")]
    fixtures = {name for item in items for name in item.fixturenames}
    libraries = set(known)
    if len({item.path for item in items}) > 1:
        if fixtures & {"kernels", "mutant"}:
            libraries.update(map(cuda_on_cpu.build.library, cuda_on_cpu.libraries.LIBRARIES))
        libraries.update(cuda_on_cpu.build.library(name) for f, name in LIBRARIES.items() if f in fixtures)
    patches = [each.patch for each in mutation.all_mutations(items).values()]
    cuda_on_cpu.prepare(sorted(libraries), patches)


#: Fixture -> library that it loads.
LIBRARIES = {"library": "op_layer", "host": "op_host", "primitives": "primitives", "checks": "checks"}
