"""tests/gpu_guard.py with planted hangs and device errors, in separate pytest processes. Needs no GPU."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gpu_guard
import pytest

# Replaces torch: a device that a test can break.
DEVICE = """
class cuda:
    broken = False
    is_initialized = staticmethod(lambda: True)

    @staticmethod
    def synchronize():
        if cuda.broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")
"""
TESTS = """
import ctypes, time, pytest, torch

@pytest.mark.gpu
def test_before():
    assert False, "found before"

def test_without_a_limit():
    time.sleep({without_a_limit})

@pytest.mark.gpu
def test_planted():
    {planted}

@pytest.mark.gpu
def test_after():
    open("after", "w").close()
"""


HANGS = 3  # seconds after which a test counts as hung: far more than the others take, even on a busy machine


def run(tmp_path, planted, *arguments, seconds=60, without_a_limit=0):
    (tmp_path / "torch.py").write_text(DEVICE)
    guard = Path(gpu_guard.__file__).read_text()
    assert "GRACE_S = 10 " in guard
    (tmp_path / "gpu_guard.py").write_text(guard.replace("GRACE_S = 10 ", "GRACE_S = 1 "))
    (tmp_path / "conftest.py").write_text("import gpu_guard\ndef pytest_configure(config):\n"
                                          "    config.pluginmanager.register(gpu_guard)\n")  # fmt: skip
    (tmp_path / "test_it.py").write_text(TESTS.format(planted=planted, without_a_limit=without_a_limit))
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--junitxml=found.xml", "test_it.py"]
    ours = {"RESNET_FUSED_GPU_TEST_SECONDS": str(seconds), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200"}
    environment = {**os.environ, "PYTEST_ADDOPTS": "", **ours}
    return subprocess.run(
        [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_hang_in_one_of_several_processes_fails_one_test(tmp_path):
    done = run(tmp_path, "time.sleep(60)", "-p", "xdist", "-n", "1", seconds=HANGS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "crashed while running 'test_it.py::test_planted'" in done.stdout
    assert "2 failed, 2 passed" in done.stdout
    assert (tmp_path / "after").exists(), "another process ran what was left"


def test_hang_is_reported_with_earlier_results(tmp_path):
    done = run(tmp_path, "print('.'); time.sleep(600)", seconds=HANGS, without_a_limit=HANGS + 0.5)
    assert done.returncode == gpu_guard.HUNG, done.stdout + done.stderr
    assert "test_it.py::test_planted has not ended within 3 s" in done.stdout
    assert "found before" in done.stdout
    assert "in test_planted" in done.stderr, "where it hangs"
    assert not (tmp_path / "after").exists()
    xml = (tmp_path / "found.xml").read_text()
    assert "test_planted has not ended" in xml and "found before" in xml


def test_hang_that_holds_the_gil_ends(tmp_path):
    done = run(tmp_path, "ctypes.PyDLL(None).sleep(600)", seconds=HANGS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Timeout" in done.stderr and "in test_planted" in done.stderr


@pytest.mark.parametrize("planted", ["torch.cuda.broken = True", "torch.cuda.broken = True; torch.cuda.synchronize()"])
def test_broken_device_ends_the_process(tmp_path, planted):
    """Even if only a later CUDA call would have reported the error."""
    done = run(tmp_path, planted)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert "test_it.py::test_planted left CUDA unusable (CUDA error: an illegal memory access" in done.stdout
    assert "found before" in done.stdout
    assert not (tmp_path / "after").exists()
    assert (tmp_path / "found.xml").exists()


def test_failing_test_does_not_stop_the_run(tmp_path):
    done = run(tmp_path, "raise RuntimeError('CUDA error: invalid argument')")
    assert done.returncode == 1, done.stdout + done.stderr
    assert (tmp_path / "after").exists()


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("test_cuda_*.py")), ids=lambda file: file.stem)
def test_subprocesses_of_gpu_tests_have_a_timeout(file):
    for call in ast.walk(ast.parse(file.read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("subprocess."):
            assert "timeout" in [keyword.arg for keyword in call.keywords], f"{file.name}:{call.lineno}"
