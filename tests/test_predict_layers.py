"""benchmarks.predict_layers: docs/kernels shows what it says."""

from pathlib import Path

from benchmarks import predict_layers

DOCS = Path(__file__).resolve().parents[1] / "docs" / "kernels"


def test_documented_tables_are_up_to_date(capsys):
    predict_layers.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 * 2 + 12 + 8
    documented = [
        line for name in ("bn_train_cuda", "sm90_conv_fwd") for line in (DOCS / f"{name}.md").read_text().splitlines()
    ]
    assert [line for line in lines if line not in documented] == []


def test_the_fastest_of_a_row_is_bold():
    cells = predict_layers.statistics_row(128, 128, 3, 28).split("|")[2:-1]
    times = [float(cell.strip(" *")) for cell in cells]
    assert ["**" in cell for cell in cells] == [time == min(times) for time in times]
