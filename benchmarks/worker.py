"""An object in a process of its own, whose methods the parent calls through a pipe. Without torch.

Contenders share no process, because one's idle threads, allocator and leaks would disturb the others, and a crash would
end them all. A worker that waits for a request is blocked in a read and costs no processor time.
"""

import contextlib
import ctypes
import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

PR_SET_PDEATHSIG = 1  # of Linux's prctl
ANSWER_S = 120.0  # a worker that takes longer to answer hangs
EXIT_S = 5.0  # from the end of the pipe, or a kill, to the end of the process


class Unavailable(Exception):
    """This contender cannot run this workload here. The sentence goes into the results."""


def sentence(error: Exception) -> str:
    """The reason in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text[:200]}"


class Worker:
    """Starts a process that calls ``factory(*args)``, all of which must pickle, and serves the result's methods."""

    def __init__(self, factory: Callable[..., object], *args: object) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit the parent's threads' locks
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe ends with the process

    def ask(self, method: str, *args: object, limit_s: float = ANSWER_S) -> Any:
        """Calls a method there. Raises Unavailable if it raises, takes longer than ``limit_s`` or the process ends."""
        try:
            self._pipe.send((method, args))
            if not self._pipe.poll(limit_s):
                self.close()
                raise Unavailable(f"{method}: no answer within {limit_s:g} s")
            answer, failure = self._pipe.recv()
        except (EOFError, OSError):
            raise Unavailable(f"{method}: {self._how_it_ended()}") from None
        if failure is not None:
            raise Unavailable(failure)
        return answer

    def close(self) -> None:
        """Ends the process now: it has nothing to save."""
        self._process.kill()
        self._process.join(EXIT_S)  # one that waits for the disk ends later
        self._pipe.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _how_it_ended(self) -> str:
        self._process.join(EXIT_S)
        status = self._process.exitcode
        if status is None:
            return "the process closed its pipe"
        if status >= 0:
            return f"the process ended with status {status}"
        hint = " (out of memory?)" if -status == signal.SIGKILL else ""
        return f"the process was ended by {signal.Signals(-status).name}{hint}"


def _serve(pipe: Connection, factory: Callable[..., object], args: tuple[object, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent ends its workers,
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # and if the parent is killed, the kernel does
    with contextlib.suppress(OSError):  # when memory runs out, this process is killed, not its parent
        Path("/proc/self/oom_score_adj").write_text("1000")
    served = factory(*args)
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((getattr(served, method)(*arguments), None))
        except Exception as error:  # a contender may fail in any way; the results say why
            pipe.send((None, sentence(error)))
