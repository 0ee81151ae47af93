"""A pytest plugin: a hang or a sticky CUDA error costs one test marked ``gpu``, not the rest.

A hung kernel cannot be stopped, and after an illegal access every later CUDA call fails. So both end the process, after
reporting the test's name and the results so far; another process can run the rest.
"""

import faulthandler
import os
import sys
import threading

import pytest
import torch

LIMIT_S = float(os.environ.get("RESNET_FUSED_GPU_TEST_SECONDS", "60"))
GRACE_S = 10  # time to report a hang
HUNG = 70  # exit status

_stderr = pytest.StashKey[int]()


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: runs on a CUDA device, within the limits of tests/gpu_guard.py")
    config.stash[_stderr] = os.dup(2)  # before output is captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    if item.get_closest_marker("gpu") is None:
        return (yield)
    alarm = threading.Timer(LIMIT_S, give_up, [item])
    alarm.daemon = True
    alarm.start()
    # Fallback if the alarm has no effect: the hung thread holds the GIL, or the report hangs too.
    faulthandler.dump_traceback_later(LIMIT_S + GRACE_S, exit=True, file=item.config.stash[_stderr])
    try:
        result = yield
        error = broken_by()
    finally:
        alarm.cancel()
        faulthandler.cancel_dump_traceback_later()
    if error:
        pytest.exit(f"{item.nodeid} left CUDA unusable ({error}); run what is left in another process")
    return result


def broken_by():
    """Returns the sticky CUDA error, or None."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def give_up(item):
    """Reports the hung test and all earlier ones from another thread, then ends the process."""
    config, plugins = item.config, item.config.pluginmanager
    plugins.getplugin("capturemanager").suspend_global_capture(in_=True)
    faulthandler.dump_traceback(config.stash[_stderr])
    if hasattr(config, "workeroutput"):  # a pytest-xdist worker: xdist reports its end and starts another
        os._exit(HUNG)
    why = f"has not ended within {LIMIT_S:g} s, which ended the process"
    report = pytest.TestReport(item.nodeid, item.location, {}, "failed", f"{item.nodeid} {why}", "call")
    config.hook.pytest_runtest_logreport(report=report)
    reporter = plugins.getplugin("terminalreporter")
    # Writes files such as --junitxml. Excludes the runner, which would tear down fixtures and may hang too.
    finish = plugins.subset_hook_caller("pytest_sessionfinish", [plugins.getplugin("runner"), reporter])
    finish(session=item.session, exitstatus=HUNG)
    config.hook.pytest_terminal_summary(terminalreporter=reporter, exitstatus=HUNG, config=config)
    sys.stdout.flush()
    os._exit(HUNG)
