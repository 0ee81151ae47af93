"""The kernel emulator: each faulty kernel is reported, with the line at fault."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import cuda_on_cpu
import pytest
import torch
from cuda_on_cpu import bn_add_act
from cuda_on_cpu.tensors import BatchNorm

HERE = Path(__file__).resolve().parent
CHECKS = HERE / "cuda_on_cpu" / "checks"
SCHEDULES = ["stay", "rotate", "random"]
WORDS = 128  # size of in, out and scratch, as in checks/check.h


class Expected(NamedTuple):
    hazards: set[str]
    lines: range | None  # of the statement; None if the report names no line


class Case(NamedTuple):
    file: str  # from the root of the repository
    name: str
    expected: list[Expected]

    def explains(self, hazard: str, line: str | None) -> bool:
        file, _, number = (line or "").rpartition(":")
        return any(
            hazard in e.hazards
            and (line is None if e.lines is None else file == self.file and int(number or 0) in e.lines)
            for e in self.expected
        )


def cases_of(path: Path) -> list[Case]:
    """Returns the cases of a file. Each ends with its CHECK."""
    lines = path.read_text().splitlines()
    cases, expected, at = [], [], 0
    while at < len(lines):
        if match := re.search(r"// expect( anywhere)?: (.*)", lines[at]):
            text = match[2]
            while (more := re.match(r"\s*// (.*)", lines[at + 1])) and not more[1].startswith("expect"):
                text, at = f"{text} {more[1]}", at + 1
            first = last = at + 1
            while not re.search(r"[;{}]", lines[last]):
                last += 1
            hazards = {h.strip() for h in text.split(", ")}
            expected.append(Expected(hazards, None if match[1] else range(first + 1, last + 2)))
        if match := re.match(r"CHECK(?:_LAUNCHED|_CLUSTER|_MULTICAST)?\(\s*(\w+)", " ".join(lines[at : at + 2])):
            cases.append(Case(str(path.relative_to(HERE.parent)), f"{path.stem}.{match[1]}", list(expected)))
            if path.stem != "launch":  # its cases share their expectations
                expected.clear()
        at += 1
    return cases


CASES = [case for path in sorted(CHECKS.glob("*.cu")) for case in cases_of(path)]


@pytest.fixture(scope="module")
def checks(compiler):
    return cuda_on_cpu.load_own(cuda_on_cpu.CHECKS)


def run(checks, name, bug, schedule="stay", seed=1):
    words = {kind: torch.full((WORDS,), 1, dtype=torch.int32) for kind in ("read", "write", "scratch")}
    # Room on both sides, so that an access slightly out of bounds still hits memory of this test.
    rooms = {kind: torch.cat([w, w, w]) for kind, w in words.items()}
    buffers = [(kind, room[WORDS : 2 * WORDS].data_ptr(), 4 * WORDS, kind) for kind, room in rooms.items()]
    report = checks.run(name, buffers, bug, schedule, seed)
    return rooms["write"][WORDS : 2 * WORDS], report


def test_every_kernel_is_a_case(checks):
    assert sorted(checks.names()) == sorted(c.name for c in CASES)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hazards_are_reported_at_their_line(checks, case, schedule):
    for seed in range(1, 4 if schedule == "random" else 2):
        _, right = run(checks, case.name, False, schedule, seed)
        assert right["errors"] == []
        assert not right["given_up"]
        _, wrong = run(checks, case.name, True, schedule, seed)
        assert wrong["hazards"], "nothing was found"
        for hazard, line in wrong["hazards"]:
            assert case.explains(hazard, line), wrong["errors"]


def test_all_hazards_have_a_case():
    """Every hazard in runtime/*.cpp is provoked by a kernel. TMA and wgmma have their own tests."""
    others = {"mbarrier", "tma", "wgmma", "stmatrix", "control", "tensor_map"}
    call = re.compile(r'(?:report|fail|finding_of)\((?:\*\w+[.\w>-]*, )?\s*"([^"]+)"')
    reported = set()
    for path in (CHECKS.parent / "runtime").glob("*.cpp"):
        if path.stem not in others:
            reported |= set(call.findall(path.read_text()))
    provoked = {h for case in CASES for e in case.expected for h in e.hazards if not h.startswith("mbarrier: ")}
    only_with_tma = {"no fence.proxy.async", "plain access to an object in shared memory"}
    assert reported - only_with_tma == provoked


def test_report_names_access_threads_and_lines(checks):
    _, report = run(checks, "shared.read_after_write", True)
    error = next(e for e in report["errors"] if e.startswith("race: read after write"))
    assert re.fullmatch(
        r"race: read after write at tests/cuda_on_cpu/checks/shared.cu:\d+, block \d thread \d+: shared memory offset "
        r"\d+, written by thread \d+ without a barrier in between "
        r"\(the earlier one at tests/cuda_on_cpu/checks/shared.cu:\d+\) \[\d+ times\]",
        error,
    ), error
    assert report["error_count"] == sum(int(n) for e in report["errors"] for n in re.findall(r"\[(\d+) times", e))


def test_fatal_error_ends_only_its_launch(checks):
    _, report = run(checks, "global.plain_store_out_of_bounds", True)
    assert report["given_up"]
    assert {h for h, _ in report["hazards"]} == {"global memory out of bounds"}  # not: output never written
    out, report = run(checks, "global.plain_store_out_of_bounds", False)  # the next launch is unaffected
    assert (report["errors"], out.tolist()) == ([], [1] * WORDS)


def test_every_block_runs_although_one_gives_up(checks):
    for schedule in SCHEDULES:
        out, report = run(checks, "barrier.nobody_arrives", True, schedule)
        assert report["given_up"]
        assert out.tolist() == [*range(64), *range(64)]
        assert report["error_count"] == 2


def test_random_schedule_is_reproducible(checks):
    """The random schedule depends only on the seed and the CTA, not on how fast host threads run."""
    reports = [run(checks, "shared.half_a_barrier", True, "random", seed)[1] for seed in (5, 5, 6)]
    first, again, other = [[re.sub(r" \[.*", "", e) for e in sorted(r["errors"])] for r in reports]
    assert reports[0]["error_count"] == reports[1]["error_count"]
    assert {e.split(",")[0] for e in first} == {e.split(",")[0] for e in again}
    assert other


def test_counters(checks):
    for schedule in SCHEDULES:
        _, report = run(checks, "cp_async.no_wait", False, schedule)
        counted = {k: report[k] for k in ("bytes_loaded", "bytes_copied", "bytes_stored", "wide_accesses")}
        assert counted == dict(bytes_loaded=512, bytes_copied=512, bytes_stored=512, wide_accesses=0)


def test_invalid_mutation_is_an_error(compiler):
    file, at = "cuda/kernels/bn/bn_add_act.cuh", "i < loop.items; i += step"
    with pytest.raises(ValueError, match="occurs 0 times"):
        cuda_on_cpu.load_mutant(cuda_on_cpu.Patch(file, "not to be found", "", ("bn_add_act",)))
    with pytest.raises(ValueError, match="no such kernel source"):
        cuda_on_cpu.load_mutant(cuda_on_cpu.Patch(file, at, "", ("no_such_kernel",)))
    with pytest.raises(ValueError, match="no kernel source is compiled with the bug"):
        cuda_on_cpu.load_mutant(cuda_on_cpu.Patch(file, at, ""))


@pytest.fixture
def mutant(compiler):
    """One variant of bn_add_act, mutated without effect."""
    file, at = "cuda/kernels/bn/bn_add_act.cuh", "i < loop.items; i += step"
    variants = "v.dtype == Dtype::kBFloat16 && v.layout == Layout::kNHWC && v.shortcut == Shortcut::kNone"
    patch = cuda_on_cpu.Patch(file, at, at.replace("; ", ";  "), ("bn_add_act",), f"{variants} && v.vector == 8")
    kernels = cuda_on_cpu.load_mutant(patch)
    yield kernels
    kernels.close()


def test_mutation_compiles_its_source_and_variants(mutant):
    library = mutant["bn_add_act"]
    folder = Path(library.file).parent
    assert [o.name for o in folder.glob("*.o")] == ["mutant_bn_add_act.o"]
    assert len(library.compiled_bn_add_act()) == 1
    x = torch.ones(1, 8, 2, 2, dtype=torch.float16).contiguous(memory_format=torch.channels_last)
    with pytest.raises(RuntimeError, match="bn_add_act: the selected kernel is not compiled in"):
        bn_add_act.run(mutant, x, BatchNorm())


def test_closed_library_is_unloaded(mutant):
    library = mutant["bn_add_act"]
    assert str(library.file) in Path("/proc/self/maps").read_text()
    mutant.close()
    assert str(library.file) not in Path("/proc/self/maps").read_text()
    with pytest.raises(RuntimeError, match="closed"):
        library.compiled_bn_add_act()
