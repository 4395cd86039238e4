"""What docs/testing.md says is printed is what is printed, up to its numbers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[2] / "docs/testing.md"
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\b\d[\d.]*(?:e[+-]\d+)?")


@pytest.mark.once
def test_the_printed_reports_are_those_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    """Counts of steps and the like depend on the machine; words do not."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    shown: list[str] = []
    printed: list[str] = []
    for code, text in BLOCK.findall(DOCUMENT.read_text()):
        if "run_backend_conformance(" in code:  # prints nothing, and takes a while
            continue
        exec(code, namespace)
        shown.append(_words(text))
        printed.append(_words(capsys.readouterr().out))
    assert sum(map(bool, shown)) > 5
    assert printed == shown


def _words(text: str) -> str:
    return " ".join(NUMBER.sub("#", text).split())
