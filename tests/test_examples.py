"""The examples that need other libraries run."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("name", "libraries", "fused"),
    [
        ("timm_resnet", ["timm"], "17 converted"),
        ("detection", ["torchvision"], "16 converted"),
        ("detr_backbone", ["transformers", "timm"], " converted"),
        ("own_block", [], "1 eager"),
    ],
)
def test_example_runs(name, libraries, fused, capsys):
    for library in libraries:
        pytest.importorskip(library)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "failed" not in printed
    assert fused in printed
