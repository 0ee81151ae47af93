"""Each instruction that kernels use: the emulator compared with its definition and with GPUs."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from cuda_primitives import emulator, golden
from cuda_primitives.cases import all_cases

CASES = {case.name: case for case in all_cases()}
GOLDEN = {path.stem: path for path in sorted((Path(__file__).parent / "golden").glob("primitives-*.npz"))}
NEVER = "no GPU has run the primitives yet: tests/golden has no file, so nothing is compared with silicon"
ON_GPUS = [(gpu, name) for gpu in GOLDEN for name in CASES] or [pytest.param("", "", marks=pytest.mark.skip(NEVER))]


def test_every_primitive_has_a_case(primitives):
    assert len(CASES) == len(all_cases())  # each name once
    assert set(primitives.names()) == {case.primitive for case in CASES.values()}


@pytest.mark.parametrize("schedule", emulator.SCHEDULES)
@pytest.mark.parametrize("name", CASES)
def test_emulator_matches_definition(primitives, name, schedule):
    output, report = emulator.run(primitives, CASES[name], schedule)
    assert report["error_count"] == 0, report["errors"]
    assert CASES[name].mismatch(output) is None


load_golden = functools.cache(golden.load)


@pytest.mark.parametrize(("gpu", "name"), ON_GPUS)
def test_emulator_matches_gpu(primitives, gpu, name):
    case = CASES[name]
    kept = load_golden(GOLDEN[gpu]).get(f"{name}/{case.digest}")
    if kept is None:
        pytest.skip(f"{gpu} has not run this case with these inputs")
    output, _ = emulator.run(primitives, case)
    assert golden.mismatch(kept, case, output) is None


def test_golden_file_detects_a_wrong_value(tmp_path):
    """Accepts outputs that match the definition, and rejects them with one value changed."""
    names = ["ldmatrix_x4", "cvt_rn_bf16_f32", "mma_f16-random", "wgmma_f16_n64_shared_128-whole-accumulate"]
    right = {name: CASES[name].expected for name in names}
    golden.save(tmp_path / "x.npz", "a test", right, CASES)
    kept = golden.load(tmp_path / "x.npz")
    assert str(kept.pop(golden.ABOUT)) == "a test"
    assert len(kept) == len(names)
    for name in names:
        case = CASES[name]
        file, wrong = kept[f"{name}/{case.digest}"], case.expected.copy()
        assert golden.mismatch(file, case, case.expected) is None
        wrong.reshape(-1)[7] += 2
        assert golden.mismatch(file, case, wrong)
