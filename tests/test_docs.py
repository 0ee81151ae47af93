"""The documentation's snippets run, its commands exist, docstrings' examples hold, and the API pages are complete.

The snippets of a page run in order and share a namespace, with Sybil. Comments such as ``<!--- invisible-code-block:
python ... -->`` are set-up that neither GitHub nor the site shows.
"""

import argparse
import doctest
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import sys
import types
from pathlib import Path

import pytest

import resnet_fused
from resnet_fused import functional, models, modules, reference
from resnet_fused.cli._main import COMMANDS
from resnet_fused.recognise import registered

if importlib.util.find_spec("sybil") is None and not os.environ.get("CI"):
    pytest.skip("sybil not installed; 'make setup' installs it", allow_module_level=True)

from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "studies").glob("*.md")),
]
# Pages whose commands are checked too.
OTHERS = [ROOT / path for path in ("benchmarks/README.md", "examples/README.md", "tests/golden/README.md")]
FLAGS = doctest.ELLIPSIS
# A block of Python by any name that GitHub highlights.
FENCE = re.compile(r"^\s*(?:```|~~~)\s*(?:\{code[\w-]*\}\s*)?(python|py|python3|pycon|ipython)\b", re.MULTILINE)


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


WITH_SNIPPETS = [page for page in PAGES if FENCE.search(page.read_text(encoding="utf-8"))]


@pytest.fixture
def _random_weights(monkeypatch):
    """``weights="DEFAULT"`` gives random weights of the same network, not a download."""
    from torchvision.models import WeightsEnum, get_model

    def random(self, *args, **kwargs):
        return get_model(type(self).__name__.removesuffix("_Weights").lower()).state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", random)


@pytest.mark.usefixtures("_random_weights")
@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=names(WITH_SNIPPETS))
def test_snippets_run(page, tmp_path, monkeypatch):
    document = Sybil([PythonCodeBlockParser(doctest_optionflags=FLAGS)]).parse(page)
    module = types.ModuleType("snippets")  # of the page's classes
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document.namespace = vars(module)
    monkeypatch.chdir(tmp_path)  # for files that a snippet writes
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(registered, "_registered", dict(registered._registered))  # for pages that register a block
    for example in document.examples():
        example.evaluate()


@pytest.mark.parametrize("page", WITH_SNIPPETS, ids=names(WITH_SNIPPETS))
def test_no_snippet_is_left_out(page):
    text = page.read_text(encoding="utf-8")
    hidden = len(re.findall(r"<!---? *(?:invisible-)?code(?:-block)?: *python", text))
    assert [fence for fence in FENCE.findall(text) if fence != "python"] == [], "only 'python' blocks run"
    assert len(list(Sybil([CodeBlockParser("python", lambda _: None)]).parse(page).examples())) == hidden + len(
        FENCE.findall(text)
    )
    assert "<!--- skip" not in text


def test_a_broken_snippet_fails(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\n>>> x + 1\n3\n```\n")
    examples = list(Sybil([PythonCodeBlockParser()]).parse(page).examples())
    examples[0].evaluate()
    with pytest.raises(AssertionError, match=r"page\.md.*line 6(?s:.)*Expected"):
        examples[1].evaluate()


def commands(text):
    """Yields the commands of ``console`` blocks, as words, without comments, variables and optional parts."""
    for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", "", block).splitlines()
        for line in (line.removeprefix("$ ") for line in lines if line.startswith("$ ")):
            yield from split(line)
    for code in re.findall(r"`((?:python3? -m resnet_fused|make) [^`]*)`", " ".join(text.split())):
        yield from split(code)


def split(line):
    without_comment = re.sub(r"\s#.*", "", line).replace("[", " ").replace("]", " ").replace("...", "")
    for command in without_comment.split("&&"):
        words = shlex.split(re.sub(r"<[^>]*>", "PLACEHOLDER", command))
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


def options_of(path):
    return set(re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8")))


def check_python(arguments):
    """Checks ``-m MODULE ...`` or ``FILE ...``."""
    if arguments[0] != "-m":
        path = ROOT / arguments[0]
        assert path.is_file(), f"no file {arguments[0]}"
        rest = arguments[1:]
    else:
        module, rest = arguments[1], arguments[2:]
        if module == "resnet_fused":
            check_command_line(rest)
            return
        if module in ("pip", "pytest", "venv"):
            return
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, f"no module {module}"
        path = Path(spec.origin)
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
    if path.name == "setup.py":
        return
    missing = {word.partition("=")[0] for word in rest if word.startswith("--")} - options_of(path)
    assert not missing, f"{path.name} has no {', '.join(sorted(missing))}"


def check_command_line(arguments):
    if not arguments or arguments[0] == "COMMAND":
        return
    assert arguments[0] in COMMANDS, f"no command {arguments[0]}"
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(f"resnet_fused.cli.{arguments[0]}").add_arguments(parser)
    if len(arguments) == 1:  # a mention of the command
        return
    if any(re.fullmatch(r"[A-Z]+", word) for word in arguments):  # NAME stands for something
        missing = {word for word in arguments if word.startswith("--")} - parser._option_string_actions.keys()
        assert not missing, f"{arguments[0]} has no {', '.join(sorted(missing))}"
        return
    try:
        parser.parse_args(arguments[1:])
    except (SystemExit, argparse.ArgumentError) as error:
        pytest.fail(f"python -m resnet_fused {' '.join(arguments)}: {error}")


TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def check(words):
    program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
    if program == "make":
        targets = [word for word in arguments if not re.match(r"[A-Z_]+=|-", word)]
        assert targets, "make without a target"
        assert set(targets) <= TARGETS, f"no target {set(targets) - TARGETS}"
    elif program in ("python", "python3"):
        check_python(arguments)
    elif program in ("pytest", "torchrun"):
        paths = [word for word in arguments if word.endswith(".py") or word in ("tests", "benchmarks")]
        assert paths, words
        assert all((ROOT / path).exists() for path in paths), f"no such file: {paths}"
    else:
        assert program in ("git", "cd", "pip", "export", "."), f"no check of {program}"


WITH_COMMANDS = [page for page in [*PAGES, *OTHERS] if any(commands(page.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=names(WITH_COMMANDS))
def test_commands_exist(page):
    for words in commands(page.read_text(encoding="utf-8")):
        check(words)


@pytest.mark.parametrize(
    "line",
    ["make no-target", "python -m resnet_fused check", "python -m resnet_fused verify --fast", "python examples/no.py",
     "python -m benchmarks.training --no-such-option", "curl x"],
)  # fmt: skip
def test_wrong_commands_are_found(line):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(line.split())


def doctests():
    """The docstrings of the package, without its command line, that have examples."""
    found = {}
    for module in [
        resnet_fused,
        *(
            importlib.import_module(info.name)
            for info in pkgutil.walk_packages(resnet_fused.__path__, "resnet_fused.")
            if not re.search(r"\.(_C|_C_cuda|cli|__main__|_build_info)\b", info.name)
        ),
    ]:
        for test in doctest.DocTestFinder(exclude_empty=True).find(module):
            if test.examples and test.filename == module.__file__:
                found[test.name] = test
    return found


DOCTESTS = doctests()


@pytest.mark.parametrize("name", DOCTESTS)
def test_examples_of_docstrings_hold(name):
    shown = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(DOCTESTS[name], out=shown.append, clear_globs=False)
    assert not failed, "".join(shown)


# Page below docs/api -> the names that it must document.
API = {
    "convert": {name for name in resnet_fused.__all__ if name not in ("functional", "models")},
    "functional": {
        name
        for name, value in vars(functional).items()
        if getattr(value, "__module__", "") == functional.__name__ and not name.startswith("_")
    },
    "models": set(models.__all__),
    "blocks": set(modules.__all__),
    "reference": set(reference.__all__),
}


@pytest.mark.parametrize("page", API)
def test_api_pages_have_every_public_name(page):
    def documented(stem):
        text = (ROOT / "docs/api" / f"{stem}.md").read_text()
        return set(re.findall(r"^\.\. auto(?:function|class|data):: (\w+)$", text, re.MULTILINE))

    fused = {name for name in resnet_fused.__all__ if name.startswith("Fused")}
    assert documented(page) | (fused if page == "convert" else set()) == API[page]


@pytest.mark.parametrize("page", API)
def test_public_objects_have_docstrings(page):
    owners = {"convert": resnet_fused, "functional": functional, "models": models, "blocks": modules}
    for name in API[page]:
        value = getattr(owners.get(page, reference), name)
        assert not callable(value) or inspect.getdoc(value), name


# Pages of which the site shows parts only, so that `make docs` checks the links of those parts.
PARTS = [ROOT / "README.md", *sorted((ROOT / "benchmarks/results").glob("*/notes.md"))]


@pytest.mark.parametrize("page", PARTS, ids=names(PARTS))
def test_links_of_pages_outside_the_site_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in link or (page.parent / link).exists(), f"{page.name} links to {link}"


def test_readme_is_short_and_imports_what_it_uses():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 650
    assert "import " in text and "resnet_fused" in text
