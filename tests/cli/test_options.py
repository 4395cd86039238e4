"""What is given on the command line reaches a script's settings, or is refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctflow import CtflowError
from ctflow.cli.options import configured


@dataclass(frozen=True)
class Config:
    preset: str
    backend: str = "native"
    seed: int = 0
    workers: int = 2
    results: Path = Path("results/toy")


@dataclass(frozen=True)
class Bare:
    preset: str


SCRIPT = SimpleNamespace(PRESETS={"quick": Config("quick")})
BARE = SimpleNamespace(PRESETS={"quick": Bare("quick")})


def test_settings_replace_those_of_the_preset() -> None:
    """And the others stay."""
    found = configured(SCRIPT, "toy", "quick", {"seed": 3, "workers": 1})
    assert found == Config("quick", seed=3, workers=1)


def test_results_of_another_backend_lie_beside_those_of_the_scripts_own() -> None:
    """So that neither overwrites the other, and a report can show both."""
    other = configured(SCRIPT, "toy", "quick", {"backend": "scipy"})
    assert other.results == Path("results/toy/scipy")
    own = configured(SCRIPT, "toy", "quick", {"backend": "native"})
    assert own.results == Path("results/toy")


@pytest.mark.parametrize(
    "changes", [{"device": "cpu"}, {"resume": True}, {"resume": False}, {"workers": 4}, {}]
)
def test_what_holds_anyway_is_no_reason_to_refuse(changes: dict[str, object]) -> None:
    """A script without devices computes on the CPU, one that keeps nothing begins again."""
    assert configured(BARE, "toy", "quick", changes) == Bare("quick")


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"device": "cuda"}, "--device"), ({"seed": 1, "minutes": 2.0}, "--seed and --minutes")],
)
def test_what_a_script_cannot_honour_is_refused(changes: dict[str, object], words: str) -> None:
    """By the name of the option."""
    with pytest.raises(CtflowError, match=f"toy takes no {words}"):
        configured(BARE, "toy", "quick", changes)
    with pytest.raises(CtflowError, match="no preset 'paper'; there are: quick"):
        configured(BARE, "toy", "paper", {})
