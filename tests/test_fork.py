"""A forked child never waits for a lock that a thread of its parent held."""

import os
import threading
import time

import pytest
import torch

from resnet_fused import functional, ops

CHILDREN = 40
SECONDS = 120  # a child takes milliseconds, even on a busy machine; a deadlocked one never ends


def infer(weight, x):
    with torch.no_grad():
        return functional.conv_bn_act(x, weight, padding=1, keep_packed=True)


def wait_for(child):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return None


# With more than one thread, torch's convolutions may not run in a child of a process that has used OpenMP. So the test
# uses one thread and only checks our own locks.
@pytest.mark.parametrize("what", ["packed", "memory"])
def test_forked_children_do_not_deadlock(what):
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    stop = threading.Event()
    large = torch.randn(2, 32, 128, 128)  # 4 MiB: results come from the pool
    weights = [torch.randn(32, 32, 3, 3) for _ in range(4)]

    def work(seed):
        i = seed
        while not stop.is_set():
            i += 1
            if what == "packed":
                ops.forget_packed([weights[i % 4]])
                infer(weights[i % 4], large[:1, :, :8, :8])
            else:
                ops.bn_add_act(large, None, None, None, None, 0.0, None, True)
                if i % 5 == 0:
                    ops.release_memory()

    # A child can deadlock on a oneDNN primitive that another thread was creating at the fork, in eager too. So create
    # every primitive before the first fork.
    for weight in weights:
        infer(weight, large[:1, :, :8, :8])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    try:
        statuses = []
        for _ in range(CHILDREN):
            child = os.fork()
            if not child:
                code = 1
                try:
                    ops.packed_bytes()
                    ops.forget_packed(weights)
                    ops.bn_add_act(large, None, None, None, None, 0.0, None, True)
                    ops.release_memory()
                    infer(weights[0], large[:1, :, :8, :8])
                    code = 0
                finally:
                    os._exit(code)
            statuses.append(wait_for(child))
    finally:
        stop.set()
        for worker in workers:
            worker.join()
        torch.set_num_threads(threads_before)
    assert statuses == [0] * CHILDREN
