"""The one exception that the commands raise on purpose."""


class CommandError(Exception):
    """An expected failure. ``main`` prints its sentence on stderr and exits with status 2."""
