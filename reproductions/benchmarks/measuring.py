"""Taking times in turn: what can be timed, the rounds, and what is said about them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ABSOLUTE",
    "SCALED",
    "Answer",
    "Contestant",
    "Entry",
    "Pace",
    "Spread",
    "Stopwatch",
    "Tally",
    "Timed",
    "in_rounds",
    "ratio",
]

Task: TypeAlias = Literal["forward", "exact", "adjoint"]
Samples: TypeAlias = Mapping[str, Sequence[float | None]]

ABSOLUTE = "adjoint, absolute"  # ours, with the absolute tolerance that the peers have
SCALED = "adjoint, scaled"  # torchdiffeq's, with the absolute tolerance that ours has


class Entry(NamedTuple):
    """Who takes part, and in what.

    Args:
        library: Whose solver.
        mode: "forward", or the gradient method by its owner's name.
        task: The forward pass, the exact gradient of the steps taken, or the continuous adjoint's.
    """

    library: str
    mode: str
    task: Task

    @property
    def key(self) -> str:
        """One name for both."""
        return f"{self.library} {self.mode}"


class Tally(NamedTuple):
    """What one run cost; None where the library does not tell."""

    forward: int | None
    backward: int | None
    accepted: int | None
    rejected: int | None
    doubted: bool = False


class Answer(NamedTuple):
    """What came out: all states, and all gradients (none of a forward pass), flattened."""

    states: NDArray[np.float64]
    gradients: NDArray[np.float64] | None


class Timed(Protocol):
    """What can be timed."""

    @property
    def key(self) -> str:
        """Its name in the samples."""
        ...

    def first(self) -> float:
        """Seconds of the first call, with all that happens only once."""
        ...

    def measure(self, seconds: float) -> float:
        """Milliseconds of one call: the median of as many as fill `seconds`, one at least."""
        ...


class Contestant(Timed, Protocol):
    """What can be timed and has an answer."""

    @property
    def entry(self) -> Entry:
        """Who it is."""
        ...

    def answer(self) -> Answer:
        """What it computes."""
        ...

    def tally(self) -> Tally:
        """What that costs."""
        ...


class Stopwatch:
    """Times a call in this process."""

    def __init__(self, key: str, run: Callable[[], object]) -> None:
        """Run nothing yet."""
        self.key = key
        self._run = run

    def first(self) -> float:
        """Seconds of a call."""
        began = time.perf_counter()
        self._run()
        return time.perf_counter() - began

    def measure(self, seconds: float) -> float:
        """Milliseconds of a call, after one that refills the caches if it is short."""
        times: list[float] = []
        if self.first() > seconds:
            return 1e3 * self.first()
        while sum(times) < seconds or not times:
            times.append(self.first())
        return 1e3 * median(times)


class Spread(NamedTuple):
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread:
        """Of what was measured."""
        found = [value for value in values if value is not None]
        low, middle, high = np.percentile(found, [25, 50, 75]).tolist()
        return cls(middle, low, high, len(found))


@dataclass(frozen=True)
class Pace:
    """How long to measure.

    Args:
        rounds: How often each contestant has its turn.
        seconds: How long a turn is, if a call is not longer.
        slow: A call of more than so many seconds is measured in the first `few` rounds alone.
        few: These.
    """

    rounds: int
    seconds: float
    slow: float = 5.0
    few: int = 3


def in_rounds(
    timed: Sequence[Timed], pace: Pace, show: Callable[[str], None]
) -> dict[str, list[float | None]]:
    """Milliseconds of each in each round; None where it sat one out.

    Every round has one turn of each, and begins with another one of them, so that neither a machine
    whose speed drifts nor a neighbour who leaves the caches cold decides the ratios.
    """
    samples: dict[str, list[float | None]] = {each.key: [] for each in timed}
    for number in range(pace.rounds):
        start = number % len(timed)
        for each in (*timed[start:], *timed[:start]):
            show(f"round {number + 1} of {pace.rounds}: {each.key}")
            own = samples[each.key]
            tired = number >= pace.few and (own[0] or 0.0) > 1e3 * pace.slow
            own.append(None if tired else each.measure(pace.seconds))
    return samples


def ratio(samples: Samples, slower: str, faster: str) -> Spread:
    """How many times as long one takes as another, round by round."""
    pairs = zip(samples[slower], samples[faster], strict=True)
    return Spread.of([None if a is None or b is None else a / b for a, b in pairs])
