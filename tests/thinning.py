"""A pytest plugin that thins products of parameters: ``@pytest.mark.thinned`` keeps every pair of values.

Stacked ``parametrize`` marks and parametrised fixtures such as ``engine`` multiply. Nearly every bug depends on one or
two of the values, so of a test marked ``thinned`` a subset runs in which every two values of different parameters still
meet; ``thinned(3)``: every three. The choice is the same in every run. ``--combinations=all`` runs whole products.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Hashable, Iterator, Sequence

import pytest


def add_options(parser):
    parser.addoption(
        "--combinations",
        default="marked",
        metavar="marked|all|N",
        help="of tests marked `thinned` run as marked (default), the whole product, or so that every N values meet",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "thinned(t=2): runs enough combinations that every t values meet")


@pytest.hookimpl(trylast=True)  # thins what -k and -m select
def pytest_collection_modifyitems(config, items):
    if (which := config.getoption("combinations")) == "all":
        return
    products = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("thinned") and hasattr(item, "callspec"):
            products[item.nodeid.partition("[")[0]].append(item)
    left = set()
    for product in products.values():
        t = product[0].get_closest_marker("thinned").args if which == "marked" else [int(which)]
        # One id for each parametrize. `indices` does not tell them apart: in pytest 9.2 it numbers the combinations.
        kept = set(cover([tuple(item.callspec._idlist) for item in product], *t))
        left |= {item for i, item in enumerate(product) if i not in kept}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def cover(rows: Sequence[tuple[Hashable, ...]], t: int = 2) -> list[int]:
    """Indices of rows that contain every ``t`` values of different columns which any row contains.

    Greedy: always the first of the rows with the most values that have not met.
    """
    columns = [column for column in zip(*rows, strict=True) if len(set(column)) > 1]
    t = min(t, len(columns))
    meetings = [set(_meetings(columns, row, t)) for row in range(len(rows))]
    open_: set[Hashable] = set().union(*meetings)
    chosen = []
    counts = [len(m) for m in meetings]  # upper bounds, which only fall
    while open_:
        best, most = -1, 0
        for row, bound in enumerate(counts):
            if bound > most:
                counts[row] = len(meetings[row] & open_)
                if counts[row] > most:
                    best, most = row, counts[row]
        chosen.append(best)
        open_ -= meetings[best]
    return sorted(chosen)


def _meetings(columns: Sequence[tuple[Hashable, ...]], row: int, t: int) -> Iterator[Hashable]:
    for some in itertools.combinations(range(len(columns)), t):
        yield some, tuple(columns[column][row] for column in some)
