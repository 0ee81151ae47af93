"""What a planted bug meets: the exercise that passes without it fails with it, in whatever order threads run."""

import pytest

SCHEDULES = ["stay", "rotate", "random"]
by_schedule = pytest.mark.parametrize("schedule", SCHEDULES)


def assert_caught(kernels, exercise, *args):
    for schedule in SCHEDULES:
        with pytest.raises(AssertionError):
            exercise(kernels, schedule, *args)
