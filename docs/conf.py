"""Sphinx's configuration. The source directory is the repository, so that links work on GitHub and on the site."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs/_extensions")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))  # for notebooks

import resnet_fused  # noqa: E402

project = "resnet_fused"
author = "The resnet_fused authors"
project_copyright = "the resnet_fused authors, BSD-3-Clause"
version = release = resnet_fused.__version__

extensions = [
    "myst_nb",  # Markdown, and notebooks that run during the build
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "repository",  # docs/_extensions
    "command_line",
]

root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "examples/README.md",
    "examples/*.ipynb",
    "studies/*.md",
    "benchmarks/README.md",
    "benchmarks/results/**.md",
    "tests/golden/README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = [".venv", "build", "benchmarks/results/**/notes.md"]  # notes are parts of the reports

# Markdown
myst_heading_anchors = 4  # GitHub's anchors
myst_enable_extensions: list[str] = []  # GitHub has none
highlight_language = "none"  # of indented blocks
suppress_warnings = [
    "myst.header",  # generated reports leave a level of headings out
]

# Notebooks run on every build, and an exception in a cell fails it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

# The API
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
python_display_short_literal_types = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
add_module_names = False
nitpick_ignore_regex = [
    # Other projects' objects: their inventories are on web sites, which the build does not read.
    (r"py:.*", r"(torch|torchvision|typing|collections|nn)\..*"),
    # Types in signatures that are no part of the API: type variables, and what derived specs hold.
    (r"py:class", r"resnet_fused\.(convert|freeze)\.Model"),
    (r"py:class", r"resnet_fused\.chain\..*"),
]

# The HTML
html_theme = "furo"
html_title = "resnet_fused"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = True

# `make linkcheck`
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]
