"""Stiff problems: Rodas5P of the native backend beside SciPy's Radau, and its gradients.

Robertson's reaction to t = 1e5, the van der Pol oscillator at mu = 1000, HIRES and the heat
equation on 64 points are solved by `method="rodas5p"` and by SciPy's Radau at the same tolerances.
Asked are

- the attempted steps beside Radau's, at a relative tolerance of 1e-6;
- the error at eleven times, the largest of all variables in units of atol + rtol |y|, against
  Radau at 1e-12;
- the parameters' gradient by `gradient="checkpointed"` along a random direction, against finite
  differences of order 8 on the frozen step grid: is it that of the steps taken?
- the same against the gradient at a far tighter tolerance: is it that of the solution? No band is
  set for van der Pol, whose phase after its jumps depends on the parameter through steps in which
  the state changes by six orders of magnitude; there it takes tighter tolerances.

Source:
    Problems as in Hairer, Wanner, Solving Ordinary Differential Equations II, sections IV.1 and
    IV.10. The bands are ours.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.stiff_problems import PROBLEMS, StiffProblem
from _harness.threads import torch_threads
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow import ODEProblem, Solution, Solver, solve
from ctflow.backends import get
from ctflow.cli import main as command_line

RTOL = 1e-6  # where bands hold
STEPS, ERROR, GRADIENT = 3.0, 100.0, 1e-5  # times Radau's; tolerances; of the gradient's norm
_FORMULA = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}  # of order 8, with minus on the left


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    problems: tuple[str, ...] = tuple(PROBLEMS)
    tolerances: tuple[float, ...] = (1e-4, 1e-5, 1e-6)
    reference: float = 1e-12  # of the states, by Radau
    exact: float = 1e-8  # of the gradient of the solution, by Rodas5P
    n_times: int = 11
    seed: int = 0  # of the direction
    results: Path = Path(__file__).parent / "results" / "stiff"


PRESETS = {
    "smoke": Config("smoke", ("heat",), (1e-6,)),
    "quick": Config("quick"),
    "full": Config("full", tolerances=tuple(10.0**-k for k in range(3, 10)), exact=1e-10),
}


class Run(NamedTuple):
    """One solve.

    Attributes:
        problem: Its name.
        method: "rodas5p" or "radau".
        rtol: Relative tolerance.
        steps: Attempted steps.
        accepted: Those that counted.
        error: Largest error in tolerances.
        seconds: Of the forward pass.
        steps_gradient: Relative error of the gradient, as that of the steps; None for Radau, and
            for tolerances at which it is not asked.
        gradient: Relative error of the gradient, as that of the solution; None for Radau.
    """

    problem: str
    method: str
    rtol: float
    steps: int
    accepted: int
    error: float
    seconds: float
    steps_gradient: float | None = None
    gradient: float | None = None


def main(config: Config) -> dict[str, object]:
    """Solve, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    get("scipy")
    with torch_threads(1):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The experiment, from problems to files."""
    found: dict[str, tuple[Tensor, list[Run]]] = {}
    with LiveLine(console) as line:
        for name in config.problems:
            line.show(f"{name}, after {len(found)} of {len(config.problems)} problems")
            found[name] = measured(name, config)
    return report(config, console, found)


def measured(name: str, config: Config) -> tuple[Tensor, list[Run]]:
    """States of a problem by Radau at the tightest tolerance, [T, N], and all its solves."""
    tight = solver_of(PROBLEMS[name], "radau", config.reference)
    wanted = solved(PROBLEMS[name], tight, config.n_times).y
    return wanted, list(runs_of(name, wanted, config))


def report(
    config: Config, console: Console, found: Mapping[str, tuple[Tensor, list[Run]]]
) -> dict[str, object]:
    """Print what was measured, and write it down."""
    from _harness.stiff_figure import work_and_gradients  # matplotlib is optional

    runs = [each for _, own in found.values() for each in own]
    bands = list(bands_of(runs))
    console.print(table_of(runs), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "references": {name: wanted.tolist() for name, (wanted, _) in found.items()},
        "runs": [each._asdict() for each in runs],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", work_and_gradients(runs, GRADIENT))
    return record


def runs_of(name: str, wanted: Tensor, config: Config) -> Iterator[Run]:
    """Both methods at every tolerance, beside the states [T, N] that are wanted."""
    problem = PROBLEMS[name]
    weights = weights_of(problem, wanted)
    exact = gradient_of(problem, solver_of(problem, "rodas5p", config.exact), weights)[0]
    for rtol in config.tolerances:
        for method in ("rodas5p", "radau"):
            solver = solver_of(problem, method, rtol)
            began = time.perf_counter()
            solution = solved(problem, solver, config.n_times)
            seconds = time.perf_counter() - began
            counts = solution.stats.forward
            error = error_of(solution.y, wanted, solver)
            found = Run(name, method, rtol, int(counts.n_steps), int(counts.n_accepted), error,
                        seconds)  # fmt: skip
            if method == "rodas5p":
                own = gradient_of(problem, solver, weights)[0]
                found = found._replace(gradient=float((own - exact).norm() / exact.norm()))
            if method == "rodas5p" and math.isclose(rtol, RTOL):
                error = gradient_error(problem, solver, weights, config.seed)
                found = found._replace(steps_gradient=error)
            yield found


def weights_of(problem: StiffProblem, wanted: Tensor) -> Tensor:
    """Of the last state in the loss, [N]: every variable counts by its own size."""
    return 1 / (wanted[-1].abs() + problem.atol)


def error_of(y: Tensor, wanted: Tensor, solver: Solver) -> float:
    """Largest error of any variable at any time, in tolerances."""
    rtol, atol = solver.rtol or 0.0, solver.atol or 0.0
    return float(((y - wanted).abs() / (atol + rtol * wanted.abs())).amax())


def solver_of(problem: StiffProblem, method: str, rtol: float) -> Solver:
    """The settings: absolute tolerances are scaled with the relative one."""
    backend = "native" if method == "rodas5p" else "scipy"
    atol = problem.atol * rtol / RTOL
    gradient = "checkpointed" if method == "rodas5p" else None  # Radau is asked for none
    return Solver(
        backend, method=method, rtol=rtol, atol=atol, gradient=gradient, max_steps=100_000
    )


@torch.no_grad()
def solved(problem: StiffProblem, solver: Solver, n_times: int) -> Solution:
    """The states at equal distances."""
    t = torch.linspace(0.0, problem.end, n_times, dtype=torch.float64)
    asked = ODEProblem(problem.field, problem.start(), t, args=problem.factors())
    solution = solve(asked, solver)
    if not solution.ok:
        raise RuntimeError(f"{solver} failed: {solution.stops}")
    return solution


def gradient_of(problem: StiffProblem, solver: Solver, weights: Tensor) -> tuple[Tensor, Solution]:
    """Gradient of the weighted last state by the logarithms of the parameters."""
    factors = problem.factors()
    asked = ODEProblem(problem.field, problem.start(), [0.0, problem.end], args=factors)
    solution = solve(asked, solver)
    (found,) = torch.autograd.grad((weights * solution.y[-1]).sum(), factors)
    return found, solution


def gradient_error(problem: StiffProblem, solver: Solver, weights: Tensor, seed: int) -> float:
    """Distance from differences on the frozen grid, relative to the gradient's norm.

    The direction is a random one on which the gradient does not vanish.
    """
    found, solution = gradient_of(problem, solver, weights)
    grid = solution.stats.step_times[0].tolist()
    frozen = Solver(method="rodas5p", step=problem.end, step_t=grid, max_steps=solver.max_steps)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(found), dtype=torch.float64, generator=generator)
    along = noise / noise.norm() + found / found.norm()
    along = along / along.norm()
    times = [0.0, problem.end]
    total = 0.0
    for k, weight in [(sign * k, sign * w) for k, w in _FORMULA.items() for sign in (1, -1)]:
        with torch.no_grad():
            moved = problem.factors() + k * problem.difference * along
            asked = ODEProblem(problem.field, problem.start(), times, args=moved)
            value = (weights * solve(asked, frozen).y[-1]).sum()
            total += weight * float(value) / problem.difference
    return abs(float(found @ along) - total) / float(found.norm())


def bands_of(runs: Sequence[Run]) -> Iterator[Band]:
    """What is asked at the tolerance of the bands."""
    at = {(r.problem, r.method): r for r in runs if math.isclose(r.rtol, RTOL)}
    for (name, method), own in at.items():
        if method == "radau":
            continue
        ratio = own.steps / at[name, "radau"].steps
        yield Band(f"{name}: steps beside Radau's", ratio, high=STEPS)
        yield Band(f"{name}: error in tolerances", own.error, high=ERROR)
        steps_gradient, gradient = own.steps_gradient, own.gradient
        assert steps_gradient is not None
        assert gradient is not None
        yield Band(f"{name}: gradient of the steps, error", steps_gradient, high=GRADIENT)
        if name != "van der Pol":
            yield Band(f"{name}: gradient of the solution, error", gradient, high=GRADIENT)


def table_of(runs: Sequence[Run]) -> Table:
    """Every solve."""
    table = Table("problem", "method", "rtol", title="Stiff problems")
    columns = ("steps", "accepted", "error/tol", "gradient (steps)", "gradient (solution)", "s")
    for column in columns:
        table.add_column(column, justify="right")
    for r in runs:
        errors = ("" if x is None else f"{x:.1e}" for x in (r.steps_gradient, r.gradient))
        table.add_row(r.problem, r.method, f"{r.rtol:.0e}", str(r.steps), str(r.accepted),
                      f"{r.error:.2g}", *errors, f"{r.seconds:.2f}")  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "stiff", "--root", root, *sys.argv[1:]])
