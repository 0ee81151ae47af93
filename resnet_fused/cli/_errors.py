"""The exception that the commands raise for expected failures."""


class CommandError(Exception):
    """An expected failure. ``main`` prints its message on stderr and exits with status 2."""
