"""Errors that stop a build are one sentence each."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import needs_compiler

ROOT = Path(__file__).resolve().parent.parent


def run_setup(*python_flags, **environ):
    return subprocess.run(
        [sys.executable, *python_flags, "setup.py", "--quiet", "build_ext"],
        cwd=ROOT, env={**os.environ, **environ}, check=False, text=True, capture_output=True,
    )  # fmt: skip


def assert_one_sentence(result, sentence):
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith(sentence), result.stderr


def test_required_cuda_without_nvcc_stops_the_build(tmp_path):
    result = run_setup(RESNET_FUSED_CUDA="1", CUDA_HOME=str(tmp_path))
    assert_one_sentence(
        result,
        f"RESNET_FUSED_CUDA=1 but no usable nvcc (CUDA_HOME={tmp_path}: no nvcc there); set CUDA_HOME to",
    )


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"RESNET_FUSED_CUDA": "yes"}, "RESNET_FUSED_CUDA='yes' is none of auto, 0 and 1; set one of them"),
        pytest.param(
            {"RESNET_FUSED_CUDA": "0", "MAX_JOBS": "many"},
            "MAX_JOBS='many' is no number of jobs; set it to 1 or more",
            marks=needs_compiler,
        ),
        ({"RESNET_FUSED_CUDA": "0", "CXX": "no-such-compiler"}, "no compiler 'no-such-compiler' on PATH; install g++"),
    ],
)
def test_bad_build_variables_stop_the_build(environ, sentence):
    assert_one_sentence(run_setup(**environ), sentence)


@pytest.fixture
def bare_site(tmp_path):
    """A site-packages folder that contains only setuptools."""
    for name in ("setuptools", "_distutils_hack"):
        (tmp_path / name).symlink_to(Path(importlib.util.find_spec(name).origin).parent)
    return tmp_path


def test_build_stops_without_torch(bare_site):
    result = run_setup("-S", PYTHONPATH=str(bare_site))
    assert_one_sentence(result, f"torch is not importable from {sys.executable}; run '{sys.executable} -m pip install")


def test_build_stops_with_an_old_torch(bare_site):
    (bare_site / "torch").mkdir()
    (bare_site / "torch/__init__.py").touch()
    (bare_site / "torch/version.py").write_text("__version__ = '2.9.1+cu128'\n")
    assert_one_sentence(run_setup("-S", PYTHONPATH=str(bare_site)), "torch 2.9.1+cu128 is too old")
