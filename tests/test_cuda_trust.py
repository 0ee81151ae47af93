"""The trust table: its rows, its effect on plans, and that no op bypasses it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import op_layer
from cuda_on_cpu.host_calls import calls
from plans import read

from resnet_fused import ops, plans
from resnet_fused.cli import info
from resnet_fused.cli._gpus import GPUS

ROOT = Path(__file__).parents[1]
CUDA = ROOT / "csrc" / "cuda"
ROW = re.compile(r'\{KernelFamily::(\w+), (\d+), "(\d{4}-\d\d-\d\d)", "([0-9a-f]{7,40})",\s*"([^"]+)"\}')


def table():
    """Returns the rows of trust_table.cpp: family, capability, date, commit, report."""
    text = (CUDA / "plan" / "trust_table.cpp").read_text()
    rows = text[text.index("rows = ") : text.index("return rows")]
    assert len(ROW.findall(rows)) == rows.count("KernelFamily::"), "a row that is not written like the others"
    return ROW.findall(rows)


def test_each_row_has_a_passing_report():
    header = (CUDA / "plan" / "trust.h").read_text()
    enumerators = re.findall(r"X\((k\w+), \"", header)
    names = [family.name for family in plans.families(ops.explain_trust(90))]
    for family, arch, _, commit, report in table():
        assert report.startswith("benchmarks/results/"), (family, arch)
        found = json.loads((ROOT / report).read_text())
        assert found["environment"]["built_from"] == commit, f"{report} is not of the commit that the table names"
        assert found["environment"]["device"]["numbers"][0] == int(arch)
        name = names[enumerators.index(family)]
        statuses = {result["status"] for result in found["results"] if result["family"] == name}
        assert statuses == {"pass"}, f"{report}: {name} is {statuses}"


def test_library_matches_the_trust_table():
    archs = {numbers[0] for numbers in GPUS.values()} | {int(row[1]) for row in table()}
    found = [family for arch in archs for family in plans.families(ops.explain_trust(arch)) if family.verified]
    assert sorted(family.report for family in found) == sorted(row[4] for row in table())
    assert all(family.words.startswith("verified on sm_") for family in found)
    assert ops.explain_trust(90)[0].splitlines() == [
        f"{family.name}: {family.words}" for family in plans.families(ops.explain_trust(90))
    ]


@pytest.fixture
def explain(library, monkeypatch):
    """Explains the plan of a 3x3 convolution at 56x56, given the rows of the trust table."""

    def plan(rows, engine="", channels=64, mode="plain", gpu="h200"):
        library.set_verified(rows)
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", engine)
        on_layer = getattr(torch.ops, op_layer.NAME).explain_cuda.default
        x, weight = [32, channels, 56, 56], [channels, channels, 3, 3]
        rest = ("bfloat16", mode, [], [1, 1], False, True, True, GPUS[gpu])
        return read(on_layer(x, weight, [1, 1], [1, 1], [1, 1], 1, *rest))

    yield plan
    library.set_verified([])


def test_unverified_sm90_is_not_planned(explain):
    plan = explain([])
    assert plan.engine in ("sm80", "torch")
    unverified = [r for r in plan.rejected if r.why == "unverified"]
    assert {r.engine for r in unverified} == {"sm90", "sm90:rows"}
    for r in unverified:
        assert r.reason.startswith(f"no GPU has run it yet; RESNET_FUSED_CUDA_ENGINE={r.engine} enables it; ")
        assert r.microseconds > 0
    others = explain([("sm90/conv_rows", 80), ("sm80/conv_fwd", 90)])
    assert others.engine == plan.engine
    why = {r.why for r in others.rejected if r.engine.startswith("sm90")}
    assert why == {"unverified"}, "other GPUs, other kernels"
    assert all(reason.startswith("no sm_90 has run it yet") for reason in others.why_not("sm90:rows"))


@pytest.mark.parametrize(
    ("family", "channels", "mode", "engine"),
    [
        ("sm90/conv_rows", 64, "plain", "sm90:rows"),
        ("sm90/conv_sm90", 256, "plain", "sm90"),
        ("sm90/conv_sm90_stats", 256, "statistics", "sm90"),
    ],
)
def test_verified_family_is_planned_by_default(explain, family, channels, mode, engine):
    rows = [(family, 90)]
    plan = explain(rows, channels=channels, mode=mode)
    assert plan.engine == engine
    without = explain([], channels=channels, mode=mode)
    assert without.engine in ("sm80", "torch")
    assert plan.microseconds <= without.microseconds
    for change in (dict(gpu="a100"), dict(engine="sm80"), dict(engine="torch")):
        assert explain(rows, channels=channels, mode=mode, **change).engine in ("sm80", "torch")


def test_faster_of_two_verified_families_is_planned(explain):
    both = explain([("sm90/conv_rows", 90), ("sm90/conv_sm90", 90)])
    assert both.engine in ("sm90", "sm90:rows")
    slower = [r for r in both.rejected if r.why == "slower"]
    assert {"sm90", "sm90:rows"} <= {r.engine for r in slower}
    assert all(r.microseconds >= both.microseconds for r in slower)
    rows, conv = explain([("sm90/conv_rows", 90)]), explain([("sm90/conv_sm90", 90)])
    assert (rows.engine, conv.engine) == ("sm90:rows", "sm90")
    for plan, other in ((rows, "sm90"), (conv, "sm90:rows")):
        assert {r.why for r in plan.rejected if r.engine == other} == {"unverified"}, f"{other} does not compete"


def test_verified_block_fwd_is_planned(library, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "")
    explain = getattr(torch.ops, op_layer.NAME).explain_cuda_block.default
    args = ([1, 64, 56, 56], "bfloat16", True, True, GPUS["h200"])
    plan = plans.read(explain(*args))
    assert plan.kernel == "two launches"
    (block,) = plan.rejected
    assert block.reason.startswith("no GPU has run it yet; RESNET_FUSED_CUDA_ENGINE=sm90:block enables it")
    library.set_verified([("sm90/block_fwd", 90)])
    try:
        assert plans.read(explain(*args)).kernel == "sm90/block_fwd"
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
        plan = plans.read(explain(*args))
        assert plan.kernel == "two launches"
        assert [r.reason for r in plan.rejected] == ["RESNET_FUSED_CUDA_ENGINE is sm80"]
    finally:
        library.set_verified([])


def test_ops_launch_through_the_check():
    """first_use.cpp launches passes and makes all plans; ops launch only what was planned."""
    planned = {
        "conv.cpp": {"launch_bn_finish"},  # and, through CONV_KERNELS, the planned kernel
        "basic_block.cpp": {"launch_block_fwd"},
    }
    kernels = set(re.findall(r"\bvoid (launch_\w+)\(", (CUDA / "kernels" / "kernels.h").read_text()))
    convolutions = re.findall(r"X\(k\w+, (\w+)\)", (CUDA / "kernels" / "conv.h").read_text())
    kernels = {*kernels, *(f"launch_{kernel}" for kernel in convolutions)} - {"launch_"}
    assert len(kernels) > 10
    for path in sorted(CUDA.rglob("*.cpp")):
        if path.name == "first_use.cpp":
            continue
        text = path.read_text()
        launched = {kernel for kernel in kernels if re.search(rf"\b{kernel}\b", text)}
        assert launched == planned.get(path.name, set()), path.name
        assert ("launch_##" in text) == (path == CUDA / "ops" / "conv.cpp"), f"{path.name} launches a list of kernels"
        assert "cached_" not in text, f"{path.name} plans without asking whether the kernel may run"
        assert "TORCH_BOX" not in text, f"{path.name} registers an op that is not checked"


@pytest.mark.parametrize("check", ["first", "0"])
@torch.no_grad()
def test_trusted_kernel_allocates_nothing(host, check):
    families = [family.name for family in plans.families(ops.explain_trust(90))]
    host.set_device(*GPUS["h200"])
    host.set_verified([(family, 90) for family in families])
    counts = {}
    try:
        for mode in (check, "0"):
            host.set_check(mode)
            for engine in ("sm80:64x64:1", "sm90:128x128", "sm90:rows", "sm90:block"):
                host.set_engine(engine)
                for name, (op, args) in calls(channels=64, size=8).items():
                    op(*args)
                    before = host.allocations()
                    op(*args)
                    counts.setdefault((name, engine), []).append(host.allocations() - before)
    finally:
        host.set_check("0")
        host.set_verified([])
    assert all(first == second for first, second in counts.values()), counts


def test_info_lists_verified_families(monkeypatch):
    assert info._trust(80) == "none of 13 kernel families; the first use of each kernel is checked against eager"
    rows = [plans.Family("a/b", "benchmarks/results/x.json", "verified"), plans.Family("c/d", "", "not yet")]
    monkeypatch.setattr(info.plans, "families", lambda explained: rows)
    assert info._trust(90) == "a/b; for the others (c/d) the first use is checked against eager"
    monkeypatch.setattr(info.plans, "families", lambda explained: rows[:1])
    assert info._trust(90) == "all 1 kernel families"


@pytest.mark.parametrize("capability", [-1, 2**31, 2**32 + 90])
def test_capability_out_of_range_is_an_error(capability):
    with pytest.raises(RuntimeError, match=rf"capability is {capability}; 10 \* major \+ minor expected"):
        ops.explain_trust(capability)
