"""A pytest plugin that does not rerun a test that passed if nothing it depends on has changed since.

A test of emulated kernels depends on the libraries that it called (byte for byte) and on the files that any test may
use (USED). Any other test depends on the whole checkout except other test files, and on the built libraries; so does a
test of emulated kernels if its file mentions sources. Every test also depends on installed packages, the processor and
environment variables. Their state at the start of the session counts, because that is what Python has imported.
Verdicts are files in ``build/verdicts``. A verdict is written only if nothing has changed since the start, and any
failure removes it. Only ``--verdicts``, which `make test` passes, reads and writes verdicts. A test that is not rerun
is reported as "unchanged", neither passed nor skipped.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cuda_cases import fixtures

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
VERDICTS = ROOT / "build" / "verdicts"
#: Matches the text of an emulator's test file if its tests may also read sources or documents.
SOURCES = r"csrc|_C_cuda|\bsass\b|build_tools|cuda_primitives|stand_in|ROOT|README|docs/|subprocess"
#: Matches it if the tests read other tests.
OTHER_TESTS = r"glob\(\"test_"
#: The parts of the checkout that any test may use.
USED = ("resnet_fused", "tests", "examples", "benchmarks", "pyproject.toml")
#: Prefixes of environment variables that change what tests do.
OURS = ("RESNET_FUSED_", "OMP_NUM", "CUDA_HOME", "TORCH_CUDA", "CI", "CC", "CXX", "PATH")
SECONDS_BETWEEN_CHECKS = 30.0  # between checks that nothing has changed; passed tests are then written

_unchanged, _failure = pytest.StashKey[bool](), pytest.StashKey[str | None]()
_digest, _passed = pytest.StashKey[str](), pytest.StashKey[bool]()
_keeper = pytest.StashKey["_Keeper"]()
# The libraries used by fixtures that outlive a test.
_of_fixture: dict[str, dict[Path, str]] = {}


def add_options(parser):
    parser.addoption(
        "--verdicts", action="store_true", help="do not run again what has passed with --verdicts and not changed"
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "emulator: a test of CUDA kernels on the CPU (docs/kernels/emulator.md)")
    explores = os.environ.get("HYPOTHESIS_PROFILE", "fixed") != "fixed"  # draws new examples in every run
    if config.getoption("verdicts") and not explores:
        config.stash[_keeper] = _Keeper()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if "compiler" in getattr(item, "fixturenames", ()):  # every fixture of the emulator requests it
            item.add_marker(pytest.mark.emulator)
        if keeper := item.config.stash.get(_keeper, None):
            item.stash[_digest] = keeper.digest(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") or (_is_emulated(item) and _cuda_on_cpu().missing()):
        return
    if _is_emulated(item):
        _prepare(item.session)
    verdict = _read(item) if _digest in item.stash else {}
    if verdict and verdict["digest"] == item.stash[_digest] and _are_current(verdict["libraries"]):
        item.stash[_unchanged] = True
        pytest.skip("unchanged since it passed")
    if _is_emulated(item):
        _cuda_on_cpu().used.clear()


def _prepare(session):
    """Builds once per session, before the first test of the emulator. If the build fails, all of them fail."""
    if _failure not in session.stash:
        session.stash[_failure] = None
        try:
            known = {p for item in session.items if _is_emulated(item) for p in _libraries(item)}
            fixtures.prepare(session, known & {_cuda_on_cpu().build.library(n) for n in _cuda_on_cpu().LIBRARIES})
        except Exception as error:  # a compiler error, or a mutation that no longer applies
            session.stash[_failure] = f"{type(error).__name__}: {error}"
    if session.stash[_failure]:
        pytest.fail(session.stash[_failure], pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.scope == "function" or "cuda_on_cpu" not in sys.modules:
        return (yield)
    used = _cuda_on_cpu().used
    before, _ = dict(used), used.clear()
    try:
        return (yield)
    finally:
        _of_fixture[fixturedef.argname] = dict(used)
        used.update(before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if _unchanged in item.stash and report.when == "setup":
        report.user_properties.append(("unchanged", "1"))
    if report.failed:
        _file(item).unlink(missing_ok=True)
    elif report.when == "call":
        item.stash[_passed] = report.passed
    elif (
        report.when == "teardown"
        and item.stash.get(_passed, False)
        and (keeper := item.config.stash.get(_keeper, None))
    ):
        keeper.keep(item)
    return report


def pytest_sessionfinish(session):
    if keeper := session.config.stash.get(_keeper, None):
        keeper.write()


def pytest_report_teststatus(report):
    if report.when == "setup" and ("unchanged", "1") in report.user_properties:
        return "unchanged", "u", "UNCHANGED"
    return None


def pytest_terminal_summary(terminalreporter):
    if count := len(terminalreporter.stats.get("unchanged", ())):
        terminalreporter.write_line(
            f"{count} tests passed before, nothing that they rest on has changed, and so they were not run; "
            "without --verdicts (make test VERDICTS=) they run"
        )


def _is_emulated(item: pytest.Item) -> bool:
    return item.get_closest_marker("emulator") is not None


class _Keeper:
    """State of one process: the dependencies at the start of the session, and what has passed since the last check."""

    def __init__(self) -> None:
        self.surroundings = _surroundings()
        self.begun = {with_sources: _digest_of_checkout(with_sources) for with_sources in (False, True)}
        self.test_files: dict[Path, str] = {}
        self.passed: dict[Path, str] = {}
        self.checked = time.monotonic()

    def digest(self, item: pytest.Item) -> str:
        """Returns the digest of everything that the test depends on, except kernel libraries."""
        reads = not _is_emulated(item) or _matches(item.path, SOURCES)
        files = sorted(TESTS.glob("test_*.py")) if _matches(item.path, OTHER_TESTS) else [item.path]
        self.test_files |= {p: _digest_of_files([p]) for p in files if p not in self.test_files}
        return " ".join([*(self.test_files[p] for p in files), self.begun[reads], self.surroundings])

    def keep(self, item: pytest.Item) -> None:
        libraries: dict[Path, str] = {}
        if _is_emulated(item):
            libraries.update(_cuda_on_cpu().used)
            for name in item.fixturenames:
                libraries.update(_of_fixture.get(name, {}))
            if not libraries:  # the dependencies of the test are unknown
                return
        elif item.get_closest_marker("gpu"):
            return
        known = {str(p): digest for p, digest in libraries.items()}
        self.passed[_file(item)] = json.dumps({"libraries": known, "digest": item.stash[_digest]})
        if time.monotonic() > self.checked + SECONDS_BETWEEN_CHECKS:
            self.write()

    def write(self) -> None:
        """Writes verdicts, but none if a file differs from what the passed tests imported."""
        same = all(_digest_of_checkout(with_sources) == digest for with_sources, digest in self.begun.items())
        if same and all(_digest_of_files([p]) == digest for p, digest in self.test_files.items()):
            VERDICTS.mkdir(parents=True, exist_ok=True)
            for file, text in self.passed.items():
                temporary = file.with_suffix(f".{os.getpid()}")
                temporary.write_text(text)
                temporary.replace(file)
        self.passed.clear()
        self.checked = time.monotonic()


def _libraries(item: pytest.Item) -> list[Path]:
    """Returns the libraries that the test called when it passed."""
    return [Path(p) for p in _read(item).get("libraries", ())]


def _read(item: pytest.Item) -> dict:
    return json.loads(_file(item).read_text()) if _file(item).exists() else {}


def _file(item: pytest.Item) -> Path:
    return VERDICTS / hashlib.sha256(item.nodeid.encode()).hexdigest()[:24]


def _are_current(libraries: dict[str, str]) -> bool:
    files = {Path(p): digest for p, digest in libraries.items()}
    return all(p.exists() and _digest_of_file(p, p.stat().st_mtime_ns) == digest for p, digest in files.items())


@functools.cache
def _matches(test: Path, pattern: str) -> bool:
    return re.search(pattern, test.read_text()) is not None


def _digest_of_files(files: Iterable[Path]) -> str:
    known = [(p, _digest_of_file(p, p.stat().st_mtime_ns) if p.is_file() else "absent") for p in files]
    return hashlib.sha256("".join(f"{p.relative_to(ROOT)} {d}\n" for p, d in known).encode()).hexdigest()


@functools.cache
def _digest_of_file(path: Path, mtime: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _digest_of_checkout(with_sources: bool) -> str:
    """Returns the digest of the files that all tests share."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        return str(time.time_ns())  # no repository: everything counts as changed
    files = {ROOT / name for name in listed.stdout.split("\0") if name}
    files = {p for p in files if not (p.parent == TESTS and p.name.startswith("test_"))}
    files = {p for p in files if with_sources or p.relative_to(ROOT).parts[0] in USED}
    package = ROOT / "resnet_fused"
    files |= {*package.glob("_C*.so"), package / "_build_info.py"} if with_sources else {*package.glob("_C.*.so")}
    return _digest_of_files(sorted(files))


def _surroundings() -> str:
    """Returns everything that verdicts depend on besides the checkout. Runs before any test can change it."""
    ours = {k: v for k, v in os.environ.items() if k.startswith(OURS)}
    named = [Path(v).read_bytes() for k, v in ours.items() if k.startswith("RESNET_FUSED_") and Path(v).is_file()]
    installed = sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions())
    compilers = [shutil.which(ours.get("CXX", "g++")), shutil.which("nvcc")]
    versions = [subprocess.run([c, "--version"], capture_output=True).stdout for c in compilers if c]
    processor = re.findall(r"^(?:flags|Features|model name)\s*:.*", Path("/proc/cpuinfo").read_text(), re.M)
    machine = [sys.version, torch.backends.cpu.get_cpu_capability(), torch.cuda.is_available(), *processor]
    return hashlib.sha256(repr([ours, named, installed, versions, machine]).encode()).hexdigest()


def _cuda_on_cpu():
    import cuda_on_cpu

    return cuda_on_cpu
