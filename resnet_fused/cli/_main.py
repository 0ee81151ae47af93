"""Parses the command line and runs one command.

Expected failures print one sentence on stderr and exit with status 2.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from ._errors import CommandError

# Each command is a module of the same name with ``add_arguments(parser)`` and ``main(args) -> status``.
COMMANDS = {
    "info": "show versions, processors, loaded libraries, and which engines run",
    "explain": "show what convert() does to a model and which kernel each convolution uses",
    "demo": "train, convert, and compare accuracy and speed; writes a table and a chart",
    "verify": "run every kernel on this machine and compare it with PyTorch in float64",
    "bench": "compare the fused ops and models with other libraries; writes tables and charts",
    "study": "run an experiment on why residual networks work; writes figures and tables",
}

# Import name -> distribution name, where they differ.
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``argv`` (default: ``sys.argv[1:]``) and returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(argv)
    except CommandError as error:
        sentence = str(error)
    except ModuleNotFoundError as error:
        sentence = _missing(error)
    except RuntimeError as error:
        if not str(error).startswith("RESNET_FUSED_"):  # an environment variable with an invalid value
            raise
        sentence = str(error)
    except KeyboardInterrupt:
        sentence = "interrupted"
    print(f"resnet_fused: {sentence}", file=sys.stderr)
    return 2


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m resnet_fused", description="Fused ResNet blocks for PyTorch.")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    command = None
    for name, purpose in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=purpose, description=f"{name}: {purpose}.")
        if argv and argv[0] == name:  # dependencies of the other commands may not be installed
            command = importlib.import_module(f".{name}", __package__)
            command.add_arguments(subparser)
    args = parser.parse_args(argv)
    if command is None:
        parser.print_help()
        return 0
    return command.main(args) or 0


def _missing(error: ModuleNotFoundError) -> str:
    module = (error.name or "").partition(".")[0]
    if module in ("", "resnet_fused"):
        return str(error)
    distribution = DISTRIBUTIONS.get(module, module)
    return f"{module} is not installed; install it with: pip install {distribution}"
