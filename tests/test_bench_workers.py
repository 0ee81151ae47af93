"""The benchmarks' processes: answers, failures, turns and percentiles. No test asserts a time."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_contenders
import numpy as np
import pytest
import torch
from served import Served

from benchmarks import contenders, engines, measure, peers, timing
from benchmarks.verify import Oracle
from benchmarks.worker import Unavailable, Worker
from benchmarks.workloads import Workload, workloads
from resnet_fused import models

CPU = torch.device("cpu")
TESTS = Path(__file__).parent
LIMIT_S = 300  # for a process that starts another


def small(batch=4, size=32):
    return Workload("model", "small", (batch, 3, size, size), "fp32", partial(models.resnet18, num_classes=4))


def forgot_eval():
    """Returns a workload in train mode, large enough for meaningful statistics in the last stage."""
    return replace(small(size=96), batch_statistics=True)


def test_worker_answers_and_survives_exceptions():
    with Worker(Served, "word") as worker:
        with pytest.raises(Unavailable, match=r"^not on this machine$"):
            worker.ask("refuse")
        with pytest.raises(Unavailable, match=r"^ValueError: two lines$"):
            worker.ask("fail")
        assert worker.ask("answer") == "word"
        pid = worker.ask("pid")
    assert ended(pid)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (("crash",), r"crash: the process was ended by SIGKILL \(out of memory\?\)"),
        (("leave", 3), "leave: the process ended with status 3"),
        (("answer", "too", "many"), "TypeError: .* takes 1 positional argument"),
    ],
    ids=["killed", "exit", "wrong call"],
)
def test_end_of_a_worker_has_a_reason(request_, reason):
    with Worker(Served) as worker, pytest.raises(Unavailable, match=reason):
        worker.ask(*request_)


def test_dead_worker_stays_unavailable():
    with Worker(Served) as worker:
        for request in ("crash", "answer"):
            with pytest.raises(Unavailable, match=f"{request}: the process was ended by SIGKILL"):
                worker.ask(request)


def test_hanging_worker_is_ended():
    with Worker(Served) as worker:
        pid = worker.ask("pid")
        with pytest.raises(Unavailable, match=r"hang: no answer within 0\.2 s"):
            worker.ask("hang", limit_s=0.2)
        assert ended(pid)


@pytest.mark.parametrize("end", ["Ctrl-C", "kill"])
def test_no_worker_outlives_its_parent(end):
    # A shell's background jobs, such as a test run, ignore SIGINT, and their children inherit that.
    # Python may notice the signal only after the wait for an answer, if it arrives right before it: hence limit_s.
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from benchmarks.worker import Worker
from served import Served
with Worker(Served) as idle, Worker(Served) as busy:
    print(idle.ask("pid"), busy.ask("pid"), flush=True)
    busy.ask("hang", limit_s=20)
"""
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        stalled = threading.Timer(LIMIT_S, os.killpg, [parent.pid, signal.SIGKILL])
        stalled.start()
        try:
            pids = [int(pid) for pid in parent.stdout.readline().split()]
            if end == "Ctrl-C":
                os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
            else:
                parent.kill()
            errors = parent.communicate()[1]
        finally:
            stalled.cancel()
    assert len(pids) == 2, errors
    assert all(ended(pid) for pid in pids)
    assert errors.count("KeyboardInterrupt\n") == (end == "Ctrl-C"), "only the parent says so"


def ended(pid):
    """Whether the process ends within seconds. One that nobody has waited for has ended, too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def test_failing_contenders_do_not_stop_the_others(monkeypatch):
    fakes = {
        "eager": peers.eager,
        "wrong": fake_contenders.wrong,
        "absent": fake_contenders.absent,
        "crashes": fake_contenders.crashes_while_timed,
    }
    monkeypatch.setattr(measure, "contenders", lambda device_type: {name: (name, fakes[name]) for name in fakes})
    result = measure.measure(small(batch=1), CPU, list(fakes), 0.0, memory=True)
    assert result.unavailable["wrong"].startswith("wrong: error")
    assert result.unavailable["absent"] == "not installed"
    assert result.unavailable["crashes"] == "turn: the process was ended by SIGTERM"
    assert set(result.samples) == {"eager"}
    assert len(result.samples["eager"]) == timing.MIN_ROUNDS * measure.LATENCY_CALLS
    assert set(result.peak_bytes) == {"eager"}
    assert result.peak_bytes["eager"] > 0


@torch.no_grad()
def test_one_process_runs_all_as_on_a_gpu():
    fakes = {"eager": peers.eager, "wrong": fake_contenders.wrong, "absent": fake_contenders.absent, "ours": peers.ours}
    wanted, result = small(), measure.Measurement()
    samples = measure.in_this_process(wanted, CPU, fakes, Oracle(wanted), 0.0, False, result)
    assert {name: len(taken) for name, taken in samples.items()} == dict.fromkeys(("eager", "ours"), timing.MIN_ROUNDS)
    assert result.unavailable["wrong"].startswith("wrong: error")
    assert result.unavailable["absent"] == "not installed"


@torch.no_grad()
def test_nothing_is_verified_without_eager():
    wanted, result = small(), measure.Measurement()
    with result.attempt("ours"):
        result.judge("ours", Oracle(wanted), wanted.module()(wanted.input()), quantises=False)
    assert result.unavailable["ours"].startswith("not verified: eager")
    assert result.errors == {}


def test_cpu_benchmarks_measure_batch_statistics():
    titles = {w.title: w for w in workloads("cpu", quick=False)}
    assert titles["ResNet-50 batch statistics"].module().training
    assert not titles["ResNet-50"].module().training
    result = measure.measure(forgot_eval(), CPU, ["ours"], 0.0, memory=False)
    assert result.unavailable == {}
    assert result.errors["ours"] <= result.error_limit
    assert set(result.samples) == {"eager", "ours"}


def test_turns_rotate():
    order = []
    turns = {name: lambda name=name: order.append(name) or [1.0, 2.0] for name in "ABC"}
    samples = timing.take_turns(turns, round_s=1.0, budget_s=0.0, settle_s=0.0)
    assert "".join(order) == "ABCBCACABABCBCA"
    assert samples == {name: [1.0, 2.0] * timing.MIN_ROUNDS for name in "ABC"}
    assert timing.take_turns({}, 0.0, 1.0, 0.0) == {}


def test_short_calls_run_once_untimed():
    calls = []
    assert len(timing.turn(lambda: calls.append(1), timing.REWARM_BELOW_S / 2, 3)) == 3
    assert len(calls) == 4
    assert len(timing.turn(lambda: calls.append(1), timing.REWARM_BELOW_S, 3)) == 3
    assert len(calls) == 7


def test_percentiles_are_those_of_numpy():
    seconds = np.random.default_rng(0).exponential(size=237)
    assert timing.percentiles_ms(list(seconds)) == pytest.approx(tuple(1e3 * np.percentile(seconds, (50, 99))))


def test_p99_needs_a_hundred_calls():
    assert timing.percentiles_ms([1.0] * 99) == (1000, None)
    assert timing.percentiles_ms([1.0] * 100) == (1000, 1000)


def test_contenders_of_each_device():
    cpu, cuda = (set(contenders.contenders(device)) for device in ("cpu", "cuda"))
    assert {"max_autotune", "onnxruntime", "openvino", "openvino_throughput"} <= cpu
    assert cpu - cuda == {"onnxruntime", "openvino", "openvino_throughput", "ours_frozen"}


@torch.no_grad()
def test_throughput_hint_splits_the_batch():
    pytest.importorskip("openvino")
    wanted = small()
    eager, split = peers.eager(wanted, CPU), engines.openvino_throughput(wanted, CPU)
    torch.testing.assert_close(split.output(split.call()), eager.call(), rtol=1e-3, atol=1e-3)
    with pytest.raises(Unavailable, match="one image cannot be split"):
        engines.openvino_throughput(small(batch=1), CPU)
