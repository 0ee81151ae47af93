"""Tests that pass, fail, hang and crash: build_tools/gpu.py must survive them. Not collected by default."""

import os
import signal
import time

import pytest
from stand_in import STICKY

broken = False


def test_right():
    assert not broken, STICKY


def test_wrong():
    assert 1 + 1 == 3


def test_hang():
    time.sleep(3600)


@pytest.mark.parametrize("time_of_day", ["morning", "evening"])
def test_after_a_hang(time_of_day):
    assert not broken, STICKY


def test_sticky():
    global broken
    broken = True
    raise RuntimeError(STICKY)


def test_after_a_cuda_error():
    assert not broken, STICKY


def test_crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def test_skipped():
    pytest.skip("there is no GPU here")


def test_last():
    assert not broken, STICKY
