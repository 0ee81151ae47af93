"""Tests marked ``thinned`` still combine every pair of their parameters' values."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from thinning import cover

TESTS = Path(__file__).resolve().parent
PRODUCT = """
import pytest

pytestmark = pytest.mark.parametrize("a", range(4))

@pytest.fixture(params="xyz")
def of_fixture(request): return request.param

@pytest.mark.thinned
@pytest.mark.parametrize(("b", "c"), [(1, 2), (3, 4), (5, 6)])
def test_pairs(a, b, c, of_fixture): pass

@pytest.mark.thinned(3)
@pytest.mark.parametrize("b", range(3))
def test_all(a, b, of_fixture): pass

@pytest.mark.parametrize("b", range(3))
def test_unmarked(a, b): pass

@pytest.mark.thinned
def test_one_parameter(a): pass
"""


@pytest.mark.parametrize("sizes", [(2, 3), (4, 3, 2), (3, 3, 3, 3), (44, 8, 3), (1, 5, 1, 2)])
@pytest.mark.parametrize("t", [1, 2, 3])
def test_every_two_or_three_values_meet(sizes, t):
    rows = list(itertools.product(*map(range, sizes)))
    kept = [rows[i] for i in cover(rows, t)]
    for some in itertools.combinations(range(len(sizes)), min(t, len(sizes))):
        assert {tuple(row[i] for i in some) for row in kept} == {tuple(row[i] for i in some) for row in rows}
    wide = sorted(sizes)[-min(t, len(sizes)) :]
    least = wide[0] * (wide[1] if len(wide) > 1 else 1) * (wide[2] if len(wide) > 2 else 1)
    assert least <= len(kept) <= 1.5 * least


def test_incomplete_product_keeps_what_it_has():
    rows = [(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
    assert set(cover(rows)) <= set(range(5))
    pairs = {(i, j, row[i], row[j]) for row in rows for i, j in itertools.combinations(range(3), 2)}
    assert {
        (i, j, rows[k][i], rows[k][j]) for k in cover(rows) for i, j in itertools.combinations(range(3), 2)
    } == pairs
    assert cover([(0,), (1,)]) == [0, 1]
    assert cover([()]) == [0]


def test_marked_products_run_in_part(tmp_path):
    (tmp_path / "test_product.py").write_text(PRODUCT)
    (tmp_path / "conftest.py").write_text("import thinning\npytest_addoption = thinning.add_options\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "thinning", "-p", "no:cacheprovider", "--strict-markers"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for which, expected in (("marked", "64 passed, 24 "), ("all", "88 passed "), ("1", "24 passed, 64 ")):
        done = subprocess.run(
            [*command, "--combinations", which], cwd=tmp_path, env=environment, check=False, text=True,
            capture_output=True,
        )  # fmt: skip
        assert done.stdout.splitlines()[-1].startswith(expected), done.stdout + done.stderr
