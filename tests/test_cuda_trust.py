"""The trust table: its rows, its effect on plans, and that no op bypasses it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import op_layer
from cuda_on_cpu.host_calls import calls

from resnet_fused import ops
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
    enumerators = re.findall(r"\w+", re.search(r"enum class KernelFamily : int32_t \{(.*?)\}", header, re.S)[1])
    names = [line.split(":")[0] for line in ops.explain_trust(90).splitlines()]
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
    said = [line for arch in archs for line in ops.explain_trust(arch).splitlines() if ": verified on" in line]
    assert sorted(line.rsplit(", ", 1)[1] for line in said) == sorted(row[4] for row in table())


@pytest.fixture
def explain(library, monkeypatch):
    """Explains the plan of a 3x3 convolution at 56x56, given the rows of the trust table."""

    def plan(rows, engine="", channels=64, mode="plain", gpu="h200"):
        library.set_verified(rows)
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", engine)
        on_layer = getattr(torch.ops, op_layer.NAME).explain_cuda.default
        x, weight = [32, channels, 56, 56], [channels, channels, 3, 3]
        rest = ("bfloat16", mode, [], [1, 1], False, True, True, GPUS[gpu])
        return on_layer(x, weight, [1, 1], [1, 1], [1, 1], 1, *rest)

    yield plan
    library.set_verified([])


def test_unverified_sm90_is_not_planned(explain):
    text = explain([])
    assert not text.startswith("sm90")
    assert re.search(r"not sm90 rows \S+: no GPU has run it yet; RESNET_FUSED_CUDA_ENGINE=sm90:rows enables it;", text)
    assert re.search(r"not sm90 \d\S+: no GPU has run it yet; RESNET_FUSED_CUDA_ENGINE=sm90 enables it;", text)
    assert explain([("sm90/conv_rows", 80), ("sm80/conv_fwd", 90)]) == text.replace(
        "sm90 rows 8x8: no GPU", "sm90 rows 8x8: no sm_90"
    ), "other GPUs, other kernels"
    assert re.search(r"not sm90 rows \S+: no sm_90 has run it yet", explain([("sm90/conv_rows", 80)]))


@pytest.mark.parametrize(
    ("family", "channels", "mode", "begin", "other"),
    [
        ("sm90/conv_rows", 64, "plain", "sm90 rows", "sm90 "),
        ("sm90/conv_sm90", 256, "plain", "sm90 ", "sm90 rows"),
        ("sm90/conv_sm90_stats", 256, "statistics", "sm90 ", "sm90 rows"),
    ],
)
def test_verified_family_is_planned_by_default(explain, family, channels, mode, begin, other):
    rows = [(family, 90)]
    text = explain(rows, channels=channels, mode=mode)
    assert text.startswith(begin), text
    assert not text.startswith(other) or other == "sm90 "
    without = explain([], channels=channels, mode=mode)
    assert not without.startswith("sm90")
    best = float(re.search(r"([\d.]+) us predicted", text)[1])
    assert best <= float(re.search(r"([\d.]+) us predicted", without)[1])
    assert not explain(rows, channels=channels, mode=mode, gpu="a100").startswith("sm90")
    assert not explain(rows, "sm80", channels, mode).startswith("sm90")
    assert not explain(rows, "torch", channels, mode).startswith("sm90")


def test_faster_of_two_verified_families_is_planned(explain):
    both = explain([("sm90/conv_rows", 90), ("sm90/conv_sm90", 90)])
    assert both.startswith("sm90 ")
    won, lost = (float(re.search(pattern, both)[1]) for pattern in (r"([\d.]+) us", r"not sm90 [^:]*: ([\d.]+) us"))
    assert won <= lost
    rows, conv = explain([("sm90/conv_rows", 90)]), explain([("sm90/conv_sm90", 90)])
    assert rows.startswith("sm90 rows")
    assert re.match(r"sm90 \d", conv)
    assert "not sm90 rows" in conv
    assert not re.search(r"not sm90 \d", rows), "conv_sm90 does not compete"


def test_verified_block_fwd_is_planned(library, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "")
    explain = getattr(torch.ops, op_layer.NAME).explain_cuda_block.default
    args = ([1, 64, 56, 56], "bfloat16", True, True, GPUS["h200"])
    assert explain(*args).startswith("two launches\n  not sm90 block: no GPU has run it yet; RESNET_FUSED_CUDA_ENGINE")
    library.set_verified([("sm90/block_fwd", 90)])
    try:
        assert explain(*args).startswith("sm90 block 64")
        monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
        assert explain(*args).startswith(
            "two launches\n  not sm90 block: RESNET_FUSED_CUDA_ENGINE names another engine"
        )
    finally:
        library.set_verified([])


def test_ops_launch_through_the_check():
    """first_use.cpp launches passes and makes all plans; ops launch only what was planned."""
    planned = {
        "ops.cpp": {"launch_conv_fwd", "launch_conv_sm90", "launch_conv_rows"},
        "train_ops.cpp": {"launch_bn_finish"},
        "backward_ops.cpp": {"launch_conv_fwd", "launch_bn_finish"},
        "block_ops.cpp": {"launch_block_fwd"},
    }
    kernels = set(re.findall(r"\bvoid (launch_\w+)\(", (CUDA / "kernels" / "kernels.h").read_text()))
    assert len(kernels) > 10
    for path in sorted(CUDA.glob("*.cpp")):
        if path.name in ("first_use.cpp", "plan_cache.cpp"):
            continue
        text = path.read_text()
        launched = {kernel for kernel in kernels if re.search(rf"\b{kernel}\b", text)}
        assert launched == planned.get(path.name, set()), path.name
        assert "cached_" not in text, f"{path.name} plans without asking whether the kernel may run"
        assert "TORCH_BOX" not in text, f"{path.name} registers an op that is not checked"


@pytest.mark.parametrize("check", ["first", "0"])
@torch.no_grad()
def test_trusted_kernel_allocates_nothing(host, check):
    families = [line.split(":")[0] for line in ops.explain_trust(90).splitlines()]
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
    lines = [
        "a/b: verified on sm_90, 2026-12-01, commit 0123abc, benchmarks/results/x.json",
        "c/d: no GPU has run it yet",
    ]
    monkeypatch.setattr(info.ops, "explain_trust", lambda arch: "\n".join(lines))
    assert info._trust(90) == "a/b; for the others (c/d) the first use is checked against eager"
    monkeypatch.setattr(info.ops, "explain_trust", lambda arch: lines[0])
    assert info._trust(90) == "all 1 kernel families"
