"""Bugs planted in the emulated kernels: the edit, the sources compiled with it, and how a test must catch it.

A module lists its bugs and an exercise that passes without them and fails with each::

    BUGS = {"last split-K slice not added": value("cuda/kernels/sm80/conv_finish.cuh", old, new), ...}

    @each_bug(bugs_of(BUGS, fails(exercise), ("conv_finish",)))
    def test_bug_is_caught(planted, bug):
        bug.assert_caught(planted)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
from cuda_on_cpu import Kernels, Library, Plant

SCHEDULES = ["stay", "rotate", "random"]
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES)

# Runs the kernels under a schedule; raises AssertionError if they are wrong.
Exercise = Callable[[Kernels | Library, str], None]


class Edit(NamedTuple):
    """Replaces ``old`` by ``new`` in ``file`` (below csrc/); must be caught under each of ``schedules``."""

    file: str
    old: str
    new: str
    schedules: tuple[str, ...]


def value(file: str, old: str, new: str) -> Edit:
    """A wrong sum, index, bound or mask, independent of the order of threads."""
    return Edit(file, old, new, ("stay",))


def order(file: str, old: str, new: str) -> Edit:
    """A wrong barrier, wait, fence, parity or buffer lifetime, which some schedules may hide."""
    return Edit(file, old, new, tuple(SCHEDULES))


class PlantedBug(NamedTuple):
    name: str
    path: str  # the changed file, relative to the repository
    plant: Plant
    schedules: tuple[str, ...]
    check: Exercise  # passes if the bug is caught

    @property
    def family(self) -> str:
        """The changed folder of csrc/cuda/kernels or csrc/cuda/device, or ``primitives``."""
        folders = self.path.split("/")
        return folders[3] if folders[0] == "csrc" else "primitives"

    def assert_caught(self, kernels: Kernels | Library) -> None:
        for schedule in self.schedules:
            self.check(kernels, schedule)


def fails(exercise: Exercise) -> Exercise:
    def check(kernels: Kernels | Library, schedule: str) -> None:
        with pytest.raises(AssertionError):
            exercise(kernels, schedule)

    return check


def bugs_of(
    edits: dict[str, Edit], check: Exercise, sources: tuple[str, ...], variants: str = "true"
) -> list[PlantedBug]:
    """Returns the bugs that ``edits`` plant in ``sources``; ``check`` must catch each."""
    return [
        PlantedBug(name, f"csrc/{e.file}", Plant(e.file, e.old, e.new, sources, variants), e.schedules, check)
        for name, e in edits.items()
    ]


def each_bug(*groups: Iterable[PlantedBug]) -> pytest.MarkDecorator:
    """Parametrizes a test with every bug of the groups and marks each ``planted_bug``."""
    bugs = [bug for group in groups for bug in group]
    assert len({bug.name for bug in bugs}) == len(bugs), "two bugs have one name"
    return pytest.mark.parametrize("bug", [pytest.param(b, id=b.name, marks=pytest.mark.planted_bug) for b in bugs])


def all_bugs(items: Iterable[pytest.Item]) -> dict[pytest.Item, PlantedBug]:
    """Maps each test to its planted bug."""
    return {item: item.callspec.params["bug"] for item in items if item.get_closest_marker("planted_bug")}
