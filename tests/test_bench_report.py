"""``bench`` turns pytest-benchmark's JSON into Markdown and PNG. Nothing is measured here."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from resnet_fused.cli import _bench_tables as tables
from resnet_fused.cli import bench
from resnet_fused.cli._bench_results import load
from resnet_fused.cli._errors import CommandError

LABELS = {"eager": "eager", "openvino": "OpenVINO", "ours": "resnet_fused"}
MACHINE = {
    "date": "2026-01-02T03:04:05+00:00", "device": "Some CPU, 2 threads", "cpu": "Some CPU, 2 threads",
    "cpu_capability": "AVX512", "threads": 2, "torch": "2.13.0", "cuda": None, "onednn": "3.1",
    "python": "3.11.7", "resnet_fused": "0.1", "commit": "0123456789ab", "load_before": 0.25,
    "command": "pytest benchmarks --benchmark-only", "packages": {"openvino": "2026.1"},
}  # fmt: skip


def _benchmark(contender: str, seconds: float, dtype: str, **changes: Any) -> dict[str, Any]:
    info = {
        "kind": "model", "workload": "ResNet-18", "dtype": dtype, "batch": 8, "contender": contender,
        "label": LABELS[contender], "note": "", "images_per_s": 8 / seconds, "tflops": 0.5, "gbytes_per_s": 3.0,
        "error": 1e-5, "error_limit": 3e-5, "peak_bytes": 5 * 2**20, "unavailable": {"ONNX Runtime": "not here"},
    }  # fmt: skip
    stats = {"median": seconds, "iqr": seconds / 100, "min": seconds, "rounds": 7}
    return {"extra_info": info | changes, "stats": stats}


def _document(*benchmarks: dict[str, Any], date: str = "2026-01-02") -> dict[str, Any]:
    return {
        "datetime": date,
        "machine_info": {"resnet_fused": MACHINE},
        "benchmarks": list(benchmarks),
    }


def _three(dtype: str, eager: float, openvino: float, ours: float) -> list[dict[str, Any]]:
    return [
        _benchmark("eager", eager, dtype),
        _benchmark("openvino", openvino, dtype),
        _benchmark("ours", ours, dtype),
    ]


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    """In fp32 resnet_fused is fastest, in bf16 OpenVINO."""
    path = tmp_path / "run.json"
    document = _document(*_three("fp32", 0.2, 0.15, 0.1), *_three("bf16", 0.08, 0.04, 0.05))
    path.write_text(json.dumps(document))
    return path


def test_winner_is_bold_and_loss_is_marked(results_file: Path) -> None:
    [results] = load([results_file])
    pages = {grid.title: grid.markdown() for grid in tables.speed_grids(results)}
    assert "|ResNet-18|8|40.0|53.3|**80.0**|" in pages["Models, fp32: images per second"]
    assert "|ResNet-18|8|100|**200**|160|" in pages["Models, bf16: images per second"]
    ratios = pages["Models, bf16: how many times as fast resnet_fused is as ..."]
    assert "|ResNet-18|8|1.60|▼ 0.80|" in ratios
    assert tables.losses(results) == ["ResNet-18 bf16 batch 8: OpenVINO is 1.25 times as fast"]


def test_report_names_its_source_and_missing_contenders(results_file: Path) -> None:
    [results] = load([results_file])
    text = bench.report(results, ["models-fp32.png"], notes="Because of the tail.")
    for expected in (
        "# Benchmarks on Some CPU, 2 threads",
        "2026-01-02T03:04:05+00:00, commit 0123456789ab: `pytest benchmarks --benchmark-only`",
        "torch 2.13.0",
        "openvino 2026.1; load average before: 0.2",
        "![models-fp32](models-fp32.png)",
        "Because of the tail.",
        "- ONNX Runtime: not here (2 workloads)",
        "|ResNet-18 fp32 batch 8|0.500|3.00|1.0|7|5.00|n/a|5.00|1e-05|1e-05|3e-05|",
    ):
        assert expected in text


def test_report_says_when_there_are_no_losses(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(_document(*_three("fp32", 0.2, 0.15, 0.1))))
    [results] = load([path])
    assert "Nowhere in this run." in bench.report(results, [])


def test_report_says_when_the_machine_was_busy(results_file: Path) -> None:
    [results] = load([results_file])
    assert bench.BUSY not in bench.report(results, [])
    results.runs[0]["load_before"] = 1.5  # of 2 threads: busy
    assert bench.BUSY in bench.report(results, [])


def test_report_without_ours(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(_document(_benchmark("eager", 0.2, "fp32"))))
    [results] = load([path])
    assert "resnet_fused did not run" in bench.report(results, [])
    assert bench.write(results, tmp_path).exists()


def test_latency_is_tabulated_at_batch_1(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    enough = _benchmark("eager", 0.02, "fp32", batch=1, p50_ms=20.0, p99_ms=31.4)
    too_few = _benchmark("ours", 0.01, "fp32", batch=1, p50_ms=10.0, p99_ms=None)
    path.write_text(json.dumps(_document(*_three("fp32", 0.2, 0.15, 0.1), enough, too_few)))
    [results] = load([path])
    pages = {grid.title: grid.markdown() for grid in tables.speed_grids(results)}
    page = pages["Models, fp32, batch 1: p50 / p99, ms per call"]
    assert page.splitlines()[-1] == "|ResNet-18|20.0 / 31.4|10.0 / n/a|"
    assert "|ResNet-18|8|40.0|53.3|**80.0**|" in pages["Models, fp32: images per second"]


def test_later_run_replaces_whole_rows(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(_document(*_three("fp32", 0.2, 0.15, 0.1), date="2026-01-01")))
    new.write_text(json.dumps(_document(_benchmark("ours", 0.3, "fp32"), date="2026-01-02")))
    [results] = load([new, old])
    [row] = results.rows
    assert list(row.entries) == ["ours"]  # times of different runs are not comparable
    assert row.entries["ours"].median_ms == pytest.approx(300)
    assert len(results.runs) == 2


def test_command_writes_report_and_charts(
    results_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "some-cpu-2-threads"
    folder.mkdir(parents=True)
    (folder / "notes.md").write_text("## Why\n\nKept.")
    assert bench.main(_parse("--json", str(results_file), "--out", str(tmp_path / "out"))) == 0
    assert "Models, fp32: images per second" in capsys.readouterr().out
    charts = {path.name for path in folder.glob("*.png")}
    assert charts == {
        "models-fp32.png",
        "models-fp32-ratios.png",
        "models-bf16.png",
        "models-bf16-ratios.png",
    }
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "Kept." in text
    assert all(f"]({chart})" in text for chart in charts)


def test_missing_results_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CommandError, match="no results under"):
        bench.main(_parse("--out", str(tmp_path)))


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_foreign_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(CommandError, match=r"other\.json"):
        load([path])


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1234"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.12345, "0.123"), (0, "0.00")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert tables.number(value) == text


def _parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(argv)
