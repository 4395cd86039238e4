"""Real series seen at a few of their times: Mauna Loa CO2 with its gaps, and Japanese vowels.

Both come with packages of ctflow's extra `series`; nothing is downloaded, and nothing is read
before it is asked for. Sktime itself is not imported: the vowels are a text file that it brings.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow import CtflowError
from ctflow.errors import MissingDependency
from ctflow.latent import pad

__all__ = ["SETS", "Series", "Split", "load_series", "shown"]

WINDOW = 157  # weeks: three years
KNOWN = 104  # of them, the weeks that may be shown: two years


class Series(NamedTuple):
    """Series on a grid of times; what is missing, or lies behind the end of one, is masked.

    Attributes:
        t: Times, [T], from 0.
        x: Values, [B, T, D], zeros where nothing is known.
        there: Which values there are, bool [B, T].
        early: Which of them may be shown to a model, bool [B, T]; those after are to extrapolate.
        label: Class of each, [B]; zeros where there are no classes.
    """

    t: Tensor
    x: Tensor
    there: Tensor
    early: Tensor
    label: Tensor

    def part(self, rows: Tensor) -> Series:
        """Some of the series."""
        return Series(self.t, *(each[rows] for each in self[1:]))


class Split(NamedTuple):
    """What is learned from, and what is judged on; one unit of `x` is `unit` of the data."""

    train: Series
    test: Series
    unit: float


def load_series(name: str) -> Split:
    """A data set by its name in `SETS`.

    Raises:
        CtflowError: If there is none of that name, or the package that brings it is not installed.
    """
    if name not in SETS:
        raise CtflowError(f"there is no set of series {name!r}; there are: {', '.join(SETS)}.")
    return SETS[name]()


def shown(series: Series, part: float, generator: torch.Generator) -> Tensor:
    """A choice of observations to show: the first of each series and others at random.

    Args:
        series: The series.
        part: Share of the early observations of each, rounded, one at least.
        generator: Of the choice.

    Returns:
        bool [B, T].
    """
    noise = torch.rand(series.early.shape, generator=generator)
    noise = torch.where(series.early, noise, torch.inf)
    first = series.early.to(torch.int8).argmax(dim=1, keepdim=True)
    noise = noise.scatter(1, first, -1.0)
    count = (part * series.early.sum(dim=1, keepdim=True)).round().clamp(min=1)
    return noise.argsort(dim=1).argsort(dim=1) < count


def carbon_dioxide() -> Split:
    """Weekly CO2 at Mauna Loa, 1958 to 2001, in windows of three years; 59 weeks are missing.

    Windows that begin before 1982 are learned from; those that begin in 1985 or later, and so
    share no week with them, are judged. Each is measured from its first value, which is always
    shown. A unit of time is a season.
    """
    _need("statsmodels")
    from statsmodels.datasets import co2  # optional

    frame = co2.load_pandas().data
    level = torch.tensor(frame["co2"].to_numpy(), dtype=torch.float64)
    years = torch.tensor(frame.index.year.to_numpy() + frame.index.dayofyear.to_numpy() / 365.25)
    starts = torch.arange(len(level) - WINDOW + 1)
    starts = starts[~level[starts].isnan()]
    train = starts[years[starts] < 1982][::4]
    test = starts[years[starts] >= 1985][::13]
    deviation = _windows(level, train)[0].std().item()

    def series(starts: Tensor) -> Series:
        x, there = _windows(level, starts)
        early = there & (torch.arange(WINDOW) < KNOWN)
        t = torch.arange(WINDOW) * (4 * 7 / 365.25)
        none = torch.zeros(len(x), dtype=torch.int64)
        return Series(t, (x / deviation).float().unsqueeze(-1), there, early, none)

    return Split(series(train), series(test), deviation)


def vowels() -> Split:
    """Two vowels of nine speakers: 12 coefficients, 7 to 29 frames; 270 series and 370 to judge.

    A model may see the first 60 % of the frames. A unit of time is ten frames.
    """
    folder = _folder("sktime", "aeon") / "datasets" / "data" / "JapaneseVowels"
    read = [_read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST")]
    longest = max(len(x) for values, _ in read for x in values)
    mean = torch.cat(read[0][0]).mean(dim=0)
    deviation = torch.cat(read[0][0]).std(dim=0)

    def series(values: list[Tensor], label: Tensor) -> Series:
        rows = [(x - mean) / deviation for x in values]
        times = [torch.arange(len(x)) / 10 for x in values]
        rows.append(torch.zeros(longest, len(mean)))  # so that both parts have one length
        times.append(torch.arange(longest) / 10)
        x, t, there = pad(times, rows)
        x, there = x[:-1], there[:-1]
        known = (0.6 * there.sum(dim=1, keepdim=True)).round()
        return Series(t[-1], x, there, there & (torch.arange(longest) < known), label)

    return Split(series(*read[0]), series(*read[1]), 1.0)


SETS = {"co2": carbon_dioxide, "vowels": vowels}


def _windows(level: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Windows [B, WINDOW], each less its first value, and where there is one."""
    x = level[starts.unsqueeze(1) + torch.arange(WINDOW)]
    there = ~x.isnan()
    return torch.where(there, x - x[:, :1], 0.0), there


def _read_ts(path: Path) -> tuple[list[Tensor], Tensor]:
    """Series [n, D] and labels of a `.ts` file: channels apart by colons, the label last."""
    lines = path.read_text(encoding="utf-8").split("@data", 1)[1].split()
    values: list[Tensor] = []
    labels: list[int] = []
    for line in lines:
        *channels, label = line.split(":")
        rows = [[float(v) for v in channel.split(",")] for channel in channels]
        values.append(torch.tensor(rows).T)
        labels.append(int(label) - 1)
    return values, torch.tensor(labels)


def _folder(*packages: str) -> Path:
    """Where the first of some packages lies, without importing it."""
    for package in packages:
        found = find_spec(package)
        if found is not None and found.submodule_search_locations:
            return Path(found.submodule_search_locations[0])
    _need(packages[0])
    raise CtflowError(f"{packages[0]} has no folder.")


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise MissingDependency(
            f"these series come with {package}, which is not installed. "
            "Run: python -m pip install 'ctflow[series]'"
        )
