"""DETEST: error and evaluations of ctflow's methods beside torchdiffeq's and SciPy's.

The 25 non-stiff problems of Hull, Enright, Fellen and Sedgwick are solved from 0 to 20 at relative
and absolute tolerances from 1e-3 to 1e-9. Errors are those at the end, the largest of all variables
in units of 1 + |y|, against SciPy's DOP853 at the least tolerance it takes. Asked are

- the error beside that of SciPy's method of the same order at the same tolerance;
- the error of every single step, of which the estimate says that it is within tolerance;
- the evaluations beside those of torchdiffeq's same method at the same error, by interpolation
  between tolerances in doubly logarithmic axes.

Source:
    Hull, Enright, Fellen, Sedgwick 1972, Comparing numerical methods for ordinary differential
    equations, SIAM J. Numer. Anal. 9. The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from benchmarks.detest_problems import END, PROBLEMS, Problem
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow import ODEProblem, Solver, solve
from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    problems: tuple[str, ...] = tuple(problem.name for problem in PROBLEMS)
    tolerances: tuple[float, ...] = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
    asked: tuple[float, ...] = (1e-3, 1e-6, 1e-9)  # where errors are compared
    results: Path = Path(__file__).parent / "results" / "detest"


PRESETS = {
    "smoke": Config("smoke", ("A1", "B4", "D3"), (1e-3, 1e-5), (1e-3,)),
    "quick": Config("quick"),
    "full": Config("full", tolerances=tuple(10.0**-k for k in range(3, 11))),
}

OURS = ("bosh3", "dopri5", "tsit5", "vern7", "dopri8", "dop853")
THEIRS = ("bosh3", "dopri5", "dopri8")
SCIPY = {"RK23": "bosh3", "RK45": "dopri5", "DOP853": "dop853"}
LOOSEST = {"bosh3": 1e-6, "RK23": 1e-6}  # of order 3: tighter takes too many steps


class Run(NamedTuple):
    """One solve.

    Attributes:
        problem: Its name.
        who: "ctflow dopri5" and the like.
        tolerance: Relative and absolute.
        error: At the end, in units of 1 + |y|.
        evaluations: Of f.
        steepest: Largest error of a single step in tolerances, by the norm of the control; None
            where it was not looked at.
        beyond: Share of steps whose error was above tolerance.
    """

    problem: str
    who: str
    tolerance: float
    error: float
    evaluations: int
    steepest: float | None = None
    beyond: float | None = None


def main(config: Config) -> dict[str, object]:
    """Solve, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib", "scipy", "torchdiffeq")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(config, Console())
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def run(config: Config, console: Console) -> dict[str, object]:
    """The experiment, from problems to files."""
    from _harness.detest_figure import work_and_precision  # matplotlib is optional

    runs: list[Run] = []
    with LiveLine(console) as line:
        for problem in PROBLEMS:
            if problem.name in config.problems:
                line.show(f"{problem.name}, {len(runs)} solves so far")
                runs += all_of(problem, config)
    bands = [
        *errors_beside_scipy(runs, config),
        *steps_within(runs),
        *work_beside_torchdiffeq(runs),
    ]
    console.print(table_of(runs, config), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "runs": [each._asdict() for each in runs],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", work_and_precision(runs))
    return record


def all_of(problem: Problem, config: Config) -> Iterator[Run]:
    """Every solver at every tolerance on one problem."""
    right = by_scipy(problem, "DOP853", 2.5e-14)[0]
    for tolerance in config.tolerances:
        for method in OURS:
            if tolerance >= LOOSEST.get(method, 0.0):
                yield ours(problem, method, tolerance, right, tolerance in config.asked)
        for method in THEIRS:
            if tolerance >= LOOSEST.get(method, 0.0):
                y, n = by_torchdiffeq(problem, method, tolerance)
                yield Run(problem.name, f"torchdiffeq {method}", tolerance, off(y, right), n)
        for method in SCIPY:
            if tolerance >= LOOSEST.get(method, 0.0):
                y, n = by_scipy(problem, method, tolerance)
                yield Run(problem.name, f"SciPy {method}", tolerance, off(y, right), n)


def ours(problem: Problem, method: str, tolerance: float, right: Tensor, look: bool) -> Run:
    """ctflow's solve, and the error of each of its steps where it is looked at."""
    solver = Solver(method=method, rtol=tolerance, atol=tolerance, max_steps=10**6)
    solution = solve(ODEProblem(problem.f, problem.y0, [0.0, END]), solver)  # pyright: ignore
    run = Run(problem.name, f"ctflow {method}", tolerance, off(solution.y[-1], right),
              int(solution.stats.forward.n_f_evals))  # fmt: skip
    if not look:
        return run
    times = solution.stats.step_times[0]
    course = solve(ODEProblem(problem.f, problem.y0, times), solver).y  # the same steps
    spans = torch.stack([times[:-1], times[1:]], dim=1)
    tight = Solver(method="dop853", rtol=1e-13, atol=1e-15, max_steps=10**6)
    exact = solve(ODEProblem(problem.f, course[:-1], spans, batched=True), tight).y[-1]
    scale = tolerance * (1 + torch.maximum(course[:-1].abs(), course[1:].abs()))
    ratio = ((course[1:] - exact) / scale).square().mean(dim=1).sqrt()
    return run._replace(steepest=float(ratio.max()), beyond=float((ratio > 1).double().mean()))


def by_torchdiffeq(problem: Problem, method: str, tolerance: float) -> tuple[Tensor, int]:
    """State at the end and evaluations of torchdiffeq."""
    import torchdiffeq

    calls = 0

    def f(t: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return problem.f(t, y)

    t = torch.tensor([0.0, END], dtype=torch.float64)
    y = torchdiffeq.odeint(f, problem.y0, t, rtol=tolerance, atol=tolerance, method=method)
    return y[-1], calls


def by_scipy(problem: Problem, method: str, tolerance: float) -> tuple[Tensor, int]:
    """State at the end and evaluations of SciPy."""
    from scipy.integrate import solve_ivp

    def f(t: float, y: np.ndarray) -> np.ndarray:
        return problem.f(torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)).numpy()

    found = solve_ivp(
        f, (0.0, END), problem.y0.numpy(), method=method, rtol=tolerance,
        atol=min(tolerance, 1e-16 if tolerance < 1e-13 else tolerance),
    )  # fmt: skip
    return torch.from_numpy(found.y[:, -1].copy()), int(found.nfev)


def off(y: Tensor, right: Tensor) -> float:
    """Largest error of all variables, in units of 1 + |y|."""
    return float(((y - right).abs() / (1 + right.abs())).max())


def errors_beside_scipy(runs: Sequence[Run], config: Config) -> Iterator[Band]:
    """Geometric mean over the problems of our error over that of SciPy's same method."""
    for theirs, method in SCIPY.items():
        for tolerance in config.asked:
            pairs = paired(runs, f"ctflow {method}", f"SciPy {theirs}", tolerance)
            if pairs:
                logs = [math.log(max(a.error, 1e-15) / max(b.error, 1e-15)) for a, b in pairs]
                mean = math.exp(sum(logs) / len(logs))
                yield Band(f"error of {method} over SciPy's {theirs} at {tolerance:.0e}, mean",
                           mean, high=2.0)  # fmt: skip
                worst = max(a.error / max(2 * b.error, tolerance) for a, b in pairs)
                yield Band("the same, largest over twice SciPy's or one tolerance", worst, high=1.0)


def paired(runs: Sequence[Run], one: str, other: str, tolerance: float) -> list[tuple[Run, Run]]:
    """Runs of two solvers on the same problems at one tolerance."""
    found = {(r.problem, r.who): r for r in runs if r.tolerance == tolerance}
    names = {r.problem for r in runs}
    return [
        (found[name, one], found[name, other])
        for name in sorted(names)
        if (name, one) in found and (name, other) in found
    ]


def steps_within(runs: Sequence[Run]) -> Iterator[Band]:
    """Share of all steps whose true error is above tolerance, for each method."""
    for method in OURS:
        looked = [r for r in runs if r.who == f"ctflow {method}" and r.beyond is not None]
        share = sum(r.beyond or 0.0 for r in looked) / max(1, len(looked))
        yield Band(f"steps of {method} with an error above tolerance, share", share, high=0.01)


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


def table_of(runs: Sequence[Run], config: Config) -> Table:
    """Means over the problems: error in tolerances and evaluations, for each solver."""
    table = Table(title="DETEST, geometric means over the problems", title_justify="left")
    table.add_column("solver")
    for tolerance in config.asked:
        table.add_column(f"{tolerance:.0e}: error / tolerance", justify="right")
        table.add_column("evaluations", justify="right")
        table.add_column("worst step", justify="right")
    for who in dict.fromkeys(r.who for r in runs):
        cells = [who]
        for tolerance in config.asked:
            own = [r for r in runs if r.who == who and r.tolerance == tolerance]
            steps = [r.steepest for r in own if r.steepest is not None]
            cells += (
                [f"{_mean([max(r.error, 1e-15) / tolerance for r in own]):.2g}",
                 f"{_mean([float(r.evaluations) for r in own]):.0f}",
                 f"{max(steps):.2g}" if steps else ""]
                if own else ["", "", ""]
            )  # fmt: skip
        table.add_row(*cells)
    return table


def _mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(math.log(value) for value in values) / len(values))


if __name__ == "__main__":
    command_line(["reproduce", "detest", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
