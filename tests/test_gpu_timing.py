"""GPU timing (flushes, events), tested on the CPU as far as possible."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import timing

L2_BYTES = 4096


class Accesses(TorchDispatchMode):
    """Records the memory that each op writes or reads, in order: ``(op, pointer, bytes)``."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((func.overloadpacket.__name__, args[0].data_ptr(), args[0].nbytes))
        return func(*args, **(kwargs or {}))


def test_cache_flush_ends_by_reading_other_memory():
    flush = timing.Flush(L2_BYTES, torch.device("cpu"))
    with Accesses() as accesses:
        flush()
    (writes, written, written_bytes), (reads, read, read_bytes) = accesses.seen
    assert (writes, reads) == ("zero_", "amax"), "after zeroing alone, L2 is full of lines to be written back"
    assert written != read
    assert written_bytes >= 4 * L2_BYTES
    assert read_bytes >= 4 * L2_BYTES
