"""CI: which mutations and sanitizers run for a change (build_tools/changes.py); .ci/run reports every failure."""

import shutil
import subprocess
from pathlib import Path

import cuda_on_cpu
import pytest

from build_tools import changes

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["csrc/cuda/kernels/sm80/conv_mainloop.cuh"], "sample,sm80"),
        (["csrc/cuda/kernels/sm90/conv_sm90.cuh", "csrc/cuda/kernels/pool/bn_pool.cu"], "sample,sm90,pool"),
        (["csrc/cuda/kernels/sm80/deleted.cuh"], "sample,sm80"),
        (["csrc/cuda/kernels/bn/moments.cuh"], "sample,sm80,sm90,bn"),  # included by all three families
        (["csrc/cuda/device/tile/bytes.cuh"], "sample,pool,tile"),
        (["csrc/cuda/device/ptx/wgmma.cuh"], "sample,sm90,primitives"),
        (["csrc/cuda/runtime/launch.h"], "sample,sm80,sm90,bn,pool,primitives"),
        (["tests/test_cuda_pool.py"], "sample"),
        (["tests/test_cuda_pool_mutations.py"], "sample,pool,tile"),
        (["tests/test_cuda_primitives_mutations.py"], "sample,primitives"),
        (["tests/cuda_primitives/kernels/conv.cu"], "sample,primitives"),
        (["tests/cuda_primitives/cases.py"], "sample,primitives"),
        (["tests/test_cuda_deleted.py"], "all"),
        (["tests/cuda_on_cpu/runtime/device.cpp"], "all"),
        (["README.md", "tests/mutation.py"], "all"),
        (["tests/cuda_cases/sm90.py"], "all"),
        (None, "all"),
        ([], "sample"),
        (
            ["README.md", "csrc/cpu/plan.cpp", "csrc/cuda/plan/plan.cpp", "tests/test_ops.py", "tests/test_explain.py"],
            "sample",
        ),
    ],
)
def test_changed_files_choose_mutations(files, expected):
    assert changes.mutations(files) == expected


def test_emulator_sources_require_all_mutations():
    for path in cuda_on_cpu.build.HOST:
        assert changes.mutations([path.relative_to(ROOT).as_posix()]) == "all", path


def test_every_kernel_and_every_mutation_has_a_family():
    for path in (ROOT / "csrc/cuda").rglob("*.cu*"):
        assert changes.mutations([path.relative_to(ROOT).as_posix()]) != "sample", path
    for path in (ROOT / "tests").glob("test_cuda_*.py"):
        mutates = "@each_mutation(" in path.read_text()
        assert not mutates or changes.mutations([f"tests/{path.name}"]) != "sample", path


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["csrc/cpu/avx512/bn.h"], True),
        (["csrc/library.cpp"], True),
        (["build_tools/flavours.py"], True),
        (None, True),
        (["csrc/cuda/plan/plan.cpp", "tests/test_ops.py", "docs/Makefile"], False),
        ([], False),
    ],
)
def test_changed_files_choose_the_sanitizers(files, expected):
    assert changes.sanitizers(files) is expected


def test_changes_are_relative_to_the_merge_base(tmp_path):
    def git(*arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    def commit(name):
        (tmp_path / name).touch()
        git("add", ".")
        git("commit", "-m", name)

    assert changes.since_last_green(tmp_path) is None, "no repository"
    git("init")
    commit("first")
    assert changes.since_last_green(tmp_path) is None, "a commit without a parent, as a shallow clone ends with"
    commit("second")
    assert changes.since_last_green(tmp_path) is None, "on main itself"
    git("checkout", "-b", "branch")
    commit("third")
    git("mv", "first", "fourth")
    assert changes.since_last_green(tmp_path) == ["first", "fourth", "third"]
    git("branch", "-D", "main")
    assert changes.since_last_green(tmp_path) is None, "no main"


# Replaces make and Python: prints the command that it was given, and fails if the command contains $FAILS.
STUB = """#!/bin/sh
words="$(basename $0) $*"
case "$words" in
  *"build_tools.changes sanitizers"*) echo ${SANITIZERS:-no};;
  *"build_tools.changes mutations"*) echo sm80,bn;;
  *archs.DEFAULT*) echo "8.0+PTX;9.0a";;
  *) echo "ran $words for $TORCH_CUDA_ARCH_LIST${PYTHONDONTWRITEBYTECODE:+ without bytecode}";;
esac
case "$words" in *"${FAILS:-nothing}"*) echo "$words is broken"; exit 3;; esac
"""


def run_ci(tmp_path, **environment):
    for name in (".venv/bin/python", "bin/make", ".ci/run", "dist/a.whl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", **environment}
    command = [tmp_path / ".ci/run"]
    return subprocess.run(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def test_ci_runs_every_part(tmp_path):
    done = run_ci(tmp_path, SANITIZERS="yes", PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout
    for part in (
        "make lint", "make setup", "python -m resnet_fused demo --quick", "make wheel", "make docs", "make sanitize",
        "make test VERDICTS= MUTATIONS=sm80,bn",
    ):  # fmt: skip
        assert f"ran {part} for 8.0+PTX;9.0a\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ran make test ")
    assert "make sanitize" not in run_ci(tmp_path).stdout


@pytest.mark.parametrize(
    "part",
    [
        "make .venv/.dev", "make lint", "make setup", "demo --quick", "make wheel", "make docs", "make sanitize",
        "make test",
        "archs.DEFAULT", "changes sanitizers", "changes mutations",
    ],
)  # fmt: skip
def test_ci_fails_with_the_output_of_the_failed_part_last(tmp_path, part):
    done = run_ci(tmp_path, FAILS=part, SANITIZERS="yes")
    assert done.returncode == 3, done.stdout
    # command substitutions capture stdout, so these parts do not show theirs
    if "archs" not in part and "changes" not in part:
        assert any(f"{part} " in f"{line} " and line.endswith("is broken") for line in done.stdout.splitlines()[-2:])
    assert part == "make test" or "make test" not in done.stdout
