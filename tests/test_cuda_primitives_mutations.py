"""The emulator catches mutations of kernels that use TMA, mbarriers and wgmma."""

from __future__ import annotations

import functools

from cuda_on_cpu import PRIMITIVES, Patch
from cuda_primitives import emulator
from cuda_primitives.cases import all_cases
from mutation import Mutation, each_mutation, order, value

CASES = {case.name: case for case in all_cases()}
WRONG = "a wrong result"
NEVER_WRITTEN, IN_FLIGHT = "read of shared memory that was never written", "read of shared memory with a copy in flight"
OVER_COPY, AFTER_READ = "write over a copy in flight", "race: write after read"
TOUCHED = "wgmma: accumulators touched before the wait"


def edit(kind, caught, old, new, file="conv.cu", case="conv-ragged"):
    """``caught``: hazards, or WRONG; the emulator must find at least one of them."""
    return kind(file, old, new), caught, case


def line(text: str) -> str:
    """Returns a statement as a line of conv.cu's loops."""
    return f"    {text};\n"


RELEASE = "if (k > 0 && lane == 0) ptx::mbarrier_arrive(smem + kEmpty + 8 * ((k - 1) % kStages))"
WAIT_1 = line("ptx::wgmma_wait_group<1>()")
INIT_EMPTY = "ptx::mbarrier_init(smem + kEmpty + 8 * i, kConsumerWarps)"
DESCRIPTOR_B = "smem_descriptor<Swizzle::k128>(b + i * 32)"
WGMMA = "wgmma_bf16_n64_registers_128-whole-accumulate"

MUTATIONS = {
    # mbarriers and TMA loads
    "a stage is released while it is multiplied": edit(
        order,
        (AFTER_READ,),
        WAIT_1 + line(RELEASE),
        line("if (lane == 0) ptx::mbarrier_arrive(smem + kEmpty + 8 * (k % kStages))") + WAIT_1,
    ),
    "no wait for a full stage": edit(
        order, (NEVER_WRITTEN,), line("ptx::mbarrier_wait_parity(smem + kFull + 8 * stage, k / kStages & 1)"), ""
    ),
    "no wait for an empty stage": edit(
        order, (OVER_COPY,), line("ptx::mbarrier_wait_parity(empty, (round & 1) ^ 1)"), ""
    ),
    "full barrier expects too many bytes": edit(
        order, ("deadlock",), "(full, kStageBytes)", "(full, kStageBytes + 16)"
    ),
    "full barrier expects too few bytes": edit(
        order, ("mbarrier: more bytes than expected",), "(full, kStageBytes)", "(full, kABytes)"
    ),
    "the full barrier's parity is wrong": edit(
        order, ("deadlock", IN_FLIGHT, NEVER_WRITTEN), "k / kStages & 1)", "(k / kStages & 1) ^ 1)"
    ),
    "the empty barrier's parity is wrong": edit(order, ("deadlock",), "(round & 1) ^ 1)", "round & 1)"),
    "empty barrier expects too few arrivals": edit(
        order, (AFTER_READ, OVER_COPY), INIT_EMPTY, INIT_EMPTY.replace("kConsumerWarps", "kConsumers")
    ),
    "empty barrier expects too many arrivals": edit(
        order, ("deadlock",), INIT_EMPTY, INIT_EMPTY.replace("kConsumerWarps", "kConsumerWarps + 1")
    ),
    "no barrier after the mbarriers' init": edit(
        order,
        ("mbarrier: used without a barrier after its init", "mbarrier: not initialised"),
        "  ptx::bar_sync_all();\n  if (group == kConsumers)",
        "  if (group == kConsumers)",
    ),
    "no fence after the mbarriers' init": edit(
        order, ("mbarrier: no fence.mbarrier_init",), line("ptx::fence_mbarrier_init()"), ""
    ),
    "stages overlap": edit(
        order, (OVER_COPY, NEVER_WRITTEN), "stage * kStageBytes;\n", "stage * (kStageBytes - 1024);\n"
    ),
    "the filter's taps are transposed": edit(
        value,
        (WRONG,),
        "(tap % kTaps),\n                            static_cast<uint16_t>(tap / kTaps)",
        "(tap / kTaps),\n                            static_cast<uint16_t>(tap % kTaps)",
    ),
    "an mbarrier is initialised twice": edit(
        order,
        ("mbarrier: initialised twice",),
        line("ptx::mbarrier_inval(base + kFull)"),
        "",
        "mbarrier.cu",
        "mbarrier_ring-7",
    ),
    # wgmma
    "no wgmma.fence": edit(order, ("wgmma: no wgmma.fence",), line("ptx::wgmma_fence()"), ""),
    "no wait for the last wgmmas": edit(order, (TOUCHED,), "  }\n  ptx::wgmma_wait_group<0>();\n", "  }\n"),
    "accumulators are touched before the wait": edit(order, (TOUCHED,), WAIT_1, line("sum[0] += 0") + WAIT_1),
    "descriptor and tensor map differ in swizzle": edit(
        value, ("wgmma: bad descriptor",), DESCRIPTOR_B, DESCRIPTOR_B.replace("128", "64")
    ),
    "a descriptor's rows overlap": edit(
        value, ("wgmma: bad descriptor",), DESCRIPTOR_B, DESCRIPTOR_B.replace("32)", "32, 16, 512)")
    ),
    "descriptor not advanced along the depth": edit(value, (WRONG,), DESCRIPTOR_B, "smem_descriptor<Swizzle::k128>(b)"),
    "one warp uses a different descriptor": edit(
        value,
        ("wgmma: warps of a warpgroup disagree",),
        DESCRIPTOR_B,
        "smem_descriptor<Swizzle::k128>(b + (threadIdx.x / 32 == 2 ? 0 : i) * 32)",
    ),
    "registers of a are written before the wait": edit(
        order,
        ("wgmma: registers of a written before the wait",),
        "  ptx::wgmma_wait_group<0>();\n",
        "  fragment[0][1] ^= 1;\n  ptx::wgmma_wait_group<0>();\n",
        "wgmma.cu",
        WGMMA,
    ),
    "operands are written without fence.proxy.async": edit(
        order, ("no fence.proxy.async",), "  ptx::fence_proxy_async();\n", "", "wgmma.cu", WGMMA
    ),
    # TMA stores
    "the output is written without its swizzle": edit(value, (WRONG,), "(piece ^ row % 8) * 16", "piece * 16"),
    "a store without fence.proxy.async": edit(order, ("no fence.proxy.async",), "  ptx::fence_proxy_async();\n", ""),
    "a store without a barrier": edit(
        order, ("race: read after write", NEVER_WRITTEN), "  ptx::bar_sync(1 + static_cast<int>(consumer), 128);\n", ""
    ),
    "CTA exits before its store has read shared memory": edit(
        order, ("TMA: exit before the wait",), line("ptx::bulk_wait_group<0>()"), ""
    ),
    "a store is not committed": edit(order, ("TMA: exit before the wait",), line("ptx::bulk_commit_group()"), ""),
    "store source overwritten before it is read": edit(
        order,
        (AFTER_READ,),
        line("if (elected) ptx::bulk_wait_group_read<0>()"),
        "",
        "tma.cu",
        "tma_store_2d-64x16-128",
    ),
}


def check(caught, case, module, schedule):
    output, report = emulator.run(module, CASES[case], schedule)
    found = {hazard for hazard, _ in report["hazards"]} | ({WRONG} if CASES[case].mismatch(output) else set())
    assert found & set(caught), f"{schedule}: {sorted(found)}"


FROM_CASES = [
    Mutation(
        name,
        f"tests/cuda_primitives/kernels/{e.file}",
        Patch(*e[:3], own=PRIMITIVES),
        e.schedules,
        functools.partial(check, *how),
    )
    for name, (e, *how) in MUTATIONS.items()
]


@each_mutation(FROM_CASES)
def test_mutation_is_caught(mutant, mutation):
    mutation.assert_caught(mutant)
