"""Residual blocks at the four stages of a ResNet, in eval mode."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def test_block(replay: Callable[[], None], benchmark: BenchmarkFixture) -> None:
    # `benchmark` is named here because --benchmark-only looks for it
    replay()
