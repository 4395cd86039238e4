"""What ctflow has set out to reach, as ratios of times in one run; stated here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from _harness.bands import Band

from benchmarks.measuring import ABSOLUTE, Entry, Spread, ratio

__all__ = ["COMPARISONS", "OVERHEAD", "TARGETS", "Comparison", "compared", "fastest", "overheads"]


class Comparison(NamedTuple):
    """One column of the table: the fastest of ours against the fastest of a peer's.

    Args:
        name: Its heading.
        task: What of ours takes part.
        peer: Whose time is divided by ours.
        modes: Which of the peer's take part.
    """

    name: str
    task: str
    peer: str
    modes: tuple[str, ...]


COMPARISONS = (
    Comparison("forward vs torchdiffeq", "forward", "torchdiffeq", ("forward",)),
    Comparison("forward vs diffrax", "forward", "diffrax", ("forward",)),
    Comparison("gradient vs torchdiffeq's fastest", "exact", "torchdiffeq", ("direct", "adjoint")),
    Comparison("gradient vs diffrax checkpointed", "exact", "diffrax", ("checkpointed",)),
    Comparison("adjoint vs torchdiffeq adjoint", "adjoint", "torchdiffeq", ("adjoint",)),
    Comparison("adjoint vs diffrax backsolve", "adjoint", "diffrax", ("backsolve",)),
)
TARGETS: Mapping[str, tuple[float, ...]] = {
    "spiral-mlp": (25.0, 1.0, 20.0, 1.3, 80.0, 3.0),
    "cnf-2d": (4.0, 1.2, 3.0, 2.0, 4.0, 4.0),
    "latent-ode": (6.0, 1.2, 5.0, 1.3, 12.0, 3.0),
    "odenet-conv": (1.5, 1.5, 1.4, 1.5, 1.4, 1.5),
}
OVERHEAD = 1.2  # time over limit, at most, where one evaluation costs more than
COSTLY = 0.05  # milliseconds

Samples = Mapping[str, Sequence[float | None]]


def fastest(
    entries: Sequence[Entry], samples: Samples, wanted: Mapping[str, Sequence[str]]
) -> Entry | None:
    """The entry with the least median among those whose fields have one of the wanted values."""
    able = [
        entry
        for entry in entries
        if all(getattr(entry, name) in values for name, values in wanted.items())
    ]
    return min(able, key=lambda entry: Spread.of(samples[entry.key]).median, default=None)


def compared(
    workload: str,
    entries: Sequence[Entry],
    samples: Samples,
    asked: Sequence[str],
    errors: Mapping[str, float],
) -> list[Band]:
    """Our standing in every comparison with a target; NaN where one side is missing.

    Args:
        workload: Which row of the table.
        entries: Who was measured.
        samples: Their times by round.
        asked: Tasks and peers that the run was to have; a comparison outside is left out.
        errors: Their errors, by key. With the peers' absolute tolerance we take part only
            where we are not farther off than the peer.
    """
    bands = []
    ours = tuple({entry.library for entry in entries if entry.library.startswith("ctflow")})
    for column, goal in zip(COMPARISONS, TARGETS.get(workload, ()), strict=False):
        if column.task not in asked or column.peer not in asked:
            continue
        peer = fastest(entries, samples, {"library": [column.peer], "mode": column.modes})
        most = float("nan") if peer is None else errors[peer.key]
        able = [e for e in entries if e.mode != ABSOLUTE or errors[e.key] <= most]
        own = fastest(able, samples, {"library": ours, "task": [column.task]})
        value = float("nan")
        if own is not None and peer is not None:
            value = ratio(samples, peer.key, own.key).median
        bands.append(Band(column.name, value, low=goal))
    return bands


def overheads(
    entries: Sequence[Entry], samples: Samples, limits: Mapping[str, float | None], f: float
) -> list[Band]:
    """Time over limit of the fastest of ours in each task, where an evaluation is costly.

    Args:
        entries: Who was measured.
        samples: Their times by round.
        limits: Milliseconds, by key.
        f: Milliseconds of one evaluation, compiled.
    """
    if not f > COSTLY:
        return []
    bands = []
    ours = tuple({entry.library for entry in entries if entry.library.startswith("ctflow")})
    for task in ("forward", "exact", "adjoint"):
        own = fastest(entries, samples, {"library": ours, "task": [task]})
        least = None if own is None else limits[own.key]
        if own is not None and least:
            value = Spread.of(samples[own.key]).median / least
            bands.append(Band(f"time over limit, {own.key}", value, high=OVERHEAD))
    return bands
