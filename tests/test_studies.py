"""The studies: what they share, and each in its short form."""

import json
import pickle
import re
from pathlib import Path

import numpy
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("mlxtend")

import studies
from resnet_fused.cli import main
from studies.common import data, publish
from studies.common.report import Report
from studies.common.training import Curve

ROOT = Path(__file__).parents[1]


def curve(final, early=(2.3, 2.1)):
    return Curve((1.0,), (final,), (final,), early)


def test_curves_of_one_distribution_agree():
    report = Report("data")
    report.curves("plain", [curve(0.10), curve(0.12)], [curve(0.11), curve(0.12)])
    assert [a.verdict for a in report.agreements] == ["yes", "cannot tell"] and report.failures() == []
    report.curves("residual", [curve(0.010), curve(0.012)], [curve(0.011), curve(0.012)])
    assert [a.verdict for a in report.agreements[2:]] == ["yes", "yes"]


@pytest.mark.parametrize(
    "fused", [curve(0.1, early=(2.3, 2.2)), curve(0.3), curve(float("nan")), curve(0.1, early=(2.3, float("nan")))]
)
def test_curves_that_differ_fail(fused):
    report = Report("data")
    report.curves("plain", [curve(0.10), curve(0.12)], [fused, fused])
    assert len(report.failures()) == 1
    assert "eager and fused differ" in report.failures()[0]


def test_where_eager_is_inexact_float64_decides():
    eager, exact = [curve(0.1, early=(2.3, 2.05))], [(2.3, 2.1)]
    for second, failures in ((2.2, 0), (2.3, 1)):
        report = Report("data")
        report.curves("plain", eager, [curve(0.1, early=(2.3, second))], finished=False, exact=exact)
        assert len(report.failures()) == failures


@pytest.mark.parametrize("fused", [[1.0, 2.01], [1.0, float("nan")]])
def test_results_of_the_same_weights_must_agree(fused):
    report = Report("data")
    report.same_weights("response", [1.0, 2.0], [1.0, 2.001])
    assert report.failures() == []
    report.same_weights("response", [1.0, 2.0], fused)
    assert len(report.failures()) == 1


def test_cifar10_is_read_from_a_folder(tmp_path):
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, name in enumerate(names):
        pixels = numpy.arange(2 * 3072, dtype=numpy.uint8).reshape(2, 3072)
        (tmp_path / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": [i, 9]}))
    loaded = data.cifar10(tmp_path)
    assert loaded.train_x.shape == (10, 3, 32, 32) and loaded.test_x.shape == (2, 3, 32, 32)
    assert loaded.train_y.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9] and loaded.test_y.tolist() == [5, 9]
    assert loaded.train_x.mean().abs() < 1e-5


def test_page_without_markers_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="must hold the lines"):
        publish.update_page(page, "text")


def test_page_keeps_what_is_written_by_hand(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{publish.BEGIN}\nold\n{publish.END}\n\nafter\n")
    publish.update_page(page, "new\n")
    assert page.read_text() == f"before\n\n{publish.BEGIN}\nnew\n{publish.END}\n\nafter\n"


@pytest.mark.parametrize("name", studies.STUDIES)
def test_page_shows_the_stored_results(name):
    """Every page has a stored, whole run of three seeds in which eager and fused networks agreed, and shows it."""
    stored = json.loads((ROOT / "studies" / "results" / name / "results.json").read_text())
    page = (ROOT / "studies" / f"{name}.md").read_text()
    assert stored["run"]["seeds"] == [0, 1, 2] and not stored["run"]["quick"]
    assert stored["agreement"] and all(row["verdict"] in ("yes", "cannot tell") for row in stored["agreement"])
    for figure in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (ROOT / "studies" / figure).exists()
    for table in stored["tables"]:
        for row in table["rows"]:
            assert f"| {' | '.join(row)} |" in page


def test_short_forms_run(tmp_path, monkeypatch):
    """All in one command: they share two worker processes."""
    monkeypatch.chdir(ROOT)
    assert main(["study", "all", "--quick", "--out", str(tmp_path)]) == 0
    for name in studies.STUDIES:
        folder = tmp_path / name
        stored = json.loads((folder / "results.json").read_text())
        assert stored["agreement"] and all(row["verdict"] in ("yes", "cannot tell") for row in stored["agreement"])
        assert (folder / "table.md").exists() and list(folder.glob("*.svg"))


def test_unknown_study_names_the_known(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["study", "degradatoin"]) == 2
    assert "choose one of degradation," in capsys.readouterr().err


def test_outside_a_checkout_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "list"]) == 2
    assert "source checkout" in capsys.readouterr().err


def test_short_forms_are_not_published(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert main(["study", "all", "--quick", "--publish"]) == 2
    assert "omit --quick" in capsys.readouterr().err
