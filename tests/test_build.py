"""The build: which GPU architectures, toolkit and flags it uses, and what it rebuilds."""

import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from setuptools import Distribution
from support import CUDA_13, require_compiler

from build_tools import BuildError, archs, command, flavours, glibc, ninja_file, toolchain

ROOT = Path(__file__).resolve().parent.parent


# Which GPUs


@pytest.mark.parametrize(
    ("inplace", "requested", "expected"),
    [
        (True, "", ["sm_90a"]),
        (False, "", ["sm_80", "ptx_80", "sm_89", "sm_90a", "sm_100f", "sm_120"]),
        (True, "8.6", ["sm_86"]),
        (False, "8.6", ["sm_86"]),
    ],
)
def test_wheels_are_for_every_gpu_unless_a_list_is_set(tree, tmp_path, monkeypatch, inplace, requested, expected):
    nvcc = make_toolkit(tmp_path / "toolkit")
    monkeypatch.setattr(command, "ROOT", tree)
    monkeypatch.setattr(toolchain, "find_compiler", lambda variable: "g++")
    monkeypatch.setattr(toolchain, "gpus", lambda: ["9.0"])
    monkeypatch.setattr(toolchain, "known_archs", lambda nvcc: CUDA_13)
    monkeypatch.setenv("CUDA_HOME", str(nvcc.parent.parent))
    monkeypatch.setenv("RESNET_FUSED_CUDA", "1")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", requested)
    plan, _ = command.make_plan(inplace)
    assert [arch.label for arch in plan.archs] == expected
    assert f"CUDA_ARCHS: tuple[str, ...] = {tuple(expected)!r}" in command.build_info(plan, "")


def test_gpus_are_queried_from_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolchain.gpus() == []
    make_script(tmp_path / "nvidia-smi", "echo 9.0; echo 8.9; echo 9.0")
    assert toolchain.gpus() == ["9.0", "8.9"]
    make_script(tmp_path / "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    assert toolchain.gpus() == []


# Which toolkit


def make_toolkit(root, lib="lib64", release="13.0.88"):
    """Creates a fake CUDA toolkit; its nvcc answers ``--dryrun`` and ``--version``."""
    for file in ("include/cuda_runtime.h", f"{lib}/libcudart_static.a"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    major_minor = release.rpartition(".")[0]
    answer = f"case $1 in --dryrun) echo '#$ TOP={root}/bin/..';; *) echo 'release {major_minor}, V{release}';; esac"
    return make_script(root / "bin/nvcc", answer)


def make_script(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def find(environ, default=Path("absent"), packages=()):
    return toolchain.find_toolkit(environ, default, list(packages))


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_toolkit_from_cuda_home_or_cuda_path(tmp_path, variable):
    make_toolkit(tmp_path / "named")
    make_toolkit(tmp_path / "other", release="12.9.1")
    found, where = find({variable: str(tmp_path / "named"), "PATH": str(tmp_path / "other/bin")})
    assert (found.version, found.release) == ((13, 0), "13.0.88")
    assert found.include == tmp_path / "named/include"
    assert where == f"{variable}={tmp_path}/named: nvcc 13.0.88"


def test_cuda_home_without_nvcc_has_no_fallback(tmp_path):
    make_toolkit(tmp_path / "other")
    found, why = find({"CUDA_HOME": str(tmp_path), "PATH": str(tmp_path / "other/bin")})
    assert (found, why) == (None, f"CUDA_HOME={tmp_path}: no nvcc there")


def test_toolkit_behind_a_wrapper_on_path(tmp_path):
    real = make_toolkit(tmp_path / "real", lib="targets/x86_64-linux/lib")
    wrapper = make_script(tmp_path / "bin/nvcc", f'exec {real} "$@"')
    found, where = find({"PATH": str(tmp_path / "bin")})
    assert found.nvcc == wrapper
    assert found.cudart == tmp_path / "real/targets/x86_64-linux/lib/libcudart_static.a"
    assert where == "PATH: nvcc 13.0.88"


def test_toolkit_in_the_default_place(tmp_path):
    make_toolkit(tmp_path)
    assert find({}, default=tmp_path)[1] == f"{tmp_path}: nvcc 13.0.88"


def test_newest_toolkit_package_is_chosen(tmp_path):
    make_toolkit(tmp_path / "nvidia/cu12", release="12.9.1")
    make_toolkit(tmp_path / "nvidia/cu13", lib="lib")
    found, where = find({}, packages=["", str(tmp_path)])
    assert found.cudart == tmp_path / "nvidia/cu13/lib/libcudart_static.a"
    assert where == "the nvidia-cuda-nvcc package: nvcc 13.0.88"


@pytest.mark.parametrize("missing", ["include/cuda_runtime.h", "lib64/libcudart_static.a"])
def test_incomplete_toolkit_names_the_missing_file(tmp_path, missing):
    make_toolkit(tmp_path)
    (tmp_path / missing).unlink()
    found, why = find({"CUDA_HOME": str(tmp_path)})
    assert found is None
    assert Path(missing).name in why


@pytest.mark.parametrize("body", ["exit 1", "echo hello"])
def test_broken_nvcc_is_rejected(tmp_path, body):
    make_script(tmp_path / "bin/nvcc", body)
    found, why = find({"PATH": str(tmp_path / "bin")})
    assert found is None
    assert f"{tmp_path}/bin/nvcc does not work as a compiler" in why


def test_error_names_every_place_searched():
    found, why = find({"PATH": "", "CUDA_HOME": ""})
    assert (found, why) == (None, "PATH: no nvcc there; absent: no nvcc there")


def test_cuda_can_be_disabled():
    assert toolchain.choose_toolkit({"RESNET_FUSED_CUDA": "0"}) == (None, "RESNET_FUSED_CUDA=0")


# Symbol versions


LIBC = {
    "dlopen": ("GLIBC_2.34", {"GLIBC_2.2.5"}),
    "pthread_create": ("GLIBC_2.34", {"GLIBC_2.2.5"}),
    "thrd_create": ("GLIBC_2.34", {"GLIBC_2.28"}),
    "pthread_mutex_lock": ("GLIBC_2.2.5", set()),
    "memcpy": ("GLIBC_2.14", {"GLIBC_2.2.5"}),
    "pthread_cond_clockwait": ("GLIBC_2.34", {"GLIBC_2.30"}),  # no old version
}
LIBM = {
    "exp": ("GLIBC_2.29", {"GLIBC_2.2.5", "GLIBC_2.4"}),
    "sqrt": ("GLIBC_2.2.5", set()),
    "fmaximum": ("GLIBC_2.35", set()),
}


def test_new_glibc_symbols_map_to_old_versions():
    assert glibc.plan(["ours", *LIBC], LIBC, LIBM) == {
        "libdl.so.2": {"GLIBC_2.2.5": ["dlopen"]},
        "libpthread.so.0": {"GLIBC_2.2.5": ["pthread_create"], "GLIBC_2.28": ["thrd_create"]},
    }


def test_libm_symbols_are_replaced_all_or_none():
    assert glibc.plan(["exp", "sqrt"], LIBC, LIBM) == {"libm.so.6": {"GLIBC_2.4": ["exp"], "GLIBC_2.2.5": ["sqrt"]}}
    # has no old version, but must still resolve
    assert glibc.plan(["fmaximum"], LIBC, LIBM) == {"libm.so.6": {"GLIBC_2.35": ["fmaximum"]}}
    assert glibc.plan(["sqrt"], LIBC, LIBM) == {}


@pytest.mark.parametrize(
    ("version", "answer"),
    [("GLIBC_2.28", False), ("GLIBC_2.29", True), ("GLIBC_2.2.5", False), ("GLIBC_PRIVATE", False), ("FOO_9", False)],
)
def test_too_new_glibc_versions_are_recognised(version, answer):
    assert glibc.too_new(version) is answer


# What is compiled, and with which flags


@pytest.fixture
def tree(tmp_path):
    """A small repository: our module, compat sources and build tools, and sources of one line each."""
    csrc = tmp_path / "csrc"
    shutil.copytree(ROOT / "csrc/compat", csrc / "compat")
    shutil.copytree(ROOT / "build_tools", tmp_path / "build_tools", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("module.c", "unchanged.c", "exports.map"):
        shutil.copy(ROOT / "csrc" / name, csrc)
    texts = {
        "library.cpp": "int library() { return 1; }\n",
        "common/shape.h": "int shape();\n",
        "common/shape.cpp": '#include "common/shape.h"\nint shape() { return 2; }\n',
        "cpu/relu.cpp": '#include "common/shape.h"\nint relu() { return shape(); }\n',
        "cpu/avx2/conv_fp32.cpp": "int conv_fp32_avx2() { return 4; }\n",
        "cpu/avx512/conv_bf16.cpp": "int conv_bf16() { return 3; }\n",
        "cpu/avx512/conv_fp32.cpp": "int conv_fp32() { return 3; }\n",
        "explain_cuda.cpp": "int explain() { return 6; }\n",
        "cuda/plan/block_plan.cpp": "int block_plan() { return 9; }\n",
        "cuda/plan/override.cpp": "int choice() { return 10; }\n",
        "cuda/plan/cost_model.cpp": "int model() { return 8; }\n",
        "cuda/plan/plan.cpp": "int plan() { return 7; }\n",
        "cuda/plan/trust.cpp": "int trust() { return 11; }\n",
        "cuda/plan/trust_table.cpp": "int trust_table() { return 12; }\n",
        "cuda/ops/conv.cpp": "int ops() { return 4; }\n",
        "cuda/kernels/bn/relu.cu": "int relu_kernel() { return 5; }\n",
    }
    for name, text in texts.items():
        (csrc / name).parent.mkdir(parents=True, exist_ok=True)
        (csrc / name).write_text(text)
    return tmp_path


@pytest.fixture
def plan(tree, monkeypatch):
    require_compiler()
    monkeypatch.setenv("RESNET_FUSED_CUDA", "0")
    monkeypatch.setattr(command, "ROOT", tree)
    return command.make_plan(inplace=True)[0]


def with_cuda(plan, torch_root):
    """Returns the plan with a CPU torch and a fake CUDA toolkit, which never runs."""
    toolkit = toolchain.Toolkit(Path("T/bin/nvcc"), Path("T/include"), Path("T/libcudart_static.a"), (13, 0), "13.0.88")
    torch = toolchain.Torch(torch_root, "2.13.0")
    return replace(plan, toolkit=toolkit, archs=archs.choose(None, CUDA_13, (13, 0)), torch=torch)


def test_other_architectures_recompile_only_cuda_kernels(plan, tmp_path):
    """A wheel build and an in-place build share every object that does not depend on the architectures."""
    (tmp_path / "csrc/cuda/kernels/sm90").mkdir()
    (tmp_path / "csrc/cuda/kernels/sm90/conv.cu").touch()
    wheel = with_cuda(plan, tmp_path)
    place = replace(wheel, archs=archs.choose(archs.WITHOUT_GPU, CUDA_13, (13, 0)))
    edges = [set(re.findall(r"^build .*\n(?:  .*\n)*", ninja_file.render(p), re.M)) for p in (wheel, place)]
    own = {re.match(r"build (\S+): (\w+)", found).groups() for found in edges[1] - edges[0]}
    folder = f"{plan.folder}/sm_80-ptx_80-sm_90a"
    assert own == {
        (f"{folder}/cuda/kernels/bn/relu.cu.o", "nvcc"),
        (f"{folder}/glibc-_C_cuda/stubs.rsp", "glibc"),
        (f"{folder}/_C_cuda.abi3.so", "link"),
    }
    outputs = [{re.match(r"build (\S+):", found)[1] for found in found_edges} for found_edges in edges]
    assert {re.match(r"build (\S+):", found)[1] for found in edges[0] & edges[1]} == outputs[0] & outputs[1]


def edge(text, output):
    """Returns the lines of the ninja build edge that makes this file."""
    (found,) = re.findall(rf"^build \S*{re.escape(output)}: .*\n(?:  .*\n)*", text, re.M)
    return found


def test_each_source_is_built_once_for_its_libraries(plan, tmp_path):
    cuda = with_cuda(plan, tmp_path)
    cpu_names = {str(path) for path in ninja_file.sources(cuda, "_C")}
    cuda_names = {str(path) for path in ninja_file.sources(cuda, "_C_cuda")}
    assert {"csrc/module.c", "csrc/library.cpp", "csrc/cpu/relu.cpp", "csrc/compat/libstdcxx.cpp"} <= cpu_names
    sources = {"csrc/module.c", "csrc/cuda/ops/conv.cpp", "csrc/cuda/kernels/bn/relu.cu", "csrc/common/shape.cpp"}
    assert sources <= cuda_names
    # only one library may define the schemas
    assert "csrc/library.cpp" not in cuda_names
    # `explain --gpu` needs no CUDA library: both libraries contain the plan, and _C explains it
    pure = {f"csrc/cuda/plan/{name}.cpp" for name in ("block_plan", "override", "cost_model", "plan", "trust")}
    assert pure <= cpu_names & cuda_names
    assert "csrc/explain_cuda.cpp" in cpu_names - cuda_names
    text = ninja_file.render(cuda)
    assert len(re.findall(r"^build \S*common/shape\.cpp\.o:", text, re.M)) == 1
    assert "-DRF_MODULE=_C -DRF_UNCHANGED\n" in edge(text, "/_C.c.o")
    assert "-DRF_MODULE=_C_cuda\n" in edge(text, "/_C_cuda.c.o")


def test_isa_flags_only_in_their_folders_on_x86_64(plan):
    text = ninja_file.render(replace(plan, machine="x86_64"))
    assert "-mavx2 -mfma -mf16c -fira-region=all\n" in edge(text, "avx2/conv_fp32.cpp.o")
    assert "-mavx512f" in edge(text, "avx512/conv_fp32.cpp.o")
    assert "-mavx512bf16" not in edge(text, "avx512/conv_fp32.cpp.o")
    assert "-mavx512f" in edge(text, "conv_bf16.cpp.o")
    assert "-mavx512bf16" in edge(text, "conv_bf16.cpp.o")
    assert "-mavx" not in edge(text, "cpu/relu.cpp.o")
    assert "avx" not in ninja_file.render(replace(plan, machine="aarch64"))


def test_cuda_library_links_a_stub_without_cuda_torch(plan, tmp_path):
    torch = tmp_path / "torch"
    link = edge(ninja_file.render(with_cuda(plan, torch)), "_C_cuda.abi3.so")
    assert "stub/libtorch_cuda.so" in link
    assert "T/libcudart_static.a" in link
    (torch / "lib").mkdir(parents=True)
    (torch / "lib/libtorch_cuda.so").touch()
    text = ninja_file.render(with_cuda(plan, torch))
    assert "stub/libtorch_cuda.so" not in text
    assert "-ltorch_cuda" in edge(text, "_C_cuda.abi3.so")
    assert "-ltorch_cuda" not in edge(text, "_C.abi3.so")


def test_paths_with_spaces_and_dollars_survive(plan, tmp_path):
    text = ninja_file.render(replace(plan, torch=toolchain.Torch(tmp_path / "a $b", "2.13.0")))
    assert f"-isystem '{tmp_path}/a $$b/include'" in text


def built_by(plan, capfd):
    """Returns the steps that ninja runs now, such as ["CXX csrc/a.cpp", "LINK _C.abi3.so"]."""
    capfd.readouterr()
    command.run_ninja(plan)
    steps = re.findall(r"^\[\d+/\d+\] (.*)$", capfd.readouterr().out, re.M)
    return sorted(step.replace(f"{plan.folder}/", "") for step in steps)


def test_touching_one_source_rebuilds_one_object(plan, tree, capfd):
    relink = ["GLIBC glibc-_C/stubs.rsp", "LINK _C.abi3.so"]
    assert {"CXX csrc/cpu/relu.cpp", "CXX csrc/common/shape.cpp", *relink} <= set(built_by(plan, capfd))
    assert built_by(plan, capfd) == []
    (tree / "csrc/cpu/relu.cpp").write_text("int relu() { return 7; }\n")
    assert built_by(plan, capfd) == ["CXX csrc/cpu/relu.cpp", *relink]
    # relu.cpp no longer includes the header
    (tree / "csrc/common/shape.h").write_text("int shape();  // changed\n")
    assert built_by(plan, capfd) == ["CXX csrc/common/shape.cpp", *relink]
    (tree / "csrc/cpu/added.cpp").write_text("int added() { return 8; }\n")
    assert built_by(plan, capfd) == ["CXX csrc/cpu/added.cpp", *relink]


def test_the_library_exports_its_module_only(plan, tree):
    command.run_ninja(plan)
    symbols = subprocess.check_output(["nm", "-D", "--defined-only", tree / plan.library("_C")], text=True)
    assert [line.split()[-1] for line in symbols.splitlines()] == ["PyInit__C"]


def test_a_build_without_cuda_removes_an_older_cuda_library(plan, tree):
    build = command.BuildLibraries(Distribution({"name": "resnet_fused", "ext_modules": command.EXTENSIONS}))
    build.build_lib = str(tree / "lib")
    build.ensure_finalized()
    stale = tree / "lib/resnet_fused/_C_cuda.abi3.so"
    stale.parent.mkdir(parents=True)
    stale.touch()
    build.run()
    assert sorted(path.name for path in stale.parent.iterdir()) == ["_C.abi3.so", "_build_info.py"]
    info: dict[str, object] = {}
    exec((stale.parent / "_build_info.py").read_text(), info)
    assert info["CUDA_ARCHS"] == ()
    assert info["NVCC_VERSION"] is None
    assert info["CUDA_OMITTED"] == "RESNET_FUSED_CUDA=0"
    assert info["TORCH_BUILD_VERSION"] == plan.torch.version


def test_up_to_date_build_needs_no_compiler(plan, tree, monkeypatch, capsys):
    """Without a compiler, an up-to-date build succeeds, so that its tests can run; any other build is an error."""
    build = command.BuildLibraries(Distribution({"name": "resnet_fused", "ext_modules": command.EXTENSIONS}))
    build.inplace = True
    build.ensure_finalized()
    (tree / "resnet_fused").mkdir()
    (tree / "setup.py").touch()
    build.run()
    monkeypatch.setenv("CXX", "no-such-compiler")
    capsys.readouterr()
    build.run()
    assert "no compiler 'no-such-compiler', and none is needed: nothing has changed" in capsys.readouterr().out
    with pytest.raises(BuildError, match="no compiler 'no-such-compiler' on PATH"):
        monkeypatch.setenv("RESNET_FUSED_FLAVOUR", "sanitize")
        build.run()
    monkeypatch.delenv("RESNET_FUSED_FLAVOUR")
    (tree / "csrc/cpu/relu.cpp").write_text("int relu() { return 7; }\n")
    with pytest.raises(BuildError, match="no compiler 'no-such-compiler' on PATH"):
        build.run()


# With a new glibc and gcc, each line needs a symbol newer than manylinux_2_28.
MODERN = """
#include <dlfcn.h>
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <sstream>
#include <thread>
std::shared_ptr<int> shared;
std::condition_variable ready;
std::mutex mutex;
extern "C" void PyInit_more(double x, int n) {
  std::ostringstream text;
  text << std::exp(x) + std::pow(x, x) << std::log(x) << std::sin(x);
  std::stringstream both;
  both << text.str();
  auto copy = shared;
  std::thread thread([] { std::unique_lock<std::mutex> lock(mutex); ready.wait(lock); });
  thread.join();
  dlopen(both.str().c_str(), n ? RTLD_LAZY : RTLD_NOW);
  shared.reset(new int[n], std::default_delete<int[]>());
}
"""


def test_library_needs_only_manylinux_2_28_symbols(plan, tree):
    (tree / "csrc/cpu/modern.cpp").write_text(MODERN)
    command.run_ninja(plan)
    needed = subprocess.check_output(["readelf", "--version-info", "--wide", tree / plan.library("_C")], text=True)
    versions = set(re.findall(r"Name: (\w+_[\d.]+)", needed))
    assert any(version.startswith("GLIBCXX_") for version in versions)
    assert {version for version in versions if glibc.too_new(version)} == set()


# make


def test_changed_requirements_are_installed_again(tmp_path):
    for name in ("Makefile", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    stamps = tmp_path / ".venv"
    stamps.mkdir()
    for i, name in enumerate([".created", ".dev", ".cuda", ".editable"]):
        (stamps / name).touch()
        os.utime(stamps / name, (2e9 + i, 2e9 + i))  # newer than every copied file

    def commands():
        return subprocess.check_output(["make", "--dry-run", "test"], cwd=tmp_path, text=True)

    assert "pip install" not in commands()
    assert "build_ext --inplace" in commands()
    os.utime(tmp_path / "requirements/dev.txt", (2e9 + 9, 2e9 + 9))
    assert "pip install --quiet --no-compile -r requirements/dev.txt" in commands()


# Flavours


def test_a_flavour_builds_one_library(plan, tmp_path):
    emulated, watchdog = (flavours.FLAVOURS[name] for name in ("emulated-avx512", "watchdog"))
    text = ninja_file.render(replace(plan, flavour=emulated))
    assert "_C.abi3.so" in text
    assert "_C_cuda" not in text
    text = ninja_file.render(replace(with_cuda(plan, tmp_path), flavour=watchdog))
    assert "_C_cuda.abi3.so" in text
    assert "/_C.abi3.so" not in text
    (nvcc,) = re.findall(r"^rule nvcc\n  command = (.*)", text, re.M)
    assert "-DRESNET_FUSED_WATCHDOG" in nvcc
    assert "-DRESNET_FUSED_WATCHDOG" not in ninja_file.render(with_cuda(plan, tmp_path))


def test_a_flavour_shares_unchanged_objects(plan, tree, capfd):
    """A flavour compiles only the sources that it changes, and neither build makes the other recompile anything."""
    (tree / "csrc/cpu/plan.cpp").write_text("int cpu_plan() { return 13; }\n")
    shipped = replace(plan, machine="x86_64")
    emulated = replace(shipped, flavour=flavours.FLAVOURS["emulated-avx512"])
    assert "CXX csrc/cpu/relu.cpp" in built_by(shipped, capfd)
    own = [f"CXX csrc/cpu/{name}.cpp" for name in ("avx512/conv_bf16", "avx512/conv_fp32", "plan")]
    library = ["GLIBC emulated-avx512/glibc-_C/stubs.rsp", "LINK emulated-avx512/_C.abi3.so"]
    assert built_by(emulated, capfd) == [*own, *library]
    assert built_by(shipped, capfd) == built_by(emulated, capfd) == []


def test_a_cuda_flavour_needs_nvcc(tree, monkeypatch):
    monkeypatch.setattr(command, "ROOT", tree)
    monkeypatch.setenv("RESNET_FUSED_FLAVOUR", "watchdog")
    monkeypatch.setattr(toolchain, "find_toolkit", lambda environ: (None, "a test"))
    with pytest.raises(BuildError, match="no usable nvcc"):
        command.make_plan(inplace=True)
