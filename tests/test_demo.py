"""A small run of the demo: it writes its files, and fails when a check fails."""

import json
import math

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

from resnet_fused import models
from resnet_fused.cli import demo
from resnet_fused.cli.demo import digits, numerics, photos, report, speed
from resnet_fused.cli.demo.settings import Settings, full, quick

CPU = torch.device("cpu")
TINY = Settings(CPU, ("resnet18",), batch=4, size=64, compile=False, rounds=2, epochs=6, omitted=("nearly all",))


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new"
    return demo.run(TINY, out), out


def test_writes_table_json_and_chart(tiny_run):
    status, out = tiny_run
    assert status == 0
    stored = json.loads((out / "demo.json").read_text())
    assert stored["failures"] == []
    assert stored["digits"]["accuracy_fused"] >= digits.TARGET
    assert stored["digits"]["same_predictions"] == stored["digits"]["images"] == 450
    rows = stored["inference"]
    assert [(r["dtype"], r["variant"]) for r in rows] == [
        (dtype, variant)
        for dtype in ("float32", "bfloat16")
        for variant in (speed.EAGER, speed.CHANNELS_LAST, speed.FUSED)
    ]
    assert all(r["images_per_second"] > 0 and r["rounds"] == 2 for r in rows)
    text = (out / "demo.md").read_text()
    assert text.count("| resnet18 |") == 6
    assert "nearly all" in text
    assert "All checks passed." in text
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")


def test_machine_is_recorded(tiny_run):
    machine = json.loads((tiny_run[1] / "demo.json").read_text())["machine"]
    assert {"date", "device", "torch", "python", "onednn", "commit"} <= machine.keys()


def test_untrained_digits_fail_and_threads_are_restored():
    torch.set_num_threads(2)
    result = digits.run(CPU, epochs=1)
    assert torch.get_num_threads() == 2
    assert result.accuracy_eager < digits.TARGET
    assert "97% expected" in result.failures()[0]


def test_a_wrong_fused_model_fails(monkeypatch, tmp_path):
    """An error larger than eager's is a failure."""

    def convert(model):
        with torch.no_grad():
            model.fc.bias += 1
        return model

    monkeypatch.setattr("resnet_fused.convert", convert)
    rows = speed.compare("small", models.small_resnet().eval(), photos.crops(2, 32), TINY, lambda done: None)
    assert "the fused error" in rows[-1].failures()[0]
    assert not any(row.failures() for row in rows[:-1])


def test_failed_compile_is_a_row_with_a_reason(monkeypatch):
    def broken(model):
        raise RuntimeError("no C++ compiler\nsecond line")

    monkeypatch.setattr(torch, "compile", broken)
    settings = Settings(CPU, compile=True, rounds=1)
    rows = speed.compare("small", models.small_resnet().eval(), photos.crops(2, 32), settings, lambda done: None)
    assert [r.variant for r in rows] == list(speed.VARIANTS)
    assert rows[2].note == "failed: no C++ compiler"
    assert report.cells(rows, 2)[2][3] == "failed"
    assert report.notes(rows) == ["torch.compile, small float32: failed: no C++ compiler"]


def test_torch_compile_is_omitted_if_time_has_run_out():
    settings = Settings(CPU, rounds=1, compile_within=10)
    x, model = photos.crops(2, 32), models.small_resnet().eval()
    rows = speed.compare("small", model, x, settings, lambda done: None, elapsed=11)
    assert report.cells(rows, 2)[2][2:4] == ("torch.compile", "omitted")
    assert report.notes(rows) == ["torch.compile, small float32: omitted: 11 s had passed"]


def test_time_budget_ends_the_rounds():
    settings = Settings(CPU, compile=False, rounds=1000, seconds=0.0)
    rows = speed.compare("small", models.small_resnet().eval(), photos.crops(2, 32), settings, lambda done: None)
    assert {r.rounds for r in rows} == {1}


def test_crops_are_repeatable_and_normalised():
    x = photos.crops(6, 100)
    assert x.shape == (6, 3, 100, 100)
    assert torch.equal(x, photos.crops(6, 100))
    assert len({float(crop.sum()) for crop in x}) == 6
    assert x.min() >= -2.2
    assert x.max() <= 2.7


def test_network_has_statistics_of_its_input():
    x = photos.crops(4, 64)
    model = photos.network("resnet18", x)
    assert not model.training
    assert model.bn1.momentum == 0.1
    with torch.no_grad():
        y = model.conv1(x)
    torch.testing.assert_close(model.bn1.running_mean, y.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_relative_error_and_its_bound():
    reference = torch.tensor([[1.0, -4.0]], dtype=torch.float64)
    assert numerics.relative_error(torch.tensor([[1.0, -3.0]]), reference) == 0.25
    assert math.isnan(numerics.relative_error(torch.tensor([[1.0, math.nan]]), reference))
    assert numerics.error_bound(0.25, torch.bfloat16) == 0.5 + 4 * 2**-7


def test_nan_is_a_failure():
    row = speed.Row("m", "float32", speed.FUSED, 1.0, 1, error=math.nan, error_bound=1.0)
    assert row.failures()


def test_unexplained_flips_counts_clear_ones_only():
    eager = torch.tensor([[1.0, 0.0], [1.0, 0.99], [0.0, 1.0]])
    flipped = eager.flip(1)
    assert numerics.unexplained_flips(eager, flipped, 0.1) == 2
    assert numerics.unexplained_flips(eager, eager, 0.1) == 0


def test_quick_reports_what_it_omits():
    assert set(quick(CPU).models) < set(full(CPU).models)
    assert full(CPU).compile
    assert not quick(CPU).compile
    assert any("torch.compile" in what for what in quick(CPU).omitted)
