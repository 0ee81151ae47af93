"""Shared by the GPU benchmarks: CUDA graphs, engine selection, run metadata, time limits.

Importing it does not initialise CUDA.
"""

import datetime
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from resnet_fused.cli import _machine

ENGINE = "RESNET_FUSED_CUDA_ENGINE"
PLANNED = "planned"  # the engine name without an override

Call = Callable[[], Any]
Capture = Callable[..., tuple[Call, Any]]


def captured(call: Call, launches: int = 1) -> tuple[Call, Any]:
    """Captures ``launches`` calls in a CUDA graph after a warm-up; returns its replay and the last output."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            out = call()
    graph.replay()

    def replay(_alive: Call = call) -> None:
        """Keeps the call alive: the graph reads its weights and inputs but does not own them."""
        graph.replay()

    return replay, out


_engine_of_process: str | None = None


@contextmanager
def engine(name: str, device: torch.device) -> Iterator[None]:
    """Sets ``RESNET_FUSED_CUDA_ENGINE`` to ``name``, or unsets it for ``planned``.

    On CUDA the library reads it once per process, so a second name raises ``RuntimeError``.
    """
    global _engine_of_process
    if device.type == "cuda":
        if _engine_of_process not in (None, name):
            raise RuntimeError(f"this process has run engine {_engine_of_process}; start another one for {name}")
        _engine_of_process = name
    before = os.environ.pop(ENGINE, None)
    if name != PLANNED:
        os.environ[ENGINE] = name
    try:
        yield
    finally:
        os.environ.pop(ENGINE, None)
        if before is not None:
            os.environ[ENGINE] = before


def engine_asked_for() -> str:
    """The engine that the environment selects."""
    return os.environ.get(ENGINE) or PLANNED


def environment(engine: str, device: torch.device) -> dict[str, str | None]:
    """GPU, engine, date, versions and commit of a run."""
    return {
        "gpu": _machine.device_name(device),
        "engine": engine,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version()),
        "python": platform.python_version(),
        **_machine.commit(),
    }


def path(out: Path, what: str, known: Mapping[str, Any]) -> Path:
    """``OUT/<what>-<gpu>-<engine>.json``."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{known['gpu']} {known['engine']}".lower()).strip("-")
    return out / f"{what}-{slug}.json"


def write(path: Path, report: dict[str, Any]) -> None:
    """Writes JSON atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1))
    os.replace(new, path)


def deadline(seconds: float | None) -> Callable[[], bool]:
    """A function that tells whether ``seconds`` have passed; None: never."""
    end = None if seconds is None else time.monotonic() + seconds
    return lambda: end is not None and time.monotonic() >= end


def sentence(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def require(what: str, asked: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for unknown names."""
    if unknown := set(asked) - set(known):
        raise ValueError(f"--{what} names {', '.join(sorted(unknown))}; any of {', '.join(known)} expected")
