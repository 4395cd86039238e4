"""A measured number beside the range in which it is accepted."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from _harness.registry import published

__all__ = ["Band", "beside_the_paper", "least"]


@dataclass(frozen=True)
class Band:
    """One number of ours, and where it has to lie; NaN lies nowhere.

    Args:
        name: What was measured.
        value: What came out.
        low: Smallest value accepted; None for no limit.
        high: Largest value accepted; None for no limit.
        paper: What the paper has; None where it has no such number.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    paper: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the value is accepted."""
        above = self.value == self.value and (self.low is None or self.value >= self.low)
        return above and (self.high is None or self.value <= self.high)

    def __str__(self) -> str:
        """One line: the number, its band, and the verdict."""
        limits = [f"at least {self.low:g}"] if self.low is not None else []
        limits += [f"at most {self.high:g}"] if self.high is not None else []
        accepted = f"accepted: {' and '.join(limits)}"
        paper = "" if self.paper is None else f"; the paper: {self.paper:.4g}"
        verdict = "ok" if self.passed else "MISSED"
        return f"{self.name}: {self.value:.4g} ({accepted}{paper}) {verdict}"

    def record(self) -> dict[str, object]:
        """The band as it stands in a result file."""
        return {
            "name": self.name,
            "value": self.value if self.value == self.value else None,
            "low": self.low,
            "high": self.high,
            "passed": self.passed,
            "paper": self.paper,
        }


def least(values: Iterable[float]) -> float:
    """The smallest; NaN if one of them is, which `min` may pass over."""
    found = list(values)
    return math.nan if any(math.isnan(value) for value in found) else min(found)


def beside_the_paper(name: str, bands: Iterable[Band]) -> list[Band]:
    """The bands of a reproduction with the paper's numbers, as the registry has them."""
    theirs = published(name)
    return [replace(band, paper=theirs.get(band.name)) for band in bands]
