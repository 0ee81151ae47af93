"""Mutations of the emulated kernels: the edit, the sources compiled with it, and how a test must catch it.

A module lists its mutations and an exercise that passes without them and fails with each::

    MUTATIONS = {"last split-K slice not added": value("cuda/kernels/sm80/conv_finish.cuh", old, new), ...}

    @each_mutation(mutations_of(MUTATIONS, fails(exercise), ("conv_finish",)))
    def test_mutation_is_caught(mutant, mutation):
        mutation.assert_caught(mutant)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import pytest
from cuda_on_cpu import Kernels, Library, Patch

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


class Mutation(NamedTuple):
    name: str
    path: str  # the changed file, relative to the repository
    patch: Patch
    schedules: tuple[str, ...]
    check: Exercise  # passes if the mutation is caught

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


def mutations_of(
    edits: dict[str, Edit], check: Exercise, sources: tuple[str, ...], variants: str = "true"
) -> list[Mutation]:
    """Returns the mutations that ``edits`` make in ``sources``; ``check`` must catch each."""
    return [
        Mutation(name, f"csrc/{e.file}", Patch(e.file, e.old, e.new, sources, variants), e.schedules, check)
        for name, e in edits.items()
    ]


def each_mutation(*groups: Iterable[Mutation]) -> pytest.MarkDecorator:
    """Parametrizes a test with every mutation of the groups and marks each ``mutation``."""
    every = [each for group in groups for each in group]
    assert len({each.name for each in every}) == len(every), "two mutations have one name"
    return pytest.mark.parametrize("mutation", [pytest.param(b, id=b.name, marks=pytest.mark.mutation) for b in every])


def all_mutations(items: Iterable[pytest.Item]) -> dict[pytest.Item, Mutation]:
    """Maps each test to its mutation."""
    return {item: item.callspec.params["mutation"] for item in items if item.get_closest_marker("mutation")}
