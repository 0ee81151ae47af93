"""Kernels and plans of every instruction set, also of those that this processor lacks; and invalid variables."""

import re
from pathlib import Path

import pytest
import torch
from op_case import Case, isa_of_kernels
from support import ROOT, needs_compiler, run_python

from resnet_fused import functional, ops, plans

TESTS = Path(__file__).parent
CONV = ([8, 64, 56, 56], [64, 64, 3, 3], [1, 1], [1, 1], [1, 1], 1)


def plan(dtype):
    return plans.read(ops.explain_cpu(*CONV, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_isa_above_the_processor_changes_nothing(monkeypatch, dtype):
    monkeypatch.delenv("RESNET_FUSED_CPU_ISA", raising=False)
    uncapped = plan(dtype)
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "amx")
    assert plan(dtype) == uncapped


@pytest.mark.parametrize(("dtype", "engine"), [("float32", "onednn"), ("bfloat16", "composed")])
def test_lower_isa_gives_that_processors_plan(monkeypatch, dtype, engine):
    """On AVX2 PyTorch refuses oneDNN convolutions in bfloat16, so the plan must not choose them."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "avx2")
    assert isa_of_kernels(getattr(torch, dtype)) in ("AVX2", None)
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "onednn")
    assert plan(dtype).kernel == engine
    Case(2, 32, 13, 13, 40, 3, 3, (1, 1), (1, 1), (1, 1), dtype=getattr(torch, dtype), residual=True).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_read_exactly_and_rounded_once(own_isa, monkeypatch, dtype):
    """An identity convolution adds x, all normal numbers of the type, and a residual."""
    monkeypatch.setenv("RESNET_FUSED_CPU_ENGINE", "direct")
    numbers = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int16).view(dtype)
    normal = numbers.isfinite() & (numbers.abs() >= torch.finfo(dtype).tiny)  # VDPBF16PS flushes subnormal numbers
    x = numbers.where(normal, torch.ones_like(numbers)).view(16, 16, 16, 16)
    residual = x.flatten().roll(1).view_as(x) / 3
    residual = residual.where(residual.abs() >= torch.finfo(dtype).tiny, torch.ones_like(residual))
    weight = torch.eye(16, dtype=dtype).view(16, 16, 1, 1)
    y = functional.conv_bn_act(x, weight, residual=residual, relu=False)
    expected = (x.float() + residual.float()).to(dtype)
    expected = expected.where(expected.abs() >= torch.finfo(dtype).tiny, y)
    assert torch.equal(y, expected)


def test_isa_is_read_on_every_call(monkeypatch):
    found = []
    for isa in ("avx2", "amx", "avx2", ""):
        monkeypatch.setenv("RESNET_FUSED_CPU_ISA", isa)
        found.append(plan("float32"))
    assert found[0] == found[2]
    assert found[1] == found[3]


@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("RESNET_FUSED_CPU_ISA", "is garbage; one of avx2, avx512, avx512_bf16, amx expected, or unset it"),
        ("RESNET_FUSED_CPU_ENGINE", "is garbage; one of winograd, direct, onednn, composed expected, or unset it"),
    ],
)
def test_unknown_isa_or_engine_is_refused(monkeypatch, variable, sentence):
    monkeypatch.setenv(variable, "garbage")
    case = Case(2, 32, 13, 13, 40, 3, 3, (1, 1), (1, 1), (1, 1))
    calls = [case.fused, lambda: plan("float32"), lambda: ops.bn_add_act(case.x, *[None] * 4, 1e-5, None, True)]
    for call in calls:
        with pytest.raises(RuntimeError, match=f"^{variable} {sentence}$"):
            call()
    monkeypatch.delenv(variable)
    case.check()


def test_bad_pool_size_is_refused_on_first_use():
    """Every call fails until the variable is valid. Runs in another process, which has no pool yet."""
    values = ["garbage", "-1", "12MB", "1.5", "99999999999999999999"]
    code = f"""if True:
        import os, resnet_fused, torch
        x = torch.ones(4, 64, 64, 64)
        for value in {[*values, "0"]}:
            os.environ["RESNET_FUSED_CPU_POOL_MB"] = value
            try:
                print(torch.equal(resnet_fused.ops.bn_add_act(x, *[None] * 4, 1e-5, None, True), x))
            except RuntimeError as error:
                print(error)
    """
    done = run_python("-c", code, RESNET_FUSED_CPU_POOL_MB=values[0])
    rest = "a whole number of MiB from 0 to 1073741824 expected, or unset it"
    expected = [f"RESNET_FUSED_CPU_POOL_MB is {value}; {rest}" for value in values]
    assert (done.stdout.splitlines(), done.returncode) == ([*expected, "True"], 0), done.stderr


# Selections of the engine tests that run every kernel within minutes; `make test-emulated` runs all of them.
TESTED = ["test_ops.py", "test_packed_weights.py", "test_conv_backward_weight.py", "test_head.py"]
TESTED += ["test_pack_in_task.py", "test_direct_gradient.py", "test_conv_backward_input.py"]
WITH_AVX512 = "resnet_shapes or not_finite_in_winograd or overflow_on or edited or what_runs or threads"
WITH_AVX512 += " or (chains_in and autocast)"
WITH_AMX = "any_shape or by_three or resnet_shapes or corners or not_finite or pool or projection or pre_act or edited"
WITH_AMX += " or (frozen_weight and bfloat16)"


# The flavour that emulates what this processor lacks, and which tests run with it: not those of its own instructions.
EMULATIONS = {
    "AMX": None,
    "AVX512-BF16": ("emulated-amx", f"({WITH_AMX}) and not (onednn or composed or avx512 or avx2)"),
}
AVX512 = ("emulated-avx512", f"({WITH_AVX512} or {WITH_AMX}) and not (onednn or composed or avx2)")
EMULATION = EMULATIONS.get(isa_of_kernels(torch.bfloat16), AVX512)


@pytest.fixture(scope="module")
def emulated():
    """Builds a library with the instructions that this processor lacks; returns its path.

    Of two concurrent builds the second waits for the first.
    """
    flavour = EMULATION[0]
    done = run_python("setup.py", "--quiet", "build_ext", "--inplace", RESNET_FUSED_FLAVOUR=flavour)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(ROOT / f"build/{flavour}/_C.abi3.so")


emulation = pytest.mark.skipif(
    EMULATION is None, reason="this processor has all the instructions: other tests use them"
)


@emulation
@needs_compiler
def test_kernels_pass_emulated(emulated):
    """Runs the tests of these kernels; none of them may be skipped."""
    files = [TESTS / name for name in TESTED]
    done = run_python("-m", "pytest", "-q", "-k", EMULATION[1], *files, timeout=1800, RESNET_FUSED_LIBRARY=emulated)
    assert done.returncode == 0, done.stdout
    summary = done.stdout.splitlines()[-1]
    assert re.match(r"\d{2,} passed", summary) and "skipped" not in summary, done.stdout


@emulation
@needs_compiler
def test_random_problems_pass_emulated(emulated):
    done = run_python("-m", "tests.fuzz", "--problems", "100", "--seed", "1000", RESNET_FUSED_LIBRARY=emulated)
    assert done.returncode == 0, done.stdout + done.stderr
