"""examples/train.py trains on digits: alone, with AMP, resumed, with torchrun; eager models load its checkpoints."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import resnet_fused

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def example():
    import importlib.util

    spec = importlib.util.spec_from_file_location("train_example", ROOT / "examples" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_example_learns_with_amp(example):
    assert example.main(["--epochs", "2", "--amp", "bfloat16"]) > 0.9


def test_resumed_run_equals_an_uninterrupted_one(example, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole.pt", tmp_path / "broken.pt"
    right = example.main(["--epochs", "2", "--checkpoint", str(whole)])
    assert right > 0.9
    save, saved = example.save, []

    def save_and_die(path, model, optimiser, scheduler, scaler, epoch):
        save(path, model, optimiser, scheduler, scaler, epoch)
        saved.append(epoch)
        raise KeyboardInterrupt

    monkeypatch.setattr(example, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        example.main(["--epochs", "2", "--checkpoint", str(broken)])
    assert saved == [0]
    monkeypatch.setattr(example, "save", save)
    assert example.main(["--epochs", "2", "--checkpoint", str(broken)]) == right
    states = [torch.load(path, weights_only=True)["model"] for path in (whole, broken)]
    assert all(torch.equal(a, states[1][name]) for name, a in states[0].items())

    eager = resnet_fused.revert(example.small(1, 10))
    assert not any("Fused" in type(m).__name__ for m in eager.modules())
    eager.load_state_dict(states[0])
    _, test, *_ = example.digits()
    images, labels = test.tensors
    with torch.no_grad():
        reached = (eager.eval()(images).argmax(1) == labels).float().mean().item()
    assert reached == pytest.approx(right, abs=1 / len(labels))


def saving(example, path, epoch=0):
    """Calls the example's save() with a small model."""
    model = torch.nn.Linear(1, 1)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0)
    example.save(path, model, optimiser, scheduler, torch.amp.GradScaler("cpu", enabled=False), epoch)


NAMES = ["run.a", "run.b", "run", "run.partial", "model.pt"]


@pytest.mark.parametrize("name", NAMES)
def test_a_crash_while_saving_leaves_every_checkpoint_whole(example, tmp_path, monkeypatch, name):
    for each in NAMES:
        saving(example, tmp_path / each)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(NAMES), "nothing is left beside them"

    def half_written(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", half_written)
        saving(example, tmp_path / name, epoch=1)
    for each in NAMES:
        assert torch.load(tmp_path / each, weights_only=True)["epoch"] == 0, each
    saving(example, tmp_path / name, epoch=1)
    assert torch.load(tmp_path / name, weights_only=True)["epoch"] == 1


def test_checkpoint_is_synced_before_it_is_renamed(example, tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(("fsync", os.readlink(f"/proc/self/fd/{fd}"))), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda a, b: (done.append(("rename", str(a), str(b))), replace(a, b)))
    saving(example, tmp_path / "model.pt")
    aside = str(tmp_path / ".model.pt.partial")
    assert done == [("fsync", aside), ("rename", aside, str(tmp_path / "model.pt")), ("fsync", str(tmp_path))]


def test_checkpoint_with_more_epochs_is_refused(example, tmp_path, capsys):
    file = tmp_path / "model.pt"
    right = example.main(["--epochs", "2", "--checkpoint", str(file)])
    before = file.read_bytes()
    with pytest.raises(SystemExit) as stopped:
        example.main(["--epochs", "1", "--checkpoint", str(file)])
    assert str(stopped.value).startswith(f"{file} has done 2 epochs and --epochs is 1: give 2 or more")
    capsys.readouterr()
    assert example.main(["--epochs", "2", "--checkpoint", str(file)]) == right
    assert f"all 2 epochs were done before: test accuracy {100 * right:.1f} %" in capsys.readouterr().out
    assert file.read_bytes() == before


def test_torchrun(tmp_path):
    file = tmp_path / "model.pt"
    options = ["--epochs", "1", "--batch", "32", "--sync-bn", "--checkpoint", str(file)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, str(ROOT / "examples" / "train.py"), *options]
    done = subprocess.run(
        command, cwd=ROOT, env={**environment(), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"epoch 1: loss ([\d.]+), test accuracy ([\d.]+) %", done.stdout)
    assert len(shown) == 1, "only the first process reports"
    assert float(shown[0][1]) > 70
    assert torch.load(file, weights_only=True)["epoch"] == 0


def test_no_thread_of_the_process_group_is_left(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import glob, train\n"
        "train.main(['--epochs', '1'])\n"
        "print('threads', *(open(file).read().strip() for file in glob.glob('/proc/self/task/*/comm')))\n"
    )
    group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "examples")])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**environment(), **group, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    threads = done.stdout.split("threads")[1]
    assert "python" in threads
    assert "gloo" not in threads, "one that frees a tensor while Python exits aborts (pytorch/pytorch#190489)"


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}


def test_wrong_arguments_are_refused(example, capsys):
    with pytest.raises(SystemExit):
        example.main(["--data", "cifar10"])
    assert "--data cifar10 needs --root" in capsys.readouterr().err
