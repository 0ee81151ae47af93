"""A stand-in for a Hopper GPU, for ``verify --backend stand_in:Hopper``: the op layer of csrc/cuda on emulated kernels.

STAND_IN_FAULTS plants faults that the GPU run must survive, as JSON: {"<engine> <op>": "hang", ...}. The faults are

- ``hang``: the call never returns;
- ``crash``: the process is killed by a signal;
- ``sticky``: the call raises a CUDA error, and so does every later call of the process;
- ``wrong``: one element of the result is wrong;
- ``unwritten``: one element is NaN, as if not written;
- ``unsteady``: one element of every second result differs in the last bits.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cuda_on_cpu import op_layer
from cuda_primitives.cases import all_cases

from resnet_fused.cli.verify import problems
from resnet_fused.cli.verify.backends import Cpu
from resnet_fused.cli.verify.processes import Unit
from resnet_fused.cli.verify.truth import outputs_of

STICKY = "CUDA error: an illegal memory access was encountered"
#: sm_90 with few SMs, so that persistent kernels loop several times even over small tensors.
NUMBERS = [90, 4, 232448, 233472]


class Hopper(Cpu):
    def __init__(self) -> None:
        self.engine = os.environ.get("RESNET_FUSED_CUDA_ENGINE", "")
        self.faults = json.loads(os.environ.get("STAND_IN_FAULTS", "{}"))
        self.layer = op_layer.Layer(op_layer.load(), NUMBERS, self.engine)  # compiles changed sources
        self.broken, self.calls = False, 0

    def call(self, op: str, *args: Any) -> Any:
        if self.broken:
            raise RuntimeError(STICKY)
        self.calls += 1
        if op in problems.CONVOLUTIONS and args[0].dtype == torch.float32:  # torch's fallback reads this
            assert torch.backends.cudnn.allow_tf32 == args[-1], "torch's convolutions would be in another precision"
        return self._with_fault(f"{self.engine} {op}", self.layer.call(self._op(op), *args))

    def _op(self, name: str) -> Any:
        return getattr(getattr(torch.ops, op_layer.NAME), name).default

    def _with_fault(self, call: str, result: Any) -> Any:
        fault = self.faults.get(call)
        if fault == "hang":
            time.sleep(3600)
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "sticky":
            self.broken = True
            raise RuntimeError(STICKY)
        output = outputs_of(result)[0]
        first = output.as_strided((output.numel(),), (1,))  # in memory order, whatever the format
        if fault == "wrong":
            first[len(first) // 2] += 1
        if fault == "unwritten":
            first[-1] = float("nan")
        if fault == "unsteady" and self.calls % 2 == 0:
            first[0] += torch.finfo(first.dtype).eps * first[0].abs()
        return result

    def healthy(self) -> bool:
        return not self.broken

    def facts(self) -> dict[str, Any]:
        return {"device": "cuda", "name": "an emulated GPU", "capability": "9.0", "numbers": NUMBERS}


# The interface to build_tools/gpu.py, stage by stage.

TESTED = [[os.environ.get("STAND_IN_TESTS", "tests/rehearsal.py")]]
BENCHMARK = "stand_in:benchmark"
TEST_SECONDS = 12.0  # many times the duration of a test that does not hang
PRIMITIVES = ("ldmatrix_x4", "cvt_rn_bf16_f32")  # two that emulate quickly


def chosen(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the two smallest cases of each family, for one engine and op, and one float32 case that torch convolves.

    The emulator would take seconds for others.
    """
    first = {case["family"]: (case["engine"], case["op"]) for case in reversed(found)}
    small: dict[str, list[dict[str, Any]]] = {}
    for case in sorted(found, key=lambda case: math.prod(case["shape"][:4])):
        if (case["engine"], case["op"]) == first[case["family"]]:
            small.setdefault(case["family"], []).append(case)
    exact = next(case for case in found if case["engine"] == "torch" and case["kind"] == "float32")
    return [*(case for cases in small.values() for case in cases[:2]), exact]


def primitives(folder: Path) -> list[Unit]:
    named = [case.name for case in all_cases() if case.primitive in PRIMITIVES]
    cases = tuple({"case": name} for name in named)
    return [Unit("primitives", "stand_in:run_primitives", cases, {"folder": str(folder)})]


def run_primitives(options: dict[str, Any]) -> Any:
    from cuda_primitives import emulator

    loaded, cases = emulator.load(), {case.name: case for case in all_cases()}

    def run(of: dict[str, Any]) -> dict[str, Any]:
        output, _ = emulator.run(loaded, cases[of["case"]])
        np.save(Path(options["folder"]) / f"{of['case']}.npy", output)
        why = cases[of["case"]].mismatch(output)
        return {"status": "wrong", "why": why} if why else {"status": "pass"}

    return run


def benchmark(out: Path, **arguments: Any) -> dict[str, Any]:
    """Writes a file as benchmarks do. With the fault ``hang`` for this engine, it never returns."""
    engine = os.environ.get("RESNET_FUSED_CUDA_ENGINE", "")
    if json.loads(os.environ.get("STAND_IN_FAULTS", "{}")).get(f"{engine} benchmark") == "hang":
        time.sleep(3600)
    (out / "benchmark.json").write_text(json.dumps(arguments))
    wrong = json.loads(os.environ.get("STAND_IN_FAULTS", "{}")).get(f"{engine} benchmark") == "wrong"
    return {"layers": {"a layer": {"failed": {"resnet_fused": "wrong: by far"} if wrong else {}}}, "left_out": []}
