"""A pytest plugin: lists at the end what could not run here, each reason once with a count."""

from __future__ import annotations

import collections

import pytest

_files = pytest.StashKey[dict[str, str]]()  # skipped whole -> why


def pytest_configure(config):
    config.stash[_files] = {}


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if report.skipped:
        collector.config.stash[_files][report.nodeid] = reason_of(report)
    return report


def pytest_sessionfinish(session):
    """The processes of pytest-xdist send on what they skipped, but for whole files."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["skipped_files"] = session.config.stash[_files]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    node.config.stash[_files].update(getattr(node, "workeroutput", {}).get("skipped_files", {}))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    result = yield  # everything else comes before
    tests = [r for r in terminalreporter.stats.get("skipped", []) if isinstance(r, pytest.TestReport)]
    for line in lines(map(reason_of, tests), config.stash[_files].values()):
        terminalreporter.write_line(line)
    return result


def lines(tests, files):
    """Of the reasons for skipping tests and whole files, the most frequent first."""
    found = [(count, "test", why) for why, count in collections.Counter(tests).items()]
    found += [(count, "file", why) for why, count in collections.Counter(files).items()]
    for count, what, why in sorted(found, key=lambda each: (each[1] == "file", -each[0], each[2])):
        yield f"could not run here: {count} {what}{'s' if count > 1 else ''}: {why}"


def reason_of(report):
    """Of a skipped test or file, in one line."""
    _, _, why = report.longrepr
    return " ".join(why.removeprefix("Skipped: ").split())
