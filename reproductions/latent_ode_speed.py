"""A training step of the paper's latent ODE: compiled beside torchdiffeq, in turn, in one process.

A step is encoder, solve, decoder, bound, gradient and Adam, for a batch of 200 spirals and 100
output times, on one thread. All train the same weights, which have learned for a while, on the same
batches with the same tolerances. In each round every one has a turn of some steps, the first of
which finds the caches as the one before left them and is not counted; of the others the median
counts. Ratios are taken round by round, so that a machine whose speed drifts does not decide them.

The encoder reads as many points as are seen, 30 or 100, whoever solves; at loose tolerances it and
the decoder are most of a compiled step, which no solver makes faster.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 5.1: sizes. The bands are ours.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, write_json
from _harness.spiral_training import Job, Recipe, Run
from _harness.threads import torch_threads
from rich.console import Console
from rich.table import Table

from ctflow import Solver
from ctflow.cli import main as command_line

OURS = "compiled"
SOLVERS = {
    "compiled": ("compiled", "direct"),
    "native": ("native", "direct"),
    "torchdiffeq": ("torchdiffeq", "direct"),
    "torchdiffeq, adjoint": ("torchdiffeq", "adjoint"),
}


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = OURS
    settings: tuple[tuple[int, float], ...] = ((30, 1e-6), (100, 1e-6))
    warm_up: int = 150  # steps of training before
    rounds: int = 5
    turn: int = 4  # steps that count
    batch: int = 200
    direct: float | None = 5.0  # band at the first setting: torchdiffeq's time over ours
    adjoint: float | None = 10.0  # band: its adjoint's; None: too short to have bands
    results: Path = Path(__file__).parent / "results" / "latent_ode_speed"


PRESETS = {
    "smoke": Config(
        "smoke", backend="native", settings=((30, 1e-3),), warm_up=1, rounds=1, batch=4,
        direct=None, adjoint=None,
    ),
    "quick": Config("quick"),
    "full": Config(
        "full", settings=((30, 1e-6), (100, 1e-6), (30, 1e-4), (100, 1e-4)), warm_up=1500,
        rounds=20,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One setting.

    Args:
        points: Seen of each spiral.
        tolerance: rtol and atol.
        milliseconds: Medians of a training step, by solver.
        ratios: Medians of the time over ours, round by round.
        evaluations: Of the field in the forward pass of the last step, by solver.
    """

    points: int
    tolerance: float
    milliseconds: dict[str, float]
    ratios: dict[str, float]
    evaluations: dict[str, int]


def main(config: Config) -> dict[str, object]:
    """Time all in turn, print, and write JSON; returns what it holds."""
    console = Console()
    with torch_threads(1), LiveLine(console) as line:
        rows = [measure(config, *setting, line.show) for setting in config.settings]
    bands = bands_of(config, rows[0])
    console.print(table_of(config, rows), *map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "rows": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    return record


def measure(config: Config, points: int, tolerance: float, show: Callable[[str], None]) -> Row:
    """Train for a while, then time a step of every solver from there, round by round."""
    chosen = {config.backend: (config.backend, "direct")} | SOLVERS
    if config.backend != OURS:
        del chosen[OURS]
    runs: dict[str, Run] = {}
    for name, (backend, gradient) in chosen.items():
        solver = Solver(
            backend, rtol=tolerance, atol=tolerance, coupling="shared", gradient=gradient
        )
        recipe = Recipe(100_000, batch=config.batch, warm_up=50)
        runs[name] = Run(Job("latent ODE", points, config.seed, recipe, solver))
    first = runs[config.backend]
    torch.manual_seed(config.seed)
    for _ in first.training.steps(config.warm_up):
        first.step()
    for run in runs.values():
        if run is not first:
            run.training.restore(copy.deepcopy(first.training.state()))
        run.step()  # what is made at a first step is no part of any
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(config.rounds):
        for name, run in runs.items():
            run.step()
            times[name].append(median(_milliseconds(run) for _ in range(config.turn)))
        show(f"{points} points, tolerance {tolerance:g}: round {k + 1} of {config.rounds}")
    ours = times[config.backend]
    ratios = {
        name: median(b / a for a, b in zip(ours, theirs, strict=True))
        for name, theirs in times.items()
    }
    counts = {name: _evaluations(run) for name, run in runs.items()}
    return Row(points, tolerance, {n: median(t) for n, t in times.items()}, ratios, counts)


def bands_of(config: Config, row: Row) -> list[Band]:
    """At the first setting alone; the others are shown."""
    if config.direct is None or config.adjoint is None:
        return []
    return [
        Band("torchdiffeq's time over compiled", row.ratios["torchdiffeq"], low=config.direct),
        Band("that of its adjoint", row.ratios["torchdiffeq, adjoint"], low=config.adjoint),
    ]


def table_of(config: Config, rows: list[Row]) -> Table:
    """Milliseconds, and in brackets how many times ours."""
    table = Table("points seen", "tolerance", title="One training step, milliseconds")
    for name in rows[0].milliseconds:
        table.add_column(name, justify="right")
    for row in rows:
        cells = [
            f"{value:.1f} ({row.ratios[name]:.1f}x)" for name, value in row.milliseconds.items()
        ]
        table.add_row(f"{row.points}/100", f"{row.tolerance:g}", *cells)
    table.caption = (
        f"batch {config.batch}, 100 times, one thread; medians of {config.rounds} rounds"
    )
    return table


def _milliseconds(run: Run) -> float:
    began = time.perf_counter()
    run.step()
    return 1e3 * (time.perf_counter() - began)


def _evaluations(run: Run) -> int:
    stats = getattr(run.model, "stats", None)
    return 0 if stats is None else int(stats.forward.n_f_evals.max())


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "latent_ode_speed", "--root", root, *sys.argv[1:]])
