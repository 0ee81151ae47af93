"""benchmarks.predict and predict_layers: the committed docs/predictions.md is their output."""

from benchmarks import predict, predict_layers


def test_committed_page_is_up_to_date():
    assert predict.FILE.read_text() == predict.page(), "python -m benchmarks.predict --write"


def test_fastest_of_a_row_is_bold():
    cells = predict_layers.statistics_row(128, 128, 3, 28).split("|")[2:-1]
    times = [float(cell.strip(" *")) for cell in cells]
    assert ["**" in cell for cell in cells] == [time == min(times) for time in times]
