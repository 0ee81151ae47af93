"""The chart in the README shows the committed results."""

import re
from pathlib import Path

from benchmarks import chart

ROOT = Path(__file__).parents[1]


def test_chart_shows_the_committed_results(tmp_path):
    chart.draw(tmp_path / "speed.svg")
    shown, drawn = (re.findall(r">([^<>]+)</text>", file.read_text()) for file in (chart.FILE, tmp_path / "speed.svg"))
    assert shown == drawn, "python -m benchmarks.chart draws it again"
    for groups in (chart.on_gpu(), *map(chart.on_cpu, chart.CPUS.values())):
        for group in groups.values():
            assert {f"{ratio:.2f}" for ratio in chart.ratios(group).values()} <= set(shown)


def test_ratios_are_over_eager():
    assert chart.ratios({chart.EAGER: 2.0, chart.COMPILED: 3.0, chart.OURS: 5.0}) == {
        chart.COMPILED: 1.5,
        chart.OURS: 2.5,
    }


def test_readme_shows_the_chart():
    assert f"({chart.FILE.relative_to(ROOT).as_posix()})" in (ROOT / "README.md").read_text()
