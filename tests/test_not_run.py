"""The last lines of pytest list the tests that this machine cannot run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SKIPPING = """
import pytest

no_compiler = pytest.mark.skipif(True, reason="this needs a compiler: g++ is not installed")

@no_compiler
@pytest.mark.parametrize("i", range(5))
def test_marked(i): pass

@no_compiler
def test_marked_too(): pass

@pytest.fixture
def gpu(): pytest.skip("there is no GPU,\\n  or no driver")

def test_of_a_fixture(gpu): pass

@pytest.mark.xfail(reason="known")
def test_fails(): assert False

def test_passes(): pass
"""
WHOLE_FILE = 'import pytest; pytest.importorskip("no_such_module"); test_unseen = print'
XDIST = pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")


@pytest.mark.parametrize(
    "arguments", [(), pytest.param(("-p", "xdist", "-n", "2"), marks=XDIST)], ids=["alone", "in processes"]
)
def test_each_reason_is_given_once_with_its_count(tmp_path, arguments):
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "test_whole_file.py").write_text(WHOLE_FILE)
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "not_run", "-p", "no:cacheprovider", "-rfE", *arguments],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        check=False, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-4:-1] == [
        "could not run here: 6 tests: this needs a compiler: g++ is not installed",
        "could not run here: 1 test: there is no GPU, or no driver",
        "could not run here: 1 file: could not import 'no_such_module': No module named 'no_such_module'",
    ]
