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
def planted(compiler, bug):
    """The kernels with the test's planted bug."""
    import cuda_on_cpu

    kernels = cuda_on_cpu.load_planted(bug.plant)
    yield kernels
    kernels.close()


SAMPLED = 8  # one in SAMPLED planted bugs is in the sample


def add_options(parser):
    parser.addoption(
        "--planted-bugs",
        default="all",
        metavar="all|none|sample,sm80,sm90,bn,pool,tile,primitives",
        help="which planted bugs run: all (default), none, a sample that the commit chooses, those of these folders",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "planted_bug: the emulator catches the bug that is planted (tests/planting.py)")


def pytest_report_header(config):
    if (which := config.getoption("planted_bugs")) != "all":
        more = f" (one of {SAMPLED}, by commit {commit()[:12]})" if "sample" in which else ""
        return f"planted bugs: {which}{more}; make proof runs all"
    return None


def pytest_collection_modifyitems(config, items):
    import planting

    which = config.getoption("planted_bugs")
    if which == "all":
        return
    left = {item for item, bug in planting.all_bugs(items).items() if not is_chosen(bug, which, item.nodeid)}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def is_chosen(bug, which, nodeid):
    sampled = hashlib.sha256(f"{commit()} {nodeid}".encode()).digest()[0] % SAMPLED == 0
    return bug.family in which.split(",") or ("sample" in which.split(",") and sampled)


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
    import planting

    items = [item for item in session.items if item.get_closest_marker("emulator")]
    fixtures = {name for item in items for name in item.fixturenames}
    libraries = set(known)
    if len({item.path for item in items}) > 1:
        if fixtures & {"kernels", "planted"}:
            libraries.update(map(cuda_on_cpu.build.library, cuda_on_cpu.libraries.LIBRARIES))
        libraries.update(cuda_on_cpu.build.library(name) for f, name in LIBRARIES.items() if f in fixtures)
    plants = [bug.plant for bug in planting.all_bugs(items).values()]
    cuda_on_cpu.prepare(sorted(libraries), plants)


#: Fixture -> library that it loads.
LIBRARIES = {"library": "op_layer", "host": "op_host", "primitives": "primitives", "checks": "checks"}
