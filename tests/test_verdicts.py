"""tests/verdicts.py on a small project: only tests that passed with unchanged inputs are not rerun."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
CONFTEST = """
import verdicts

def pytest_addoption(parser):
    verdicts.add_options(parser)

def pytest_configure(config):
    config.pluginmanager.register(verdicts)
"""
FILES = {
    "tests/conftest.py": CONFTEST,
    "tests/cuda_cases/fixtures.py": "",
    "tests/test_right.py": "def test_right(): pass\n",
    "tests/test_teardown.py": """
import pytest

@pytest.fixture
def broken():
    yield
    assert False

def test_teardown(broken): pass
""",
    "tests/test_flaky.py": """
import os

def test_flaky(): assert not os.environ.get("FAILS")
""",
    "tests/test_edits.py": """
import os
from pathlib import Path

def test_edits():
    if os.environ.get("EDITS"):
        Path("shared.txt").write_text("edited while the tests run")
""",
    "shared.txt": "",
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(TESTS / "verdicts.py", tmp_path / "tests")
    (tmp_path / ".gitignore").write_text("build/\n__pycache__/\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return tmp_path


def run(project, *arguments, **environment):
    """Returns the letter that pytest prints for each test, followed by E if its teardown fails."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments, "tests"]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "RESNET_FUSED_", "HYPOTHESIS"))}
    done = subprocess.run(command, cwd=project, env={**inherited, **environment}, capture_output=True, text=True)
    return done.stdout.split("[100%]")[0].strip()  # test_edits, test_flaky, test_right, test_teardown


def test_only_unchanged_passed_tests_are_not_rerun(project):
    assert run(project, "--verdicts") == "....E"
    assert run(project, FAILS="1") == ".F..E", "verdicts are off by default"
    assert run(project, "--verdicts") == "u.u.E", "a failure removes a verdict, and an error in a teardown is none"
    (project / "tests/test_right.py").write_text("def test_right(): assert 1\n")
    assert run(project, "--verdicts", EDITS="1") == "uu..E", "other tests are no part of one"
    (project / "shared.txt").write_text("edited")
    assert run(project, "--verdicts", EDITS="1") == "....E"
    assert run(project, "--verdicts") == "....E", "a file changed while the tests ran"
    assert run(project, "--verdicts", HYPOTHESIS_PROFILE="explore") == "....E"
    assert run(project, "--verdicts") == "uuu.E"
