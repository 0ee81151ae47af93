"""Bugs planted into kernels that use TMA, mbarriers and wgmma: the emulator catches each, whatever the schedule."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cuda_on_cpu
import pytest
from cuda_primitives.cases import all_cases

if reason := cuda_on_cpu.missing():
    pytest.skip(f"the kernel emulator needs a compiler: {reason}", allow_module_level=True)

from cuda_primitives import emulator
from cuda_primitives.emulator import Plant

CASES = {case.name: case for case in all_cases()}
WRONG = "a wrong result"
NEVER_WRITTEN, IN_FLIGHT = "read of shared memory that was never written", "read of shared memory with a copy in flight"
OVER_COPY, AFTER_READ = "write over a copy in flight", "race: write after read"
TOUCHED = "wgmma: accumulators touched before the wait"


class Bug(NamedTuple):
    old: str
    new: str
    caught: tuple[str, ...]  # any of these hazards, or WRONG
    file: str = "conv.cu"
    case: str = "conv-ragged"


def line(text: str) -> str:
    """A statement of conv.cu's loops, to be left out."""
    return f"    {text};\n"


RELEASE = "if (k > 0 && lane == 0) ptx::mbarrier_arrive(smem + kEmpty + 8 * ((k - 1) % kStages))"
WAIT_1 = line("ptx::wgmma_wait_group<1>()")
INIT_EMPTY = "ptx::mbarrier_init(smem + kEmpty + 8 * i, kConsumerWarps)"
DESCRIPTOR_B = "smem_descriptor<Swizzle::k128>(b + i * 32)"
WGMMA = "wgmma_bf16_n64_registers_128-whole-accumulate"

BUGS = {
    # mbarriers and TMA loads
    "a stage is released while it is multiplied": Bug(
        WAIT_1 + line(RELEASE),
        line("if (lane == 0) ptx::mbarrier_arrive(smem + kEmpty + 8 * (k % kStages))") + WAIT_1,
        (AFTER_READ,),
    ),
    "a full stage is not waited for": Bug(
        line("ptx::mbarrier_wait_parity(smem + kFull + 8 * stage, k / kStages & 1)"), "", (NEVER_WRITTEN,)
    ),
    "an empty stage is not waited for": Bug(
        line("ptx::mbarrier_wait_parity(empty, (round & 1) ^ 1)"), "", (OVER_COPY,)
    ),
    "more bytes are expected than come": Bug("(full, kStageBytes)", "(full, kStageBytes + 16)", ("deadlock",)),
    "fewer bytes are expected than come": Bug(
        "(full, kStageBytes)", "(full, kABytes)", ("mbarrier: more bytes than expected",)
    ),
    "the full barrier's parity is wrong": Bug(
        "k / kStages & 1)", "(k / kStages & 1) ^ 1)", ("deadlock", IN_FLIGHT, NEVER_WRITTEN)
    ),
    "the empty barrier's parity is wrong": Bug("(round & 1) ^ 1)", "round & 1)", ("deadlock",)),
    "the empty barrier counts too few": Bug(
        INIT_EMPTY, INIT_EMPTY.replace("kConsumerWarps", "kConsumers"), (AFTER_READ, OVER_COPY)
    ),
    "the empty barrier counts too many": Bug(
        INIT_EMPTY, INIT_EMPTY.replace("kConsumerWarps", "kConsumerWarps + 1"), ("deadlock",)
    ),
    "no barrier after the mbarriers' init": Bug(
        "  ptx::bar_sync_all();\n  if (group == kConsumers)",
        "  if (group == kConsumers)",
        ("mbarrier: used without a barrier after its init", "mbarrier: not initialised"),
    ),
    "no fence after the mbarriers' init": Bug(
        line("ptx::fence_mbarrier_init()"), "", ("mbarrier: no fence.mbarrier_init",)
    ),
    "stages overlap": Bug("stage * kStageBytes;\n", "stage * (kStageBytes - 1024);\n", (OVER_COPY, NEVER_WRITTEN)),
    "the filter's taps are transposed": Bug(
        "(tap % kTaps),\n                            static_cast<uint16_t>(tap / kTaps)",
        "(tap / kTaps),\n                            static_cast<uint16_t>(tap % kTaps)",
        (WRONG,),
    ),
    "an mbarrier is initialised twice": Bug(
        line("ptx::mbarrier_inval(base + kFull)"),
        "",
        ("mbarrier: initialised twice",),
        "mbarrier.cu",
        "mbarrier_ring-7",
    ),
    # wgmma
    "no wgmma.fence": Bug(line("ptx::wgmma_fence()"), "", ("wgmma: no wgmma.fence",)),
    "the last multiplications are not waited for": Bug("  }\n  ptx::wgmma_wait_group<0>();\n", "  }\n", (TOUCHED,)),
    "accumulators are touched before the wait": Bug(WAIT_1, line("sum[0] += 0") + WAIT_1, (TOUCHED,)),
    "a descriptor has another swizzle than its map": Bug(
        DESCRIPTOR_B, DESCRIPTOR_B.replace("128", "64"), ("wgmma: bad descriptor",)
    ),
    "a descriptor's rows overlap": Bug(
        DESCRIPTOR_B, DESCRIPTOR_B.replace("32)", "32, 16, 512)"), ("wgmma: bad descriptor",)
    ),
    "a descriptor forgets the depth": Bug(DESCRIPTOR_B, "smem_descriptor<Swizzle::k128>(b)", (WRONG,)),
    "one warp multiplies something else": Bug(
        DESCRIPTOR_B,
        "smem_descriptor<Swizzle::k128>(b + (threadIdx.x / 32 == 2 ? 0 : i) * 32)",
        ("wgmma: warps of a warpgroup disagree",),
    ),
    "registers of a are written before the wait": Bug(
        "  ptx::wgmma_wait_group<0>();\n",
        "  fragment[0][1] ^= 1;\n  ptx::wgmma_wait_group<0>();\n",
        ("wgmma: registers of a written before the wait",),
        "wgmma.cu",
        WGMMA,
    ),
    "operands are written without fence.proxy.async": Bug(
        "  ptx::fence_proxy_async();\n", "", ("no fence.proxy.async",), "wgmma.cu", WGMMA
    ),
    # TMA stores
    "the output is written without its swizzle": Bug("(piece ^ row % 8) * 16", "piece * 16", (WRONG,)),
    "a store without fence.proxy.async": Bug("  ptx::fence_proxy_async();\n", "", ("no fence.proxy.async",)),
    "a store without a barrier": Bug(
        "  ptx::bar_sync(1 + static_cast<int>(consumer), 128);\n", "", ("race: read after write", NEVER_WRITTEN)
    ),
    "the block ends while its store reads": Bug(line("ptx::bulk_wait_group<0>()"), "", ("TMA: exit before the wait",)),
    "a store is not committed": Bug(line("ptx::bulk_commit_group()"), "", ("TMA: exit before the wait",)),
    "a store's source is written again too early": Bug(
        line("if (elected) ptx::bulk_wait_group_read<0>()"), "", (AFTER_READ,), "tma.cu", "tma_store_2d-64x16-128"
    ),
}


@pytest.fixture(scope="module")
def planted():
    """Compiles the bugs in the background, in the order in which they are tested."""
    emulator.load()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        plants = {name: Plant(bug.file, bug.old, bug.new) for name, bug in BUGS.items()}
        yield {name: pool.submit(emulator.load_planted, plant) for name, plant in plants.items()}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(planted, name):
    bug, case, module = BUGS[name], CASES[BUGS[name].case], planted[name].result()
    for schedule in emulator.SCHEDULES:
        output, report = emulator.run(module, case, schedule)
        found = {hazard for hazard, _ in report["hazards"]} | ({WRONG} if case.mismatch(output) else set())
        assert found & set(bug.caught), f"{schedule}: {sorted(found)}"
