"""ResNet-18 and ResNet-50 at 224x224, in eval mode."""

from collections.abc import Callable

from pytest_benchmark.fixture import BenchmarkFixture


def test_model(replay: Callable[[], None], benchmark: BenchmarkFixture) -> None:
    # `benchmark` is named here because --benchmark-only looks for it
    replay()
