"""Hooks of mkdocs: links out of docs/, notebooks, formulas, and a reference without gaps.

A page may link to any file of the source tree, as one who reads it there would follow it. The site
gets that file too, below `source/`: pictures and pages as they are, everything else as a listing.
A link to what does not exist stays as it is, and `mkdocs build --strict` fails on it. So does a
public name that the reference does not show.
"""

from __future__ import annotations

import ast
import html
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from posixpath import relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SOURCE = "source"

FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
# No address of the web, which has a colon; a title may follow.
LINK = re.compile(r"(\]\()([^()\s#:]+)(#[^()\s]*)?((?:\s+\"[^\"]*\")?\))")
FORMULA = re.compile(r'<(div|span) class="arithmatex">\\[\[(](.*?)\\[\])]</\1>', re.DOTALL)
PUBLIC = ("*/__init__.py", "__init__.py", "errors.py", "sde.py", "solution.py", "state.py")
COMMAND_LINE = "cli/__init__.py"
AS_THEY_ARE = {".png", ".gif", ".svg", ".html"}

originals: dict[str, Path] = {}
"""Where the pages that are not below docs/ came from, by their names in the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks as pages, and every file outside docs/ that a page links to."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            name = file.src_uri.removesuffix("ipynb") + "md"
            files.append(File.generated(config, name, content=_page(Path(str(file.abs_src_path)))))
    pending = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]  # the navigation names them
    for file in files.documentation_pages():
        pending += _targets(file.content_string, (DOCS / file.src_uri).parent)
    while pending:
        path = pending.pop()
        name = _name(path)
        if name.startswith(f"{SOURCE}/") and files.get_file_from_path(name) is None:
            files.append(_added(path, name, config))
            if path.suffix == ".md":
                pending += _targets(path.read_text(), path.parent)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:  # noqa: ANN401
    """Let links to files outside docs/ lead to their places in the site."""
    here = page.file.src_uri
    folder = originals.get(here, DOCS / here).parent

    def moved(link: re.Match[str]) -> str:
        target = _resolved(folder, link[2])
        if target is None or _name(target) == here:  # a notebook's page offers the notebook itself
            return link[0]
        place = link[3] if target.suffix == ".md" and link[3] else ""  # a listing has no lines
        return link[1] + relpath(_name(target), str(Path(here).parent)) + place + link[4]

    return _outside_code(markdown, lambda text: LINK.sub(moved, text))


def on_page_content(content: str, **_: Any) -> str:  # noqa: ANN401
    """Write formulas as MathML, which browsers draw by themselves."""
    return FORMULA.sub(
        lambda found: convert(
            html.unescape(found[2]), display="block" if found[1] == "div" else "inline"
        ),
        content,
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Refuse a reference in which a public name is missing."""
    if "mkdocstrings" not in config.plugins:
        return
    inventory = (Path(config.site_dir) / "objects.inv").read_bytes().split(b"\n", 4)[4]
    shown = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    missing = missing_names(ROOT / "ctflow", shown)
    if missing:
        raise PluginError(
            f"public names that the reference does not show: {', '.join(missing)}. "
            "Write a docstring, or add them to a page below docs/api/."
        )


def missing_names(package: Path, shown: set[str]) -> list[str]:
    """Names in the `__all__` of a public module that stand under no name of the inventory."""
    tails = {name.rsplit(".", 1)[-1] for name in shown}
    modules = sorted({path for pattern in PUBLIC for path in package.glob(pattern)})
    return [
        f"{path.relative_to(package.parent)}: {name}"
        for path in modules
        if not path.as_posix().endswith(COMMAND_LINE)
        for name in _all_of(path)
        if name not in tails
    ]


def _all_of(path: Path) -> list[str]:
    """The names in a module's `__all__`."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _targets(markdown: str, folder: Path) -> Iterator[Path]:
    """Files that the links of a page lead to."""
    for link in LINK.finditer(FENCE.sub("", markdown)):
        target = _resolved(folder, link[2])
        if target is not None:
            yield target


def _resolved(folder: Path, link: str) -> Path | None:
    """The file of the source tree that a link leads to, or None."""
    path = Path(os.path.normpath(folder / link))
    return path if path.is_relative_to(ROOT) and path.is_file() else None


def _name(path: Path) -> str:
    """What a file of the source tree is called in the site."""
    if path.is_relative_to(DOCS):
        shown = path.with_suffix(".md") if path.suffix == ".ipynb" else path
        return shown.relative_to(DOCS).as_posix()
    listed = "" if path.suffix in {".md", *AS_THEY_ARE} else ".md"
    return f"{SOURCE}/{path.relative_to(ROOT).as_posix()}{listed}"


def _added(path: Path, name: str, config: MkDocsConfig) -> File:
    """A file outside docs/ as one of the site."""
    if path.suffix in AS_THEY_ARE:
        return File.generated(config, name, abs_src_path=str(path))
    originals[name] = path
    text = path.read_text()
    if path.suffix == ".md":
        return File.generated(config, name, content=text)
    language = {".py": "python", ".toml": "toml", ".json": "json", ".sh": "sh"}.get(path.suffix, "")
    title = path.relative_to(ROOT).as_posix()
    page = f"---\nsearch:\n  exclude: true\n---\n# {title}\n\n``````{language}\n{text}\n``````\n"
    return File.generated(config, name, content=page)


def _page(notebook: Path) -> str:
    """A notebook's cells as a page."""
    parts: list[str] = []
    for cell in json.loads(notebook.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```py\n{text}\n```" if cell["cell_type"] == "code" else text)
    parts.insert(1, f"[Download this notebook]({notebook.name})")
    return "\n\n".join(parts) + "\n"


def _outside_code(markdown: str, change: Callable[[str], str]) -> str:
    """The text with everything but fenced code changed."""
    parts: list[str] = []
    end = 0
    for block in FENCE.finditer(markdown):
        parts += [change(markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join(parts) + change(markdown[end:])
