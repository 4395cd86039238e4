"""Committed results lie within their bands, and the bands are those of the code."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import util
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parents[2] / "reproductions" / "results"
COMMITTED = sorted(
    p for p in RESULTS.rglob("*.json") if p.stem != "smoke" and ".runs" not in p.parts
)
# No claims; which of the `sets` of data it was stands under "data".
CHANGED_BY_RUNS = {"results", "minutes", "workers", "job", "sets"}
OF_SCRIPTS = [p for p in COMMITTED if p.parent.parent == RESULTS]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: str(p.relative_to(RESULTS)))
def test_every_number_is_within_its_band(path: Path) -> None:
    """The verdict is worked out again from the numbers, and is the one that was written down."""
    bands = json.loads(path.read_text())["bands"]
    assert bands
    for band in bands:
        assert band["value"] is not None, band
        assert band["low"] is None or band["value"] >= band["low"], band
        assert band["high"] is None or band["value"] <= band["high"], band
        assert band["passed"] is True, band


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: str(p.relative_to(RESULTS)))
def test_a_result_says_what_it_was_made_with(path: Path) -> None:
    """Commit, versions, machine; from schema 2 on also command, times and the paper's numbers."""
    record = json.loads(path.read_text())
    environment = record["environment"]
    assert environment["commit"]
    assert environment["versions"]["torch"]
    assert environment["machine"]["cpus"]
    if environment.get("schema", 1) >= 2:
        assert environment["command"].startswith("ctflow ")
        assert environment["seconds"]["processor"] > 0
        assert all("paper" in band for band in record["bands"])


@pytest.mark.parametrize("path", OF_SCRIPTS, ids=lambda p: str(p.relative_to(RESULTS)))
def test_a_limit_written_in_the_code_is_that_of_the_result(path: Path) -> None:
    """Else a band could be widened without the results being looked at again."""
    script = RESULTS.parent / f"{path.parent.name}.py"
    bands = {band["name"]: band for band in json.loads(path.read_text())["bands"]}
    for name, side, limit in _limits(script):
        if name in bands:
            assert bands[name][side] == limit, (name, side)


@pytest.mark.parametrize("path", OF_SCRIPTS, ids=lambda p: str(p.relative_to(RESULTS)))
def test_a_result_was_made_with_the_settings_of_its_preset(path: Path) -> None:
    """Those that limit a number among them."""
    recorded = json.loads(path.read_text())["config"]
    preset = asdict(_module(path.parent.name).PRESETS[path.stem])
    for key in sorted(set(recorded) & set(preset) - CHANGED_BY_RUNS):
        assert recorded[key] == json.loads(json.dumps(preset[key], default=str)), key


def _limits(script: Path) -> Iterator[tuple[str, str, float]]:
    """Every limit that is a number in a `Band("name", value, low, high)` of the source.

    Without those of a name that another `Band(f"...")` gives too: which of them it was is not said.
    """
    calls = [
        node
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Band"
    ]
    formed = [_pattern(node.args[0]) for node in calls if isinstance(node.args[0], ast.JoinedStr)]
    for node in calls:
        first = node.args[0]
        name = first.value if isinstance(first, ast.Constant) else None
        if name is None or any(pattern.fullmatch(name) for pattern in formed):
            continue
        given = dict(zip(("low", "high"), node.args[2:], strict=False))
        given |= {word.arg: word.value for word in node.keywords if word.arg in ("low", "high")}
        for side, value in given.items():
            with suppress(ValueError):  # a setting, which the settings' own test looks at
                yield name, side, ast.literal_eval(value)


def _pattern(text: ast.JoinedStr) -> re.Pattern[str]:
    """What an f-string may become."""
    parts = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in text.values]
    return re.compile("".join(parts))


def _module(name: str) -> Any:  # noqa: ANN401
    spec = util.spec_from_file_location(name, RESULTS.parent / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_the_readme_quotes_what_was_measured() -> None:
    """Line by line, as `ctflow bench` wrote it."""
    rows = (RESULTS / "benchmarks" / "README.md").read_text().splitlines()
    readme = (RESULTS.parents[1] / "README.md").read_text().splitlines()
    quoted = [line for line in readme if line.startswith("| ") and "(compiled" in line]
    assert quoted
    assert set(quoted) <= set(rows)


def test_the_readme_quotes_the_papers_numbers_beside_those_that_were_committed() -> None:
    """The whole table, as `ctflow report` wrote it, and as the results have it now."""
    pytest.importorskip("matplotlib")
    from _harness.quoted import QUOTED, quoted

    table = quoted(RESULTS)
    assert len(table.splitlines()) == 2 + sum(map(len, QUOTED.values()))
    assert (RESULTS / "report" / "quoted.md").read_text() == table
    assert table in (RESULTS.parents[1] / "README.md").read_text()
    paper = (RESULTS.parents[1] / "docs" / "paper.md").read_text().splitlines()
    rows = [line for line in paper if line.startswith("| ")]
    assert len(rows) > 2
    assert set(rows) <= set(table.splitlines())


def test_there_are_results() -> None:
    """The folder is where it was."""
    assert len(COMMITTED) >= 3
