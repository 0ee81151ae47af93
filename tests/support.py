"""Shared helpers: realistic BatchNorms, float64 references, recording of ops."""

import contextlib
import copy
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from build_tools import toolchain
from resnet_fused.chain.policy import CAPABILITIES

ROOT = Path(__file__).parents[1]

# Rounds to 0 in float32 and is negligible next to a variance in float64, but unlike 0 no torch rejects it.
TINY_EPS = 1e-300


def refusal_of_zero_eps() -> str:
    """Returns the error of this torch for a BatchNorm with eps = 0, or "" if it accepts that."""
    one = torch.ones(1)
    try:
        F.batch_norm(one.view(1, 1), one, one, eps=0.0)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


_refusal = refusal_of_zero_eps()
# Marks tests that compare with eager at eps = 0.
zero_eps = pytest.mark.skipif(bool(_refusal), reason=f"eager refuses eps = 0: {_refusal}")

CUDA_13 = (75, 80, 86, 89, 90, 100, 103, 110, 120, 121)  # nvcc 13.0 --list-gpu-code

_missing = toolchain.missing_compiler()
NO_COMPILER = f"this needs a compiler: {_missing} is not installed" if _missing else ""
needs_compiler = pytest.mark.skipif(bool(NO_COMPILER), reason=NO_COMPILER)


def require_compiler() -> None:
    """Skips without a compiler, like the mark ``needs_compiler``, but for fixtures."""
    if NO_COMPILER:
        pytest.skip(NO_COMPILER)


def run_python(*arguments: Any, timeout: float = 600, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in another process that imports this checkout, wherever pytest was started."""
    # Variables of pytest and its plugins would affect a pytest in that process.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


@contextlib.contextmanager
def shared_folder(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Yields a folder shared by all pytest-xdist processes, while holding its lock."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def randomise(model: nn.Module) -> nn.Module:
    """Randomises every BatchNorm, so that a test notices omitted, swapped or stale ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.2)
                nn.init.normal_(module.bias, 0, 0.2)
    return model


def truth(model: nn.Module, x: Tensor) -> Tensor:
    """Returns the output of a float64 copy of the (eager) model."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


class RecordedOps(TorchDispatchMode):
    """Records every op that runs, of torch and of this package."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.called.append(func)
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> list[Any]:
        return [op for op in self.called if op.namespace == "resnet_fused"]


def ops_of(model: nn.Module, x: Tensor) -> list[Any]:
    """Returns the ops of this package that a call without gradients runs."""
    with RecordedOps() as recorded, torch.no_grad():
        model(x)
    return recorded.ours


def grant(monkeypatch, device="cpu", **capabilities):
    """Makes chains on ``device`` run as if its kernels had these :class:`resnet_fused.chain.policy.Capabilities`."""
    monkeypatch.setitem(CAPABILITIES, device, CAPABILITIES[device]._replace(**capabilities))
