"""The wheel: name, contents, system requirements, and that it runs once installed.

Tests the wheel in RESNET_FUSED_WHEEL, or else builds one from the objects of the in-place build, for the same GPUs.
"""

import fcntl
import importlib.util
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
import torch
from support import require_compiler

from build_tools import archs, sources, toolchain, wheel

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("abi3audit", "auditwheel")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    missing = [tool for tool in TOOLS if importlib.util.find_spec(tool) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"{' and '.join(missing)} not installed, and CI must test the wheel; see requirements/dev.txt")
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed; 'make setup' installs what the wheel needs")
    if given := os.environ.get("RESNET_FUSED_WHEEL"):
        return Path(given)
    require_compiler()
    # One pytest-xdist process builds for all, because a wheel is built in the working tree.
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "wheel"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock, pytest.MonkeyPatch.context() as environment:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done := list(folder.glob("*.whl")):
            return done[0]
        if in_place := archs.as_list(sources.archs()):
            environment.setenv("TORCH_CUDA_ARCH_LIST", in_place)
        return wheel.build(folder)


@pytest.fixture(scope="session")
def nvcc():
    """Returns whether a wheel from this machine must contain CUDA kernels."""
    return toolchain.choose_toolkit(os.environ)[0] is not None


def test_wheel_name_is_cp310_abi3_manylinux(built):
    assert built.name == f"resnet_fused-0.1.0-cp310-abi3-{wheel.platform_tag()}.whl"


def test_contents_are_the_package_and_nothing_else(built, nvcc):
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "resnet_fused").rglob("*.py")}
    package |= {f"resnet_fused/{name}" for name in ("_build_info.py", "py.typed", "_C.abi3.so")}
    if nvcc:
        package.add("resnet_fused/_C_cuda.abi3.so")
    info = {f"resnet_fused-0.1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    with zipfile.ZipFile(built) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    assert names - {"resnet_fused-0.1.0.dist-info/top_level.txt"} == package | info


def test_metadata_requires_torch_and_rich_only(built):
    with zipfile.ZipFile(built) as archive:
        lines = archive.read("resnet_fused-0.1.0.dist-info/METADATA").decode().splitlines()
        license_text = archive.read("resnet_fused-0.1.0.dist-info/licenses/LICENSE").decode()
    assert {line for line in lines if line.startswith("Requires-Dist") and "extra" not in line} == {
        "Requires-Dist: torch>=2.10",
        "Requires-Dist: rich",
    }
    assert "Requires-Python: >=3.10" in lines
    assert "License-Expression: BSD-3-Clause" in lines
    assert license_text == (ROOT / "LICENSE").read_text()


def test_audit_is_clean(built, nvcc, capsys):
    wheel.audit(built)
    output = " ".join(capsys.readouterr().out.split())
    assert f"{2 if nvcc else 1} extensions scanned; 0 ABI version mismatches and 0 ABI violations found" in output


def test_wheel_holds_no_local_paths(built):
    with zipfile.ZipFile(built) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            for path in (ROOT, Path(torch.__file__).parent, Path(sys.prefix)):
                assert str(path).encode() not in data, f"{name} holds {path}"


USE = """
import sys, torch
import resnet_fused, resnet_fused.ops
import torch.nn.functional as F

assert resnet_fused.__file__.startswith(sys.prefix), f"{resnet_fused.__file__} is not the wheel's"
torch.manual_seed(0)
x, w, r = torch.randn(2, 16, 14, 14), torch.randn(32, 16, 3, 3) / 12, torch.randn(2, 32, 14, 14)
gamma, beta, mean, var = torch.rand(32) + 0.5, torch.randn(32), torch.randn(32), torch.rand(32) + 0.5


def eager(x, w, r, gamma, beta, mean, var):
    return F.relu(F.batch_norm(F.conv2d(x, w, padding=1), mean, var, gamma, beta, eps=1e-5) + r)


one, same = [1, 1], (gamma, beta, mean, var)
y = torch.ops.resnet_fused.conv_bn_act(x, w, None, *same, 1e-5, one, one, one, 1, r, True, False, False)
truth = eager(*(t.double() for t in (x, w, r, *same)))
error, allowed = (y - truth).abs().max(), (eager(x, w, r, *same) - truth).abs().max()
assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * truth.abs().max(), (error, allowed)
print("right")
"""


def test_installed_wheel_matches_eager(built, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin/python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", built],
        check=True,
    )  # fmt: skip
    # Makes the installed torch and its dependencies importable, after the wheel on sys.path, but reads no .pth there.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "torch_elsewhere.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    result = subprocess.run([python, "-I", "-c", USE], cwd=tmp_path, check=False, text=True, capture_output=True)
    assert (result.returncode, result.stdout) == (0, "right\n"), result.stderr


def test_wheel_needing_an_unknown_library_is_refused(built, monkeypatch):
    monkeypatch.setattr(wheel, "TORCH_LIBRARIES", ())
    with pytest.raises(SystemExit, match=r"needs libtorch_cpu\.so.*, which its tags do not allow"):
        wheel.audit(built)
