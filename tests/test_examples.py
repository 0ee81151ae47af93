"""Every example and the notebook run as a newcomer runs them, and what they print is true."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
NOTEBOOK = FOLDER / "quick_start.ipynb"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "utils")

# Libraries that an example needs, how many results it compares with eager, and more that it prints.
EXPECTED = {
    "compile_and_export": ([], 2, ["resnet_fused.conv_bn_act.default"]),
    "convert_timm": (["timm"], 2, ["17 converted, 0 convertible, 0 refused", "16 converted, 0 convertible, 1 refused"]),
    "convert_torchvision": (
        ["torchvision"],
        2,
        ["17 converted, 0 convertible, 0 refused", "22 converted, 0 convertible, 1 refused"],
    ),
    "convert_transformers": (
        ["transformers"],
        2,
        ["17 converted, 0 convertible, 0 refused", "14 converted, 0 convertible, 0 refused"],
    ),
    "detection": (["torchvision"], 5, ["16 converted"]),
    "detr_backbone": (["transformers", "timm"], 4, ["17 converted"]),
    "finetune_frozen_batchnorm": (["torchvision", "sklearn"], 0, ["4 fused, 0 eager", "running statistics unchanged"]),
    "own_block": ([], 1, ["3 fused, 0 eager", "2 fused, 1 eager", "a forward hook is registered on 1.norm_a"]),
    "own_network": ([], 0, ["(1, 8, 12, 12) -> (1, 16, 12, 12)"]),
    "serve_aotinductor": ([], 3, ["the package calls resnet_fused.basic_block.default"]),
    "serve_cuda_graph": ([], 3, ["CUDA graph on" if torch.cuda.is_available() else "no CUDA device"]),
    "train": (["sklearn"], 0, ["epoch 3: "]),
}


def run(script, *flags):
    """Runs a script in the checkout, in a new process that has none of the tests' set-up."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *flags, str(script)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def numbers(pattern, text):
    """Returns the numbers in every match of a pattern."""
    return [tuple(map(float, found.groups())) for found in re.finditer(pattern, text)]


def assert_agree(printed, count):
    """The comparisons with eager are as many as expected, and each one's numbers say what its sentence says."""
    found = numbers(r"agrees with eager: error (\S+), allowed (\S+) ", printed)
    assert len(found) == count
    assert all(0 <= error <= allowed < 1 for error, allowed in found)
    assert "differs" not in printed


@pytest.mark.parametrize("name", SCRIPTS)
def test_example_runs(name):
    libraries, compared, sentences = EXPECTED[name]
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    if name == "serve_aotinductor" and shutil.which("g++") is None:
        pytest.skip("needs g++")
    done = run(FOLDER / f"{name}.py")
    assert done.returncode == 0, done.stderr
    for sentence in sentences:
        assert sentence in done.stdout
    assert_agree(done.stdout, compared)
    if name in PROMISES:
        PROMISES[name](done.stdout)


def fine_tuning_helps(printed):
    accuracies = numbers(r"accuracy (\S+)% before, (\S+)% after", printed)
    assert len(accuracies) == 2, "BatchNorm2d in eval mode, and FrozenBatchNorm2d"
    assert all(before < 50 and after > 85 for before, after in accuracies)
    assert printed.count("running statistics unchanged") == 2
    assert len(re.findall(r"layer1.0 .* inference", printed)) == len(re.findall(r"layer3.0 .* training", printed)) == 2


def loss_falls(printed):
    losses = [loss for (loss,) in numbers(r"loss ([\d.]+)", printed)]
    assert len(losses) == 4 and losses[-1] < losses[0] / 2
    assert numbers(r"(\d+) of 32 right", printed)[0][0] > 24


def training_reaches_90_percent(printed):
    assert numbers(r"epoch (3): .* test accuracy ([\d.]+) %", printed)[0][1] > 90


PROMISES = {
    "finetune_frozen_batchnorm": fine_tuning_helps,
    "own_network": loss_falls,
    "train": training_reaches_90_percent,
}


def test_readme_names_every_example():
    table = (FOLDER / "README.md").read_text()
    commands = re.findall(r"\| `python examples/(\w+)\.py`", table)
    assert sorted(commands) == SCRIPTS
    assert "(quick_start.ipynb)" in table


@pytest.fixture
def utils(monkeypatch):
    spec = importlib.util.spec_from_file_location("examples_utils", FOLDER / "utils.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_comparison_fails_for_a_wrong_result(utils, capsys):
    exact = torch.linspace(-1, 1, 100, dtype=torch.float64)
    eager = exact.float()
    utils.compare("right", eager, eager, exact)
    assert_agree(capsys.readouterr().out, 1)
    with pytest.raises(AssertionError):
        utils.compare("wrong", eager + 1e-5, eager, exact)
    assert "wrong differs from eager" in capsys.readouterr().out


def test_missing_library_is_named(utils):
    with pytest.raises(SystemExit, match=r"needs no_such_library \(pip install no_such_library\)"):
        utils.library("no_such_library")


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_notebook_stores_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        assert cell["metadata"] == {}


def test_notebook_runs(tmp_path):
    """Its code cells, one after the other in one new process, as Jupyter runs them."""
    script = tmp_path / "quick_start.py"
    script.write_text("\n\n".join(cells("code")))
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "9 converted, 0 convertible, 0 refused" in done.stdout
    assert "9 fused, 0 eager" in done.stdout
    error, allowed = numbers(r"error (\S+), allowed (\S+)", done.stdout)[0]
    assert 0 <= error <= allowed < 1
    assert len(numbers(r"(?:eager|fused): median ([\d.]+) ms", done.stdout)) == 2
    before, after = numbers(r"loss (\S+) -> (\S+)", done.stdout)[0]
    assert after < before
    assert "the same classes as before: True" in done.stdout
