"""Commands print what they should. An expected failure is one sentence on stderr and exit status 2."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from support import run_python
from torch import nn

from resnet_fused import cli, models
from resnet_fused.cli import _machine, _torchvision
from resnet_fused.cli._errors import CommandError
from resnet_fused.cli._shapes import conv_calls


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(autouse=True)
def _planned(monkeypatch):
    monkeypatch.delenv("RESNET_FUSED_CUDA_ENGINE", raising=False)


def fails(capsys, *argv):
    """Runs a command that must fail; returns its one line on stderr."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_bare_call_prints_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("info", "explain", "demo", "bench"))


def test_module_entry_point_reports_errors():
    done = run_python("-m", "resnet_fused", "explain", "nosuchnet")
    assert done.returncode == 2
    assert "unknown model 'nosuchnet'" in done.stderr
    assert "Traceback" not in done.stderr


def test_info(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for expected in (torch.__version__, "oneDNN", "CPU capability", "CPU kernels, float16", "CUDA library", "packed"):
        assert expected in out


def test_info_shows_plan_variables(capsys, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "avx2")
    assert cli.main(["info"]) == 0
    assert re.search(r"^RESNET_FUSED_CPU_ISA +avx2 *$", capsys.readouterr().out, re.M)


def test_info_refuses_a_bad_variable(capsys, monkeypatch):
    monkeypatch.setenv("RESNET_FUSED_CPU_ISA", "garbage")
    assert "RESNET_FUSED_CPU_ISA is garbage; one of" in fails(capsys, "info")


def test_info_without_build_info(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "resnet_fused._build_info", None)
    assert cli.main(["info"]) == 0
    assert "there is no resnet_fused/_build_info.py" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explain(capsys, dtype):
    argv = ["explain", "resnet18", "--input", "2,3,64,64", "--dtype", dtype, "--channels-last"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    convs = [n for n, m in models.resnet18().named_modules() if isinstance(m, nn.Conv2d)]
    assert all(name in out for name in ("layer1.0", "basic block", *convs))
    assert "3x64x64 -> 64x32x32, 7x7 /2" in out
    assert "channels_last input" in out
    assert "--gpu NAME shows the plan for a GPU" in out


def test_explain_why_names_the_kernels_not_picked(capsys):
    assert cli.main(["explain", "small_resnet", "--input", "1,3,8,8", "--why"]) == 0
    assert "  not " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_explain_for_a_gpu(capsys, dtype):
    argv = ["explain", "resnet50", "--input", "8,3,224,224", "--gpu", "a100", "--dtype", dtype]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert f"a100, batch 8, {dtype}" in out
    assert "predictions of a cost model" in out
    rows = {row[0]: row for row in map(str.split, out.splitlines()) if row}
    assert "torch" in rows["conv1"], "3 channels"
    assert "sm80" in rows["layer1.0.conv1"]
    assert rows["layer2.0.downsample.0"][-2:] == ["in", "conv3"]
    splits, microseconds, megabytes = rows["layer3.1.conv2"][-3:]
    assert int(splits) >= 1
    assert float(microseconds) > 0
    assert float(megabytes) > 2 * 8 * 256 * 14 * 14 * 2 / 1e6


def test_explain_for_a_gpu_knows_projections_and_prologues(capsys, tmp_path, monkeypatch):
    (tmp_path / "their_blocks.py").write_text(
        "from torch import nn\n"
        "from resnet_fused.reference import PlainPreActBlock, PreActBlock, PreActBottleneck\n"
        "def make():\n"
        "    side = nn.Sequential(nn.Conv2d(64, 128, 1, 2, bias=False), nn.BatchNorm2d(128))\n"
        "    pooled = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(128, 256, 1))\n"
        "    return nn.Sequential(\n"
        "        PreActBlock(64, 128, 2, side), PreActBottleneck(128, 64, 2, pooled), PlainPreActBlock(256, 64))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
    argv = ["explain", "their_blocks:make", "--input", "8,64,28,28", "--gpu", "h200", "--dtype", "bfloat16", "--why"]
    assert cli.main(argv) == 0
    plans = dict(re.findall(r"^(\d\S+): (.*)", capsys.readouterr().out, re.M))
    modes = {name: plan.split(", ")[1] for name, plan in plans.items() if plan.startswith("sm80")}
    assert modes == {
        "0.conv1": "prologue",
        "0.conv2": "projection prologue",
        "1.conv1": "prologue",
        "1.conv2": "plain",
        "1.conv3": "plain",
        "2.conv1": "prologue",
        "2.conv2": "plain",
    }
    assert plans["0.downsample.0"] == "in conv2: a projection, included in the plan of 0.conv2"
    assert plans["1.downsample.1"] == "torch: a shortcut that is not a single 1x1 convolution, not fused"


def test_explain_for_a_gpu_knows_one_launch_blocks(capsys, tmp_path, monkeypatch):
    (tmp_path / "one_block.py").write_text(
        "from torch import nn\n"
        "from resnet_fused.reference import BasicBlock\n"
        "def make():\n"
        "    side = nn.Sequential(nn.Conv2d(64, 128, 1, 2, bias=False), nn.BatchNorm2d(128))\n"
        "    return nn.Sequential(BasicBlock(64, 64), BasicBlock(64, 128, 2, side))\n"
    )
    monkeypatch.chdir(tmp_path)
    argv = ["explain", "one_block:make", "--input", "1,64,28,28", "--gpu", "h200", "--dtype", "bfloat16", "--why"]
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm80")
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    reason = "not sm90:block: RESNET_FUSED_CUDA_ENGINE is sm80"
    assert len(re.findall(reason, out)) == 2, "both convolutions of the identity block"
    monkeypatch.setenv("RESNET_FUSED_CUDA_ENGINE", "sm90")
    assert cli.main(argv) == 0
    plans = dict(re.findall(r"^(\d\S+): (.*)", capsys.readouterr().out, re.M))
    assert plans["0.conv1"].startswith("sm90:block 64: bfloat16, ")
    assert plans["0.conv2"] == "in conv1: one launch computes all of 0"
    assert re.match(r"sm90 \d+x\d+: ", plans["1.conv2"])


def test_explain_gpu_auto_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = fails(capsys, "explain", "resnet18", "--gpu", "auto")
    assert "--gpu auto: torch finds no CUDA device; choose one of a100, a10" in error


def test_explain_marks_layers_left_to_torch(capsys, tmp_path, monkeypatch):
    (tmp_path / "their_model.py").write_text(
        "from torch import nn\n"
        "from resnet_fused.reference import BasicBlock\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3, padding='same'), BasicBlock(16, 16))\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["explain", "their_model:make", "--input", "1,3,9,9"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    kernels = {row[0]: row[-1] for row in rows if row and row[0] in ("0", "1.conv1", "1.conv2")}
    assert kernels["0"] == "torch"
    assert "torch" not in (kernels["1.conv1"], kernels["1.conv2"])


@pytest.mark.parametrize("name", ["fcn_resnet50", "torchvision.models:resnext50_32x4d"])
def test_explain_torchvision_models(capsys, name):
    pytest.importorskip("torchvision")
    assert cli.main(["explain", name, "--input", "1,3,64,64"]) == 0
    out = capsys.readouterr().out
    assert "bottleneck" in out
    assert "layer4.2.conv3" in out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["resnet19"], "unknown model 'resnet19': use one of resnet18"),
        (["no_such_module:f"], "cannot load a model from no_such_module:f: ModuleNotFoundError"),
        (["resnet_fused.models:resnet19"], "cannot load a model from resnet_fused.models:resnet19: AttributeError"),
        (["math:pi"], "math:pi is not a model: expected a torch.nn.Module, but got float"),
        (["resnet18", "--input", "224"], "--input expects four positive sizes such as 1,3,224,224, but got '224'"),
        (["resnet18", "--input", "1,3,0,8"], "four positive sizes"),
        (["resnet18", "--input", "1,4,64,64"], "does not accept an input of shape [1, 4, 64, 64]"),
    ],
)
def test_explain_errors(capsys, argv, expected):
    assert expected in fails(capsys, "explain", *argv)


def test_recorded_shapes_match_a_forward_pass():
    model = models.resnet18().eval()
    calls = conv_calls(model, [2, 3, 65, 33], torch.float32, channels_last=True)
    real = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, a, y, name=name: real.update({name: [*a[0].shape, *y.shape]}))
    model(torch.randn(2, 3, 65, 33))
    assert {c.name: [*c.input, *c.output] for c in calls} == real
    assert all(c.channels_last for c in calls)


def test_explain_leaves_no_hooks_behind():
    model = models.small_resnet()
    conv_calls(model, [1, 3, 8, 8], torch.float32, channels_last=False)
    assert not any(m._forward_hooks for m in model.modules())


def test_missing_torchvision_names_pip_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match="pip install torchvision"):
        _torchvision.import_torchvision_models()


def test_torchvision_imports_in_a_fresh_process():
    pytest.importorskip("torchvision")
    code = "from resnet_fused.cli._torchvision import import_torchvision_models as f; print(f().resnet18)"
    done = run_python("-c", code)
    assert "resnet18" in done.stdout, done.stderr


def test_missing_package_names_pip_install(capsys, monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.startswith(("resnet_fused.cli.demo", "sklearn"))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    error = fails(capsys, "demo", "--out", str(tmp_path))
    assert "pip install scikit-learn" in error


def test_demo_errors(capsys, tmp_path):
    assert "device 'cuda:99' cannot be used here" in fails(capsys, "demo", "--device", "cuda:99")
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert "cannot write to" in fails(capsys, "demo", "--device", "cpu", "--out", str(occupied))


def test_unknown_command_exits_with_status_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["frobnicate"])
    assert stopped.value.code == 2
    assert "frobnicate" in capsys.readouterr().err


@pytest.mark.parametrize(("lines", "name"), [
    ("cpu family : 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "AMD EPYC (family 26 model 2)"),
    ("cpu family : 6\nmodel : 143\nmodel name : Intel(R) Xeon(R) Gold 6430\n", "Intel(R) Xeon(R) Gold 6430"),
    ("model name : ARM\n", "ARM"),
])  # fmt: skip
def test_nameless_cpus_are_told_apart(monkeypatch, lines, name):
    monkeypatch.setattr(Path, "read_text", lambda path: lines)
    assert _machine.cpu_name() == f"{name}, {torch.get_num_threads()} threads"


def test_machine_record_names_machine_and_commit():
    record = _machine.record(torch.device("cpu"))
    assert record["torch"] == torch.__version__
    assert record["cpu"]
    assert record["date"].endswith("+00:00")
    assert record["commit"] and record["commit_from"] in ("git", "the build")


def test_commit_falls_back_to_build_info(monkeypatch):
    from resnet_fused import _build_info

    def absent(*args, **kwargs):
        raise FileNotFoundError("[Errno 2] No such file or directory: 'git'")

    monkeypatch.setattr(_machine.subprocess, "run", absent)
    monkeypatch.setattr(_build_info, "GIT_COMMIT", "abc1234+")
    assert _machine.commit() == {"commit": "abc1234+", "commit_from": "the build", "built_from": "abc1234+"}
    monkeypatch.setattr(_build_info, "GIT_COMMIT", None)
    assert _machine.commit() == {"commit": None, "commit_from": None, "built_from": None}


def explained_rows(capsys, tmp_path, monkeypatch, line):
    """Returns the rows of the table of modules of ``python -m resnet_fused explain``, split into words."""
    (tmp_path / "explained_model.py").write_text(
        "from torch import nn\n"
        "from resnet_fused.reference import BasicBlock\n"
        "def make():\n"
        "    model = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))\n"
        f"    {line}\n"
        "    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "explained_model", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["explain", "explained_model:make", "--input", "1,8,9,9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.split()[:1] == ["module"])
    assert lines[header].split() == ["module", "kind", "status", "eval", "training", "reason"]
    return {row[0]: row[1:] for row in map(str.split, lines[header + 1 :]) if row[1:2] == ["basic"]}


def test_explain_shows_a_reason_in_training_only(capsys, tmp_path, monkeypatch):
    rows = explained_rows(capsys, tmp_path, monkeypatch, "model[1].fused_training = False")
    assert rows["0"] == ["basic", "block", "converted", "fused", "fused"]
    reason = ["training:", "fused_training", "is", "False"]
    assert rows["1"] == ["basic", "block", "converted", "fused", "eager", *reason]


def test_explain_shows_a_reason_in_both_modes(capsys, tmp_path, monkeypatch):
    rows = explained_rows(capsys, tmp_path, monkeypatch, "model[0].relu, model[1].bn2 = nn.GELU(), nn.GroupNorm(2, 8)")
    assert " ".join(rows["0"]) == "basic block refused eager eager 0.relu is torch.nn.GELU, not torch.nn.ReLU"
    assert rows["1"][2:5] == ["refused", "eager", "eager"]
