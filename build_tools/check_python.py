"""Prints one sentence if this Python cannot create .venv. Runs on any Python 3 and needs no packages."""

import sys

ANOTHER = "or name another: make setup PYTHON=python3.12"

if sys.version_info < (3, 10):  # noqa: UP036  the reason why this file exists
    version = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"resnet_fused needs Python 3.10 or newer and {sys.executable} is {version}; install one, {ANOTHER}")
try:
    import ensurepip  # noqa: F401  what Debian leaves out
    import venv  # noqa: F401
except ImportError:
    sys.exit(f"{sys.executable} makes no virtual environments; install its venv package (python3-venv), {ANOTHER}")
