"""When the continuous adjoint goes wrong, does it know? Drift and estimate against the true error.

The adjoint solves the state backwards a second time. Where the solution contracts, that solve
spreads what rounding and tolerance left, and vector-Jacobian products are taken at states that the
forward pass never saw. The distance of the rebuilt state from the stored one (the drift) costs
nothing to measure; ctflow turns it into an estimate of the gradient's relative error, and warns
from 5e-3 on. Here both are set beside the true error over tolerances and horizons, for problems
that are stable, that oscillate, that are chaotic, and that grow stiff.

The true error is  ||g - g*|| / ||g*||,  g* being the gradient of the solver's steps at tolerance
1e-11. A warning should be given wherever that of the whole gradient exceeds 1e-2, and nowhere where
it is below 1e-3 for both the initial state and the parameters.

Source:
    Our own. That solving the state backwards may be unstable is in Chen et al. 2018 (arXiv
    1806.07366v5), section 6; Gholami et al. 2019 (arXiv 1902.10298) show that it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.problems import KINDS, PROBLEMS, Problem
from _harness.records import environment, need, write_figure, write_json
from _harness.threads import torch_threads
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, solve
from ctflow.cli import main as command_line
from ctflow.errors import GradientWarning

WRONG, RIGHT, THRESHOLD = 1e-2, 1e-3, 5e-3  # must be warned of, must not be, and the estimate's


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0  # of the network's weights
    backend: str = "native"
    tolerances: tuple[float, ...] = (1e-4, 1e-6, 1e-8)
    exact: float = 1e-11  # tolerance of the reference
    n_horizons: int = 5  # of each problem, each 0.7 of the one before
    longest: float = 1.0  # share of the problem's longest horizon that is the first
    threads: int = 1
    results: Path = Path(__file__).parent / "results" / "adjoint_drift"


PRESETS = {
    "smoke": Config("smoke", tolerances=(1e-4, 1e-6), exact=1e-9, n_horizons=1, longest=0.3),
    "quick": Config("quick"),
    "full": Config(
        "full", tolerances=tuple(10 ** (-k / 2) for k in range(8, 20)), exact=1e-12, n_horizons=8
    ),
}


@dataclass(frozen=True)
class Point:
    """One solve by the adjoint.

    Args:
        problem: Its name.
        kind: Its kind.
        tolerance: rtol and atol, forward and backward.
        horizon: Length of the one interval.
        error: True relative error of the whole gradient.
        worst: The larger one of those of its two parts, for the initial state and the parameters.
        drift: Relative distance of the rebuilt initial state from the stored one.
        estimate: What the report says of the gradient's error.
        doubted: Whether a warning said that the gradient is in doubt.
        split: Whether the interval had to be split, which is warned of because it costs time.
        steps: Attempted steps, forward and backward.
    """

    problem: str
    kind: str
    tolerance: float
    horizon: float
    error: float
    worst: float
    drift: float
    estimate: float
    doubted: bool
    split: bool
    steps: tuple[int, int]


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    with torch_threads(config.threads):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The measurements, from problems to files."""
    from _harness.drift_figure import drift_and_estimate  # matplotlib is optional

    points: list[Point] = []
    with LiveLine(console) as line:
        for name in PROBLEMS:
            line.show(f"{name}: {len(points)} solves so far")
            points += points_of(name, config)
    silent = [p for p in points if p.error > WRONG and not p.doubted]
    alarms = [p for p in points if p.worst < RIGHT and p.doubted]
    bands = [
        Band(f"of {len(points)}: wrong by more than {WRONG:g}, and silent", len(silent), high=0),
        Band(f"of {len(points)}: right within {RIGHT:g}, and doubted", len(alarms), high=0),
    ]
    console.print(table_of(points), *map(str, bands), sep="\n", highlight=False)
    console.print(*(f"silent: {p}" for p in silent), *(f"alarm: {p}" for p in alarms), sep="\n")
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "points": [asdict(point) for point in points],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = drift_and_estimate(points, KINDS, THRESHOLD, (RIGHT, WRONG))
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def points_of(name: str, config: Config) -> list[Point]:
    """Every tolerance at every horizon."""
    problem, found = PROBLEMS[name], []
    for k in range(config.n_horizons):
        horizon = config.longest * problem.longest * 0.7**k
        exact = Solver(rtol=config.exact, atol=config.exact, gradient="checkpointed")
        wanted, _ = gradient_of(problem, horizon, exact, config.seed)
        for tolerance in config.tolerances:
            solver = Solver(config.backend, rtol=tolerance, atol=tolerance, gradient="adjoint")
            gradient, solution = gradient_of(problem, horizon, solver, config.seed)
            found.append(point_of(name, tolerance, horizon, gradient, wanted, solution))
    return found


def gradient_of(
    problem: Problem, horizon: float, solver: Solver, seed: int
) -> tuple[Tensor, Solution]:
    """Gradient of a weighted |y(horizon)|^2 for y0 and all parameters, in one vector."""
    torch.manual_seed(seed)
    field = problem.field()
    y0 = torch.tensor(problem.y0, dtype=torch.float64, requires_grad=True)
    solution = solve(ODEProblem(field, y0, [0.0, horizon]), solver)
    with warnings.catch_warnings():  # read from the report
        warnings.simplefilter("ignore", GradientWarning)
        inputs = (y0, *field.parameters())
        weights = torch.arange(1, y0.numel() + 1)  # no invariant of any of the problems
        parts = torch.autograd.grad((weights * solution.y[-1].square()).sum(), inputs)
    return torch.cat([part.reshape(-1) for part in parts]), solution


def point_of(
    name: str,
    tolerance: float,
    horizon: float,
    gradient: Tensor,
    wanted: Tensor,
    solution: Solution,
) -> Point:
    """What one solve found, beside the truth."""
    n = len(PROBLEMS[name].y0)
    report, backward = solution.gradient_report, solution.stats.backward
    counts = (solution.stats.forward, *([] if backward is None else [backward]))
    return Point(
        problem=name,
        kind=PROBLEMS[name].kind,
        tolerance=tolerance,
        horizon=horizon,
        error=distance(gradient, wanted),
        worst=max(distance(gradient[:n], wanted[:n]), distance(gradient[n:], wanted[n:])),
        drift=float(report.drift.max()),
        estimate=float(report.error.max()),
        doubted=any("in doubt" in message for message in report.messages),
        split=any("split" in message for message in report.messages),
        steps=tuple(int(each.n_steps.max()) for each in counts),
    )


def distance(found: Tensor, wanted: Tensor) -> float:
    """Relative to what is wanted."""
    return float((found - wanted).norm() / wanted.norm())


def table_of(points: Sequence[Point]) -> Table:
    """For each problem: how many solves, and how the warnings went."""
    table = Table("problem", "kind", title="Does the adjoint know when it is wrong?")
    columns = ("solves", "wrong", "of them silent", "right", "of them doubted", "split")
    for column in columns:
        table.add_column(column, justify="right")
    for name, problem in PROBLEMS.items():
        own = [p for p in points if p.problem == name]
        wrong, right = [p for p in own if p.error > WRONG], [p for p in own if p.worst < RIGHT]
        counts = (own, wrong, [p for p in wrong if not p.doubted], right,
                  [p for p in right if p.doubted], [p for p in own if p.split])  # fmt: skip
        table.add_row(name, problem.kind, *(str(len(each)) for each in counts))
    table.caption = f"wrong: true error above {WRONG:g}; right: below {RIGHT:g} in each part"
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "adjoint_drift", "--root", root, *sys.argv[1:]])
