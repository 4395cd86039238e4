"""The committed results of every reproduction, and of the benchmarks, put together for a report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _harness.registry import REPRODUCTIONS, Reproduction

__all__ = ["Result", "Section", "benchmarks", "sections", "sweeps"]

_PRESETS = ("quick", "full", "paper")  # smoke makes no claim
_EXTRA = (".png", ".gif")


@dataclass(frozen=True)
class Result:
    """One result file.

    Args:
        preset: Its preset.
        backend: The backend it was made with; "" where the script has no such setting.
        record: What it holds.
        pictures: Files drawn beside it.
        theirs: The paper's numbers, by the names of bands.
    """

    preset: str
    backend: str
    record: Mapping[str, Any]
    pictures: tuple[Path, ...]
    theirs: Mapping[str, float]

    @property
    def title(self) -> str:
        """How it is called beside others."""
        return f"{self.preset}, {self.backend}" if self.backend else self.preset

    @property
    def bands(self) -> list[dict[str, Any]]:
        """Its numbers, the paper's beside them; files of schema 1 do not hold those."""
        return [
            {**band, "paper": band.get("paper", self.theirs.get(band["name"]))}
            for band in self.record["bands"]
        ]

    @property
    def environment(self) -> Mapping[str, Any]:
        """What it was made with."""
        return self.record["environment"]


@dataclass(frozen=True)
class Section:
    """A reproduction and its results, the most thorough last."""

    entry: Reproduction
    results: tuple[Result, ...]


def sections(results: Path) -> list[Section]:
    """Every reproduction of the registry, those without results too."""
    return [Section(each, tuple(_results(results / each.name, each))) for each in REPRODUCTIONS]


def benchmarks(results: Path) -> list[Mapping[str, Any]]:
    """Records of `ctflow bench`, by workload."""
    return [record for _, record in _measured(results) if "workload" in record]


def sweeps(results: Path) -> list[Result]:
    """What `ctflow bench scaling-...` measured, by its name."""
    found: list[Result] = []
    for path, record in _measured(results):
        if "sweep" in record:
            drawn = path.with_suffix(".png")
            pictures = (drawn,) if drawn.is_file() else ()
            found.append(Result(record["sweep"], "", record, pictures, {}))
    return found


def _measured(results: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    for path in sorted((results / "benchmarks").glob("*/*.json")):
        if path.stem != "smoke":
            yield path, json.loads(path.read_text(encoding="utf-8"))


def _results(folder: Path, entry: Reproduction) -> Iterator[Result]:
    """Those of a script's own backend, then those of others, preset by preset."""
    for preset in _PRESETS:
        for path in (folder / f"{preset}.json", *sorted(folder.glob(f"*/{preset}.json"))):
            if path.is_file():
                record = json.loads(path.read_text(encoding="utf-8"))
                found = sorted(path.parent.glob(f"{preset}*"))
                drawn = tuple(each for each in found if each.suffix in _EXTRA)
                backend = record["config"].get("backend") or ""
                yield Result(preset, backend, record, drawn, entry.published)
