"""A pytest plugin that lists at the end what could not run here: each reason once, with a count."""

from __future__ import annotations

import collections

import pytest

_files = pytest.StashKey[dict[str, str]]()  # wholly skipped file -> reason


def pytest_configure(config):
    config.stash[_files] = {}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped:
        collector.config.stash[_files][report.nodeid] = reason_of(report)
    return report


def pytest_sessionfinish(session):
    """Sends skipped files to the main process; pytest-xdist only forwards skipped tests."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skipped_files"] = session.config.stash[_files]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[_files].update(getattr(node, "workeroutput", {}).get("skipped_files", {}))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    result = yield  # after everything else
    tests = [r for r in terminalreporter.stats.get("skipped", []) if isinstance(r, pytest.TestReport)]
    for line in lines(map(reason_of, tests), config.stash[_files].values()):
        terminalreporter.write_line(line)
    return result


def lines(tests, files):
    """Yields a line per reason for skipping tests, then per reason for skipping whole files, most frequent first."""
    found = [(count, "test", why) for why, count in collections.Counter(tests).items()]
    found += [(count, "file", why) for why, count in collections.Counter(files).items()]
    for count, what, why in sorted(found, key=lambda each: (each[1] == "file", -each[0], each[2])):
        yield f"could not run here: {count} {what}{'s' if count > 1 else ''}: {why}"


def reason_of(report):
    """Returns why a test or file was skipped, as one line."""
    _, _, why = report.longrepr
    return " ".join(why.removeprefix("Skipped: ").split())
