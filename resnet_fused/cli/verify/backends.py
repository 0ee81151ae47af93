"""The devices that ``verify`` supports: this machine's GPU and its CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .._gpus import AUTO, numbers
from .._machine import cpu_name


@contextlib.contextmanager
def nan_in_new_memory() -> Iterator[None]:
    """Makes torch.empty fill new memory with NaN, so that values that a kernel does not write are detected."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


class Cpu:
    """This CPU, with the engine that the environment selects."""

    device = torch.device("cpu")

    def call(self, op: str, *args: Any) -> Any:
        return getattr(torch.ops.resnet_fused, op)(*args)

    def synchronize(self) -> None:
        """CPU ops are synchronous."""

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        """The CPU has no graphs."""
        return None

    def poisoned(self) -> contextlib.AbstractContextManager[None]:
        return nan_in_new_memory()

    def healthy(self) -> bool:
        try:
            return (torch.ones(8, device=self.device) + 1).sum().item() == 16
        except RuntimeError:  # a sticky CUDA error
            return False

    def facts(self) -> dict[str, Any]:
        return {"device": "cpu", "name": cpu_name()}


#: (bytes, count) of the blocks to poison, from which torch's caching allocator serves results and workspaces.
POISONED = ((1 << 20, 16), (32 << 20, 3))


class Cuda(Cpu):
    """torch's current GPU."""

    device = torch.device("cuda")

    def poisoned(self) -> contextlib.AbstractContextManager[None]:
        """Like :func:`nan_in_new_memory`; also fills free blocks of the caching allocator with NaN."""
        blocks = [
            torch.full((size,), 0xFF, dtype=torch.uint8, device=self.device) for size, n in POISONED for _ in range(n)
        ]
        del blocks
        return nan_in_new_memory()

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call()

        def replay() -> Any:
            graph.replay()
            return outputs

        return replay

    def facts(self) -> dict[str, Any]:
        p = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "device": "cuda",
            "name": p.name,
            "capability": f"{p.major}.{p.minor}",
            "numbers": numbers(AUTO),
            "memory_bytes": p.total_memory,
        }
