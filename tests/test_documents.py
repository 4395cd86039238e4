"""The Python code in README.md and docs/ runs as it stands."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a page needs beside ctflow's own requirements.
NEEDS = {
    "docs/migration/from_torchode.md": "torchode",
    "docs/plotting.md": "matplotlib",
    "docs/tutorials/ode_net.md": "sklearn",
}
SLOW = {
    "docs/compiled.md": [pytest.mark.compiler, pytest.mark.slow],
    "docs/testing.md": [pytest.mark.slow],  # in every run by testing/test_document.py
}
# The whole line that opens a block must be "```python": any other is shown and not run.
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


# Torch itself scripts its forward-mode decompositions, and has deprecated scripting.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize(
    "document",
    [
        pytest.param(path, marks=SLOW.get(path.relative_to(ROOT).as_posix(), []))
        for path in DOCUMENTS
    ],
    ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS],
)
def test_every_block_of_a_document_runs_in_order(document: Path) -> None:
    """The blocks of one document share their names, as a reader who types them in would see."""
    if document.parent.name == "tutorials" and not __debug__:
        pytest.skip("python -O drops the assert statements of a page, which are what it shows")
    needed = NEEDS.get(document.relative_to(ROOT).as_posix())
    if needed is not None:
        pytest.importorskip(needed)
    _run_blocks(document.read_text(), document)


def test_a_block_that_fails_is_noticed() -> None:
    """The error keeps the document's own line number."""
    with pytest.raises(ZeroDivisionError) as caught:
        _run_blocks("text\n\n```python\nx = 0\n```\n\n```python\n1 / x\n```\n", Path("page.md"))
    assert caught.traceback[-1].lineno == 7  # counted from 0


def test_a_wrong_output_after_a_prompt_is_noticed() -> None:
    """A block in the form of an interactive session is checked for its output."""
    with pytest.raises(doctest.DocTestFailure):
        _run_blocks("```python\n>>> 1 + 1\n3\n```\n", Path("page.md"))


def _run_blocks(text: str, document: Path) -> None:
    """Execute every Python block of one document in one namespace."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCK.finditer(text):
        code, line = block[1], text[: block.start(1)].count("\n")
        if code.startswith(">>>"):
            _run_session(code, namespace, document, line)
        else:
            exec(compile("\n" * line + code, str(document), "exec"), namespace)


def _run_session(code: str, namespace: dict[str, object], document: Path, line: int) -> None:
    """Execute one block in the form of an interactive session and compare its output."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    session = doctest.DocTestParser().get_doctest(code, {}, document.name, str(document), line)
    session.globs = namespace
    doctest.DebugRunner(optionflags=flags).run(session, clear_globs=False)
