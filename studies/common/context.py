"""How a study runs: its seeds, its size, and its jobs in processes of one thread each."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.progress import Progress

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Context:
    """Passed to ``run`` of a study."""

    seeds: tuple[int, ...]
    quick: bool
    cifar10: Path | None
    pool: ProcessPoolExecutor
    progress: Progress

    def map(self, label: str, function: Callable[[Job], Result], jobs: Iterable[Job]) -> dict[Job, Result]:
        """``{job: function(job)}``, computed in the pool. Give the longest jobs first; ``function`` seeds itself."""
        jobs = list(jobs)
        task = self.progress.add_task(label, total=len(jobs))
        futures = {self.pool.submit(function, job): job for job in jobs}
        results = {}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                self.progress.advance(task)
        except BaseException:  # do not compute the rest after a failure or Ctrl-C
            for future in futures:
                future.cancel()
            raise
        return {job: results[job] for job in jobs}


@contextmanager
def process_pool(workers: int | None = None) -> Iterator[ProcessPoolExecutor]:
    """One process per core, each with one thread: on images this small a second thread costs more than it gains."""
    method = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = workers or len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=method, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool
