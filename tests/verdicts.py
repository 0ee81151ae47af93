"""A pytest plugin: a test of emulated kernels that has passed is not run again while nothing that it rests on changes.

It rests on the libraries whose functions it called, byte for byte, on the emulator, on torch, on the package, on its
file, and on what tests/ has beside test files. A verdict is a file of ``build/verdicts``; ``RESNET_FUSED_VERDICTS=0``
runs every test. What is not run is reported as "unchanged": neither as passed nor as skipped.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from cuda_cases import fixtures

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
VERDICTS = ROOT / "build" / "verdicts"
_unchanged, _failure = pytest.StashKey[bool](), pytest.StashKey[str | None]()
# Of fixtures that outlive a test: the libraries that they used.
_of_fixture: dict[str, set[Path]] = {}


def pytest_configure(config):
    config.addinivalue_line("markers", "emulator: a test of CUDA kernels on the CPU (docs/kernels/emulator.md)")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
    for item in items:
        if "compiler" in getattr(item, "fixturenames", ()):  # which all fixtures of the emulator ask for
            item.add_marker(pytest.mark.emulator)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("emulator") is None or _cuda_on_cpu().missing():
        return
    _prepare(item.session)
    verdict = _read(item)
    asked = verdict and os.environ.get("RESNET_FUSED_VERDICTS") != "0"
    if asked and verdict["digest"] == _digest(item, _libraries(item)):
        item.stash[_unchanged] = True
        pytest.skip("unchanged since it passed")
    _cuda_on_cpu().used.clear()


def _prepare(session):
    """Once a session, before its first test of the emulator. Where that fails, all of them do."""
    if _failure not in session.stash:
        session.stash[_failure] = None
        try:
            known = {p for item in session.items if item.get_closest_marker("emulator") for p in _libraries(item)}
            fixtures.prepare(session, {p for p in known if p == _cuda_on_cpu().build.library(p.stem)})
        except RuntimeError as error:
            session.stash[_failure] = str(error)
    if session.stash[_failure]:
        pytest.fail(session.stash[_failure], pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    if fixturedef.scope == "function" or "cuda_on_cpu" not in sys.modules:
        return (yield)
    used = _cuda_on_cpu().used
    before, _ = set(used), used.clear()
    try:
        return (yield)
    finally:
        _of_fixture[fixturedef.argname] = set(used)
        used |= before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if _unchanged in item.stash and report.when == "setup":
        report.user_properties.append(("unchanged", "1"))
    elif report.when == "call" and report.passed and item.get_closest_marker("emulator") is not None:
        _record(item)
    return report


def pytest_report_teststatus(report):
    if report.when == "setup" and ("unchanged", "1") in report.user_properties:
        return "unchanged", "u", "UNCHANGED"
    return None


def pytest_terminal_summary(terminalreporter):
    if count := len(terminalreporter.stats.get("unchanged", ())):
        terminalreporter.write_line(
            f"{count} tests of emulated kernels passed before with the same libraries and Python, and were not run; "
            "RESNET_FUSED_VERDICTS=0 runs them"
        )


def _record(item: pytest.Item) -> None:
    libraries = set(_cuda_on_cpu().used).union(*(_of_fixture.get(name, ()) for name in item.fixturenames))
    if libraries:  # without one it is not known what the test rests on
        VERDICTS.mkdir(parents=True, exist_ok=True)
        passed = {"libraries": sorted(map(str, libraries)), "digest": _digest(item, libraries)}
        temporary = _file(item).with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(passed))
        temporary.replace(_file(item))


def _libraries(item: pytest.Item) -> list[Path]:
    """What the test called when it passed."""
    return [Path(p) for p in _read(item).get("libraries", ())]


def _read(item: pytest.Item) -> dict:
    return json.loads(_file(item).read_text()) if _file(item).exists() else {}


def _file(item: pytest.Item) -> Path:
    return VERDICTS / hashlib.sha256(item.nodeid.encode()).hexdigest()[:24]


def _digest(item: pytest.Item, libraries: Iterable[Path]) -> str:
    """Of all that the test rests on."""
    digest = hashlib.sha256(_digest_of_environment().encode())
    for path in sorted({item.path, *libraries, _cuda_on_cpu().build.EMULATOR}):
        known = _digest_of_file(path, path.stat().st_mtime_ns) if path.exists() else "absent"
        digest.update(f"{path.relative_to(ROOT)} {known}".encode())
    return digest.hexdigest()


@functools.cache
def _digest_of_file(path: Path, mtime: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _digest_of_environment() -> str:
    package = ROOT / "resnet_fused"
    files = [p for p in sorted(TESTS.rglob("*.py")) if not p.name.startswith("test_")]
    files += [p for p in sorted((TESTS / "golden").rglob("*")) if p.is_file()]
    files += [*sorted(package.rglob("*.py")), *sorted(package.glob("_C.*.so"))]
    digest = hashlib.sha256(f"{sys.version} {torch.__version__} {torch.backends.cpu.get_cpu_capability()}".encode())
    for path in files:
        digest.update(f"{path.relative_to(ROOT)} {_digest_of_file(path, path.stat().st_mtime_ns)}".encode())
    return digest.hexdigest()


def _cuda_on_cpu():
    import cuda_on_cpu

    return cuda_on_cpu
