"""The directive ``command-line``: what ``python -m resnet_fused COMMAND --help`` prints."""

import argparse
import importlib
import os
from typing import ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from resnet_fused.cli import _main


def help_of(command: str) -> str:
    parser = argparse.ArgumentParser(
        prog=f"python -m resnet_fused {command}", description=_main.COMMANDS[command].capitalize() + "."
    )
    importlib.import_module(f"resnet_fused.cli.{command}").add_arguments(parser)
    return parser.format_help()


class CommandLine(SphinxDirective):
    required_arguments: ClassVar[int] = 1

    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = "92"
        text = help_of(self.arguments[0])
        return [nodes.literal_block(text, text, language="none")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
