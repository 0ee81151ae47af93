"""Contenders that misbehave, for the benchmarks' processes: builders must be importable there."""

import os
import signal
from dataclasses import replace

from benchmarks import peers

CALLS_BEFORE_TIMING = 4  # one is verified, three warm up


def wrong(workload, device):
    right = peers.eager(workload, device)
    return replace(right, output=lambda result: right.output(result) * 1.5)


def absent(workload, device):
    raise peers.Unavailable("not installed")


def crashes_while_timed(workload, device):
    right, calls = peers.eager(workload, device), []

    def call():
        calls.append(1)
        if len(calls) > CALLS_BEFORE_TIMING + 2:
            os.kill(os.getpid(), signal.SIGTERM)  # which dumps no core
        return right.call()

    return replace(right, call=call)
