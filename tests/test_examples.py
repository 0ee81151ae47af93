"""Every example runs."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
# Libraries that an example needs, and part of what it prints.
SPECIAL = {
    "timm_resnet": (["timm"], "17 converted"),
    "detection": (["torchvision"], "16 converted"),
    "detr_backbone": (["transformers", "timm"], " converted"),
    "own_block": ([], "1 eager"),
}


def test_special_examples_exist():
    assert {path.stem for path in EXAMPLES} >= set(SPECIAL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example, capsys, monkeypatch):
    libraries, expected = SPECIAL.get(example.stem, ([], ""))
    for library in libraries:
        pytest.importorskip(library)
    monkeypatch.setattr("sys.argv", [str(example)])  # not pytest's arguments
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed
    assert "failed" not in printed
    assert expected in printed
