"""The directive ``command-line``: what each ``python -m resnet_fused COMMAND --help`` prints."""

import argparse
import importlib
import os

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from resnet_fused.cli import _main

COLUMNS = 92


def help_of(command: str) -> str:
    purpose = _main.COMMANDS[command]
    parser = argparse.ArgumentParser(
        prog=f"python -m resnet_fused {command}", description=f"{purpose[0].upper()}{purpose[1:]}."
    )
    importlib.import_module(f"resnet_fused.cli.{command}").add_arguments(parser)
    return parser.format_help()


class CommandLine(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        os.environ["COLUMNS"] = str(COLUMNS)  # argparse reads it
        found: list[nodes.Node] = []
        for command in _main.COMMANDS:
            text = help_of(command)
            section = nodes.section("", nodes.title(command, command), ids=[command], names=[command])
            section += nodes.literal_block(text, text, language="none")
            found.append(section)
        return found


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
