"""Which identity BasicBlocks run in one launch, and how their images are tiled. Needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resnet_fused import ops, plans
from resnet_fused.cli._gpus import GPUS

HEADER = (Path(__file__).parents[1] / "csrc/cuda/kernels/sm90/block_fwd.h").read_text()
TABLE = re.search(r"kBlockFwdShapes\[\] = \{(.*?)\};", HEADER, re.S)[1]
SHAPES = {int(row[0]): [int(v) for v in row] for row in (r.split(",") for r in re.findall(r"\{([\d, ]+)\}", TABLE))}
ENGINE = "RESNET_FUSED_CUDA_ENGINE"


@pytest.fixture(autouse=True)
def _planned(monkeypatch):
    monkeypatch.delenv(ENGINE, raising=False)


def explain(n=1, c=64, h=56, w=56, dtype="bfloat16", gpu="h200", aligned=True):
    return plans.read(ops.explain_cuda_block([n, c, h, w], dtype, aligned, True, GPUS[gpu]))


BLOCK, TWO = "sm90/block_fwd", "two launches"


@pytest.mark.parametrize("channels", SHAPES)
def test_block_kernel_is_planned_where_it_is_predicted_to_win(channels):
    """On a GPU where the kernel is verified (csrc/cuda/plan/trust_table.cpp)."""
    plan = explain(1, channels)
    assert plan.kernel == BLOCK
    assert plan.text.startswith(f"sm90:block {channels}: ")
    plan = explain(32, channels)
    assert plan.kernel == TWO
    (own,) = plan.rejected
    assert (own.kernel, own.fields["why"]) == (BLOCK, "slower")
    assert own.fields["microseconds"] > plan.fields["microseconds"]


@pytest.mark.parametrize("channels", SHAPES)
def test_block_kernel_wins_at_batch_1_with_sm90(monkeypatch, channels):
    monkeypatch.setenv(ENGINE, "sm90")
    plan = explain(c=channels, h=28, w=28)
    size, pixels = 2, 28 * 28
    assert (plan.kernel, plan.fields["dtype"]) == (BLOCK, "bfloat16")
    assert plan.fields["bytes"] == (2 * pixels * channels + 2 * 9 * channels**2) * size
    (two,) = plan.rejected
    assert two.kernel == TWO
    assert plan.fields["microseconds"] < two.fields["microseconds"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (dict(c=72), "it has 72 channels; "),
        (dict(gpu="a100"), "the GPU is sm_80; wgmma and TMA need sm_90a"),
        (dict(dtype="float32"), "the kernel takes float16 and bfloat16"),
        (dict(aligned=False), "a tensor is not 16-byte aligned"),
        (dict(n=0), "the output is empty"),
    ],
)
@pytest.mark.parametrize("engine", ["sm90", "sm90:block"])
def test_unsupported_blocks_have_a_reason(monkeypatch, change, sentence, engine):
    monkeypatch.setenv(ENGINE, engine)
    plan = explain(**change)
    assert plan.kernel == TWO
    (why,) = plan.rejected
    assert why.kernel == BLOCK
    assert why.reason.startswith(sentence)


def test_other_engines_leave_out_the_block_kernel(monkeypatch):
    for engine in ("torch", "sm80", "sm80:64x64", "sm90:256x64"):
        monkeypatch.setenv(ENGINE, engine)
        plan = explain()
        assert plan.kernel == TWO
        assert [(r.kernel, r.reason) for r in plan.rejected] == [(BLOCK, f"{ENGINE} is {engine}")]
    monkeypatch.setenv(ENGINE, "sm90:block")
    plan = explain(n=256)
    assert plan.kernel == BLOCK
    assert [(r.kernel, r.reason) for r in plan.rejected] == [(TWO, f"{ENGINE} is sm90:block")]
    geometry = ([1, 64, 8, 8], [64, 64, 3, 3], [1, 1], [1, 1], [1, 1], 1, "bfloat16", "plain", [], [1, 1])
    convolution = plans.read(ops.explain_cuda(*geometry, False, True, True, GPUS["h200"]))
    assert convolution.fields["engine"] in ("sm90", "sm90:rows"), "convolutions: any tile"
    monkeypatch.setenv(ENGINE, "sm90:blocks")
    with pytest.raises(RuntimeError, match="sm90:blocks; one of all, torch, sm80, sm90, sm90:rows, sm90:block, "):
        explain()


def tiling(monkeypatch, n, c, h, w):
    monkeypatch.setenv(ENGINE, "sm90:block")
    fields = explain(n, c, h, w).fields
    return fields["tiles"], fields["tile_m"], fields["tile_n"], fields["smem"]


@pytest.mark.parametrize("channels", SHAPES)
def test_tiles_cover_the_image_and_fit_in_memory(monkeypatch, channels):
    _, first, second, patch, middle, *_ = SHAPES[channels]
    for h in (1, 2, 7, 14, 28, 33, 56, 100):
        for w in (1, 3, 7, 14, 28, 31, 56, 224):
            tiles, rows, columns, smem = tiling(monkeypatch, 3, channels, h, w)
            assert tiles == 3 * -(-h // rows) * -(-w // columns)
            pitch = columns + 4
            assert (rows + 1) * pitch + columns + 2 <= first
            assert (rows - 1) * pitch + columns <= second
            assert first + 2 * pitch + 2 <= patch
            assert second + 2 * pitch + 2 <= middle
            assert smem <= 227 << 10


def test_imagenet_stages_are_tiled_evenly(monkeypatch):
    assert tiling(monkeypatch, 1, 64, 56, 56)[:3] == (48, 7, 10)
    assert tiling(monkeypatch, 1, 128, 28, 28)[:3] == (20, 6, 7)
