"""DETEST: error and evaluations of ctflow's methods beside torchdiffeq's and SciPy's.

The 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick are solved from 0 to 20 at relative
and absolute tolerances from 1e-3 to 1e-9. Errors are those at the end, the largest of all variables
in units of 1 + |y|, against SciPy's DOP853 at the least tolerance it takes. Asked are

- the error beside that of SciPy's method of the same order at the same tolerance and from the same
  first step, for each problem; where the two are apart by more than a factor of two, the geometric
  mean over starts that differ by 1e-11 and less: where stability limits the steps (C2), rounding
  moves the error of one solve by orders of magnitude, ours and SciPy's;
- the true error of every accepted step, of which the estimate says that it is within tolerance:
  over how many steps the method is deceived, by itself at 1e-6 and tighter, and beside SciPy's
  steps at every tolerance. At 1e-3 the steps of the methods of order 3 and 5 are longer than the
  range in which an embedded estimate holds, for whoever takes them;
- the evaluations beside those of torchdiffeq's same method at the same error, by interpolation
  between tolerances in doubly logarithmic axes.

Source:
    Hull, Enright, Fellen, Sedgwick 1972, Comparing numerical methods for ordinary differential
    equations, SIAM J. Numer. Anal. 9. The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from _harness.bands import Band
from _harness.detest_solves import (
    Controlled,
    Run,
    by_scipy,
    by_torchdiffeq,
    controllers_of,
    geometric_mean,
    off,
    ours,
    under,
    with_steps,
)
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.threads import torch_threads
from benchmarks.detest_problems import PROBLEMS, Problem
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    problems: tuple[str, ...] = tuple(problem.name for problem in PROBLEMS)
    tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
    asked: tuple[float, ...] = (1e-3, 1e-6, 1e-9)  # where errors are compared
    controllers: tuple[str, ...] = ()  # compared under dopri5 at 1e-3 and 1e-6
    results: Path = Path(__file__).parent / "results" / "detest"


CONTROLLERS = ("i", "pi_dopri5", "pid", "pi42", "pi33", "pi", "h211pi", "h312pid")
PRESETS = {
    "smoke": Config("smoke", ("A1", "B4"), (1e-3, 1e-5), (1e-3,)),
    "quick": Config("quick"),
    "full": Config(
        "full", tolerances=tuple(10.0**-k for k in range(3, 11)), controllers=CONTROLLERS
    ),
}

OURS = ("bosh3", "dopri5", "tsit5", "vern7", "dopri8", "dop853")
THEIRS = ("bosh3", "dopri5", "dopri8")
SCIPY = {"RK23": "bosh3", "RK45": "dopri5", "DOP853": "dop853"}
ASYMPTOTIC = 1e-6  # tolerances from which an embedded estimate of order 2 or 4 is to be trusted
BY_CHANCE = 2.0  # ratio of errors beyond which a single start is not trusted
STARTS = 64  # that are asked then: such errors are spread over three decades
LOOSEST = {"bosh3": 1e-6, "RK23": 1e-6}  # of order 3: tighter takes too many steps


def main(config: Config) -> dict[str, object]:
    """Solve, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib", "scipy", "torchdiffeq")
    with torch_threads(1):
        return run(config, Console())


@torch.no_grad()
def run(config: Config, console: Console) -> dict[str, object]:
    """The experiment, from problems to files."""
    from _harness.detest_figure import work_and_precision  # matplotlib is optional

    runs: list[Run] = []
    controlled: list[Controlled] = []
    with LiveLine(console) as line:
        for problem in PROBLEMS:
            if problem.name in config.problems:
                line.show(f"{problem.name}, {len(runs)} solves so far")
                right = by_scipy(problem, "DOP853", 2.5e-14)[1][-1]
                runs += all_of(problem, right, config)
                controlled += [
                    under(problem, name, tolerance, right)
                    for name in config.controllers
                    for tolerance in (1e-3, 1e-6)
                ]
    bands = [
        *errors_beside_scipy(runs, config),
        *steps_within(runs, config),
        *work_beside_torchdiffeq(runs),
    ]
    tables = [table_of(runs, tolerance) for tolerance in config.asked]
    console.print(*tables, *map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "runs": [each._asdict() for each in runs],
        "controllers": controllers_of(controlled),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", work_and_precision(runs))
    return record


def all_of(problem: Problem, right: Tensor, config: Config) -> Iterator[Run]:
    """Every solver at every tolerance on one problem."""
    for tolerance in config.tolerances:
        first: dict[str, float | None] = {}
        for method in OURS:
            if tolerance >= LOOSEST.get(method, 0.0):
                run = ours(problem, method, tolerance, right, tolerance in config.asked)
                first[method] = run.first
                yield run
        for method in THEIRS:
            if tolerance >= LOOSEST.get(method, 0.0):
                y, n = by_torchdiffeq(problem, method, tolerance)
                yield Run(problem.name, f"torchdiffeq {method}", tolerance, off(y, right), n)
        for method, same in SCIPY.items():
            if tolerance >= LOOSEST.get(method, 0.0):
                times, course, n = by_scipy(problem, method, tolerance, first[same])
                run = Run(problem.name, f"SciPy {method}", tolerance, off(course[-1], right), n)
                look = tolerance in config.asked
                yield with_steps(run, problem, times, course) if look else run


def errors_beside_scipy(runs: Sequence[Run], config: Config) -> Iterator[Band]:
    """Our error over that of SciPy's same method: geometric mean, and the largest."""
    for theirs, method in SCIPY.items():
        for tolerance in config.asked:
            pairs = paired(runs, f"ctflow {method}", f"SciPy {theirs}", tolerance)
            if pairs:
                ratios = [beside(a, b) for a, b in pairs]
                yield Band(f"error of {method} over SciPy's {theirs} at {tolerance:.0e}, mean",
                           geometric_mean(ratios), high=2.0)  # fmt: skip
                yield Band(f"error of {method} over SciPy's {theirs} at {tolerance:.0e}, largest",
                           max(ratios), high=2.0)  # fmt: skip


def beside(own: Run, other: Run) -> float:
    """Error of our run over that of SciPy's; from several starts where it may be by chance."""
    ratio = ratio_of(own.error, other.error)
    if 1 / BY_CHANCE <= ratio <= BY_CHANCE:
        return ratio
    problem = next(p for p in PROBLEMS if p.name == own.problem)
    method, theirs = own.who.split()[1], other.who.split()[1]
    ratios: list[float] = []
    for k in range(STARTS):
        near = problem._replace(y0=problem.y0 * (1 + 1000 * k * torch.finfo(torch.float64).eps))
        right = by_scipy(near, "DOP853", 2.5e-14)[1][-1]
        run = ours(near, method, own.tolerance, right, False)
        error = off(by_scipy(near, theirs, own.tolerance, run.first)[1][-1], right)
        ratios.append(ratio_of(run.error, error))
    return geometric_mean(ratios)


def ratio_of(error: float, other: float) -> float:
    """One error over another, of which none counts as less than rounding."""
    return max(error, 1e-15) / max(other, 1e-15)


def paired(runs: Sequence[Run], one: str, other: str, tolerance: float) -> list[tuple[Run, Run]]:
    """Runs of two solvers on the same problems at one tolerance."""
    found = {(r.problem, r.who): r for r in runs if r.tolerance == tolerance}
    names = {r.problem for r in runs}
    return [
        (found[name, one], found[name, other])
        for name in sorted(names)
        if (name, one) in found and (name, other) in found
    ]


def steps_within(runs: Sequence[Run], config: Config) -> Iterator[Band]:
    """Share of the steps whose true error is above tolerance, mean over the problems."""
    looked = grouped(r for r in runs if r.beyond is not None)
    share = {key: mean(r.beyond or 0.0 for r in own) for key, own in looked.items()}
    for tolerance in config.asked:
        for method in OURS:
            own = share.get((f"ctflow {method}", tolerance))
            if own is not None and tolerance <= ASYMPTOTIC:
                name = f"steps of {method} at {tolerance:.0e} with an error above tolerance, share"
                yield Band(name, own, high=0.02)
        for theirs, method in SCIPY.items():
            own = share.get((f"ctflow {method}", tolerance))
            other = share.get((f"SciPy {theirs}", tolerance))
            if own is not None and other is not None:
                yield Band(f"the same share of {method} at {tolerance:.0e}, less SciPy's",
                           own - other, high=0.005)  # fmt: skip


def grouped(runs: Iterable[Run]) -> dict[tuple[str, float], list[Run]]:
    """Runs by solver and tolerance."""
    found: dict[tuple[str, float], list[Run]] = {}
    for r in runs:
        found.setdefault((r.who, r.tolerance), []).append(r)
    return found


def mean(values: Iterable[float]) -> float:
    """Arithmetic."""
    known = list(values)
    return sum(known) / len(known)


def work_beside_torchdiffeq(runs: Sequence[Run]) -> Iterator[Band]:
    """Geometric mean of our evaluations over torchdiffeq's where both have the same error."""
    for method in THEIRS:
        ratios: list[float] = []
        for name in sorted({r.problem for r in runs}):
            curves = [
                sorted((r for r in runs if r.problem == name and r.who == f"{who} {method}"),
                       key=lambda r: -r.error)
                for who in ("ctflow", "torchdiffeq")
            ]  # fmt: skip
            ratios += at_equal_error(*curves)
        logs = [math.log(ratio) for ratio in ratios]
        value = math.exp(sum(logs) / len(logs)) if logs else math.nan
        yield Band(
            f"evaluations of {method} over torchdiffeq's at equal error, mean", value, high=1.0
        )


def at_equal_error(own: Sequence[Run], other: Sequence[Run]) -> list[float]:
    """Ratios of evaluations at the other's errors, where our errors reach on both sides."""
    x = [math.log(max(r.error, 1e-15)) for r in own][::-1]  # ascending
    y = [math.log(r.evaluations) for r in own][::-1]
    found = []
    for r in other:
        error = math.log(max(r.error, 1e-15))
        if x and x[0] <= error <= x[-1]:
            found.append(math.exp(float(np.interp(error, x, y))) / r.evaluations)
    return found


def table_of(runs: Sequence[Run], tolerance: float) -> Table:
    """Means over the problems at one tolerance, for each solver."""
    table = Table(title=f"DETEST at {tolerance:.0e}: means over the problems", title_justify="left")
    table.add_column("solver")
    for column in ("error/tol", "evals", "steps above", "worst step"):
        table.add_column(column, justify="right")
    for (who, _), own in grouped(r for r in runs if r.tolerance == tolerance).items():
        steps = [(r.steepest, r.beyond) for r in own if r.steepest is not None]
        table.add_row(
            who,
            f"{geometric_mean([max(r.error, 1e-15) / tolerance for r in own]):.2g}",
            f"{geometric_mean([float(r.evaluations) for r in own]):.0f}",
            f"{mean(beyond or 0.0 for _, beyond in steps):.1%}" if steps else "",
            f"{max(steepest for steepest, _ in steps):.2g}" if steps else "",
        )
    return table


if __name__ == "__main__":
    command_line(["reproduce", "detest", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
