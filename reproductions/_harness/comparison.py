"""The same weights under every backend and gradient method: who takes part, and the table."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

from rich.table import Table

from ctflow import ODEProblem, Solver, Stats
from ctflow.backends import available, get
from ctflow.backends.registry import names
from ctflow.errors import GradientWarning
from ctflow.testing.routes import prompt

__all__ = ["Row", "accepted_solvers", "evaluations", "table_of", "timed"]

_GRADIENTS = ("direct", "checkpointed", "adjoint")


@dataclass(frozen=True)
class Row:
    """What one backend and gradient method made of the trained weights.

    Args:
        backend: Name of the backend.
        gradient: Its gradient method.
        accuracy: Share of the test set that was classified right.
        forward: Evaluations of the field in a forward pass, mean over the samples.
        backward: Likewise in the backward pass; back-propagation alone evaluates nothing.
        milliseconds: Time of one forward and backward pass at the tolerance of the training.
        doubted: Whether that pass warned that its gradient may be wrong.
        difference: ||gradient - reference|| / ||reference||.
    """

    backend: str
    gradient: str
    accuracy: float
    forward: float
    backward: float
    milliseconds: float
    doubted: bool
    difference: float


def accepted_solvers(problem: ODEProblem, solver: Solver) -> Iterator[Solver]:
    """`solver` with each backend that begins at once, and each gradient method not refused."""
    for name, gradient in product(prompt(), _GRADIENTS):
        candidate = replace(solver, backend=name, gradient=gradient)
        if not get(name).refuse(problem, candidate):
            yield candidate


def timed(run: Callable[[], object], repeats: int) -> tuple[float, bool]:
    """Milliseconds of a call (median, after one to warm up), and whether it doubts its gradient.

    A `GradientWarning` is caught and becomes the answer; any other warning passes.
    """
    times: list[float] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", GradientWarning)
        for _ in range(1 + repeats):
            began = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - began))
    doubted = [warning for warning in caught if issubclass(warning.category, GradientWarning)]
    for other in caught:
        if other not in doubted:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return median(times[1:]), bool(doubted)


def evaluations(stats: Stats) -> tuple[float, float]:
    """Evaluations of the field in the forward and in the backward pass, mean over the samples."""
    forward, backward = (
        0.0 if counts is None else counts.n_f_evals.double().mean().item()
        for counts in (stats.forward, stats.backward)
    )
    return forward, backward


def table_of(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal."""
    table = Table("backend", "gradient", title="The same weights under every backend")
    for column in ("accuracy", "evaluations", "ms", "gradient difference"):
        table.add_column(column, justify="right")
    for row in rows:
        evaluations = f"{row.forward:.1f} + {row.backward:.1f}"
        mark = " (!)" if row.doubted else ""
        values = f"{row.accuracy:.2%}", evaluations, f"{row.milliseconds:.0f}{mark}"
        table.add_row(row.backend, row.gradient, *values, f"{row.difference:.1e}")
    table.caption = "evaluations: forward + backward, mean over samples; ms: both passes"
    absent = [name for name in names() if name not in available()]
    if absent:
        table.caption += f"\nnot installed: {', '.join(absent)}"
    if any(row.doubted for row in rows):
        table.caption += (
            "\n(!) warned that its gradient is in doubt at the tolerance of the training"
        )
    return table
