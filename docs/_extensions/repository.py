"""Links from pages to files and folders of the repository that are not pages: the site shows them.

On GitHub ``[exact.py](../benchmarks/coverage/exact.py)`` opens the file. Here it opens a page with the highlighted
source; a link to a folder opens a list of its files. What is no text, or is large, is a download.
"""

import html
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from docutils import nodes
from pygments.util import ClassNotFound
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.highlighting import PygmentsBridge
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "source/"
LARGEST = 100_000  # bytes of a file that is shown
LANGUAGES = {
    ".py": "python", ".cpp": "cpp", ".h": "cpp", ".cu": "cuda", ".cuh": "cuda", ".c": "c", ".json": "json",
    ".toml": "toml", ".md": "markdown", ".txt": "text", "Makefile": "make",
}  # fmt: skip


class LinksToRepository(SphinxTransform):
    """Replaces MyST's downloads, and links to folders that it does not resolve, by references of type "repository"."""

    default_priority = 999

    def apply(self, **kwargs: Any) -> None:
        for kind in (addnodes.download_reference, addnodes.pending_xref):
            for node in list(self.document.findall(kind)):
                path = self._path(node)
                if path is not None:
                    node.replace_self(_reference(node, path, self.env.docname))

    def _path(self, node: nodes.Element) -> str | None:
        """The path below the root, or None if this is not such a link."""
        if isinstance(node, addnodes.pending_xref) and node.get("reftype") != "myst":
            return None
        target = unquote(node.get("reftarget", "")).partition("#")[0]
        if not target or "://" in target:
            return None
        folder = ROOT / Path(self.env.doc2path(self.env.docname, base=False)).parent
        path = Path(os.path.normpath(folder / target))
        if not path.exists() or not path.is_relative_to(ROOT) or not files(path):
            return None
        page = path.relative_to(ROOT).as_posix()
        return None if self.env.path2doc(page) in self.env.found_docs else page


def _reference(node: nodes.Element, path: str, docname: str) -> addnodes.pending_xref:
    new = addnodes.pending_xref(
        "", *node.children, refdomain="", reftype="repository", reftarget=path, refdoc=docname, refexplicit=True
    )
    new.source, new.line = node.source, node.line
    return new


def files(path: Path) -> list[str]:
    """The tracked file, or all tracked files below a folder, as paths from the root."""
    command = ["git", "ls-files", "--", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def resolve(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Node) -> nodes.Node | None:
    """``missing-reference``: the link to the page that shows the file."""
    if node.get("reftype") != "repository":
        return None
    reference = nodes.reference("", "", *node.children, internal=True)
    if app.builder.format == "html":
        path = node["reftarget"]
        _shown(app).add(path)
        reference["refuri"] = app.builder.get_relative_uri(node["refdoc"], PREFIX + path)
    else:
        reference["refid"] = ""
    return reference


def _shown(app: Sphinx) -> set[str]:
    if not hasattr(app, "repository_paths"):
        app.repository_paths = set()  # type: ignore[attr-defined]
    return app.repository_paths  # type: ignore[attr-defined, no-any-return]


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """``html-collect-pages``: one for each file and folder that is linked, and for the files of those folders."""
    left, done = sorted(_shown(app)), set[str]()
    while left:
        path = left.pop()
        if path in done:
            continue
        done.add(path)
        if (ROOT / path).is_dir():
            body = _folder(app, path)
            left += [name for name in files(ROOT / path) if _is_shown(name)]
        else:
            body = _file(app, path)
        yield PREFIX + path, {"title": path, "body": f"<h1>{html.escape(path)}</h1>\n{body}"}, "page.html"


def _is_shown(path: str) -> bool:
    file = ROOT / path
    known = file.suffix in LANGUAGES or file.name in LANGUAGES
    return known and file.stat().st_size <= LARGEST


def _file(app: Sphinx, path: str) -> str:
    if not _is_shown(path):
        return f"<p>{(ROOT / path).stat().st_size:,} bytes, in the repository.</p>"
    file = ROOT / path
    bridge: PygmentsBridge = app.builder.highlighter  # type: ignore[attr-defined]
    language = LANGUAGES.get(file.suffix) or LANGUAGES[file.name]
    try:
        shown = bridge.highlight_block(file.read_text(encoding="utf-8"), language, force=True)
    except ClassNotFound:
        shown = bridge.highlight_block(file.read_text(encoding="utf-8"), "text")
    return f'<div class="highlight-{language} notranslate">{shown}</div>'


def _folder(app: Sphinx, path: str) -> str:
    rows = []
    for name in files(ROOT / path):
        text = html.escape(Path(name).relative_to(path).as_posix())
        docname = app.env.path2doc(name)
        page = docname if docname in app.env.found_docs else PREFIX + name if _is_shown(name) else None
        uri = None if page is None else app.builder.get_relative_uri(PREFIX + path, page)
        rows.append(f"<li>{text}</li>" if uri is None else f'<li><a href="{html.escape(uri)}">{text}</a></li>')
    return f"<ul>{''.join(rows)}</ul>"


def mark_reports(app: Sphinx, doctree: nodes.document) -> None:
    """``doctree-read``: reports below ``benchmarks/results`` are reached from their README, not from the navigation."""
    docname = app.env.docname
    if docname.startswith("benchmarks/results/") and not docname.endswith("/README"):
        app.env.metadata[docname]["orphan"] = True


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """``source-read``: a report may lack a title."""
    if docname.startswith("benchmarks/results/") and not source[0].startswith(("#", "<!--")):
        source[0] = f"# {Path(docname).parent.name}/{Path(docname).name}\n\n{source[0]}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_transform(LinksToRepository)
    app.connect("missing-reference", resolve)
    app.connect("html-collect-pages", pages)
    app.connect("doctree-read", mark_reports)
    app.connect("source-read", read_source)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
