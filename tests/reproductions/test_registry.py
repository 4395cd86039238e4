"""The registry knows every script, each by names of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from _harness.bands import Band, beside_the_paper
from _harness.records import environment, run_as
from _harness.registry import REPRODUCTIONS, Reproduction, published

from ctflow.cli.checkout import scripts
from ctflow.cli.registry import listing

ROOT = Path(__file__).parents[2]


def test_every_script_is_in_the_registry_and_the_other_way_round() -> None:
    """Once."""
    assert sorted(each.name for each in REPRODUCTIONS) == scripts(ROOT)


def test_a_name_stands_for_one_reproduction() -> None:
    """Aliases included; `all` is none."""
    names = [name for each in REPRODUCTIONS for name in (each.name, *each.aliases)]
    assert len(set(names)) == len(names)
    assert "all" not in names


@pytest.mark.parametrize("each", REPRODUCTIONS, ids=lambda each: each.name)
def test_an_entry_says_what_it_shows_and_how_long_it_takes(each: Reproduction) -> None:
    """In one line, and in minutes."""
    assert each.of
    assert each.shows
    assert "\n" not in each.shows
    assert each.claim.endswith(".")
    assert each.minutes["quick"] > 0


def test_a_paper_number_belongs_to_a_band_of_its_script() -> None:
    """By a name that some committed result has: a misspelt one would never be shown."""
    for each in REPRODUCTIONS:
        files = (ROOT / "reproductions/results" / each.name).glob("*.json")
        names = {band["name"] for f in files for band in json.loads(f.read_text())["bands"]}
        ours = {name for name in each.published if "50/100" not in name and "100/100" not in name}
        assert ours <= names, each.name


def test_the_paper_number_stands_beside_ours() -> None:
    """In the line, and in the record; none where the paper has none."""
    known, unknown = beside_the_paper(
        "table_1", [Band("ODE-Net, error in percent", 1.3, high=2.0), Band("else", 1.0, low=0.0)]
    )
    assert "; the paper: 0.42)" in str(known)
    assert known.record()["paper"] == published("table_1")[known.name]
    assert unknown.record()["paper"] is None


def test_a_record_says_which_command_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And how long it took; outside of a command it says that it does not know."""
    monkeypatch.setattr("_harness.records._run", None)
    assert environment()["command"] is None
    run_as("ctflow reproduce digits --preset quick")
    found = environment()
    assert found["command"] == "ctflow reproduce digits --preset quick"
    assert found["schema"] == 2
    assert found["seconds"]["elapsed"] >= 0
    assert found["seconds"]["processor"] >= 0


def test_the_command_line_lists_them_in_the_order_of_the_registry() -> None:
    """With their times."""
    assert [each.name for each in listing(ROOT)] == [each.name for each in REPRODUCTIONS]
