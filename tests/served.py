"""What the tests' workers serve. Without torch, so that they start at once."""

import os
import signal
import time

from benchmarks.worker import Unavailable


class Served:
    """Answers, fails, hangs and dies on request."""

    def __init__(self, word="yes"):
        self.word = word

    def answer(self):
        return self.word

    def pid(self):
        return os.getpid()

    def refuse(self):
        raise Unavailable("not on this machine")

    def fail(self):
        raise ValueError("two\nlines")

    def hang(self):
        time.sleep(600)

    def leave(self, status):
        os._exit(status)

    def crash(self):
        os.kill(os.getpid(), signal.SIGKILL)
