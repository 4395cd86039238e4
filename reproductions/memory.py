"""The adjoint's memory does not grow with the number of steps, and time is linear in problem size.

Memory: a network is solved and differentiated at tolerances from 1e-2 to 1e-8 with each gradient
method. What counts is the peak of tensor storage alive over the forward and the backward pass, the
outputs subtracted, with the garbage collector off. The adjoint's is to stay flat; "checkpointed" is
to grow by one state a step, and "direct" by what autograd saves of each evaluation.

Time: the same network with more rows of state, a wider layer, or a longer horizon, at a fixed step,
forward and through the adjoint. CPU time of one thread, the least of several interleaved runs. The
slope in doubly logarithmic axes is to be 1 where arithmetic dominates (the upper half of the sizes,
and the whole horizon), and not above 1 where the cost of calling operators still hides it.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5): "constant memory cost", and "scales linearly with problem
    size, has low memory cost" (sections 1 and 2). The paper shows no figure of either.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band, beside_the_paper
from _harness.costs import Peak, Timing, slope, table_of_costs
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.storage import peak_bytes
from _harness.threads import torch_threads
from rich.console import Console
from torch import Tensor

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP
from ctflow.errors import GradientWarning

GRADIENTS = ("direct", "checkpointed", "adjoint")
AXES = {"state": "variables of the state", "parameters": "parameters", "horizon": "steps"}


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    tolerances: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
    rows: int = 32  # of the state, in the memory part
    variables: int = 16  # of a row
    width: int = 64  # of the hidden layer, in the memory part
    horizon: float = 10.0  # in the memory part
    doublings: int = 8  # of the sizes in the time part
    repeats: int = 5
    patience: float = 0.3  # seconds for a size in each round; one run at least
    threads: int = 1
    slopes: bool = True  # whether times are long enough to have a band
    results: Path = Path(__file__).parent / "results" / "memory"


PRESETS = {
    "smoke": Config(
        "smoke",
        tolerances=(1e-2, 1e-6),
        rows=8,
        horizon=3.0,
        doublings=1,
        repeats=1,
        patience=0.0,
        slopes=False,
    ),
    "quick": Config("quick"),
    "full": Config("full", doublings=9, repeats=15),
}


class Case(NamedTuple):
    """A field, its initial state, and how many steps of 1/8 it is solved for."""

    field: MLP
    y0: Tensor
    steps: int

    def size(self, axis: str) -> int:
        """How much of an axis it has."""
        parameters = sum(parameter.numel() for parameter in self.field.parameters())
        return {"state": self.y0.numel(), "parameters": parameters, "horizon": self.steps}[axis]


def main(config: Config) -> dict[str, object]:
    """Measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    with torch_threads(config.threads):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The measurements, from networks to files."""
    from _harness.memory_figure import memory_and_time  # matplotlib is optional

    torch.manual_seed(config.seed)
    with LiveLine(console) as line:
        peaks = [peak(config, tolerance, line) for tolerance in config.tolerances]
        timings = measured(config, line)
    timed = bands_of_time(timings) if config.slopes else []
    bands = beside_the_paper("memory", [*bands_of_memory(config, peaks), *timed])
    console.print(table_of_costs(peaks, timings), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "state_bytes": state_bytes(config),
        "peaks": [asdict(each) for each in peaks],
        "timings": [asdict(each) for each in timings],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = memory_and_time(peaks, timings, AXES)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def network(config: Config, width: int) -> MLP:
    """A field with a hidden layer, wound up enough to need many steps at tight tolerances."""
    field = MLP(config.variables, (width,)).double()
    with torch.no_grad():
        for parameter in field.parameters():
            parameter.mul_(3.0)
    return field


def peak(config: Config, tolerance: float, line: LiveLine) -> Peak:
    """Peak storage of each gradient method, on the same network."""
    torch.manual_seed(config.seed)
    field = network(config, config.width)
    y0 = torch.randn(config.rows, config.variables, dtype=torch.float64).requires_grad_()
    steps, found = 0, {}
    for gradient in GRADIENTS:
        line.show(f"storage at tolerance {tolerance:g}, {gradient}")
        solver = Solver(config.backend, rtol=tolerance, atol=tolerance, gradient=gradient)

        def differentiate(solver: Solver = solver) -> tuple[Tensor]:
            problem = ODEProblem(field, y0, [0.0, config.horizon])
            solution = solve(problem, solver)
            with warnings.catch_warnings():  # loose tolerances are meant here, and doubted rightly
                warnings.simplefilter("ignore", GradientWarning)
                torch.autograd.grad(solution.y[-1].square().sum(), (y0, *field.parameters()))
            nonlocal steps
            steps = int(solution.stats.forward.n_accepted)
            return (solution.y,)

        found[gradient] = peak_bytes(differentiate)
    return Peak(tolerance, steps, found)


def state_bytes(config: Config) -> int:
    """Bytes of one state."""
    return 8 * config.rows * config.variables


def measured(config: Config, line: LiveLine) -> list[Timing]:
    """The least CPU time of every size, over rounds that visit all sizes in turn."""
    sizes = [2**k for k in range(config.doublings + 1)]
    cases = [(axis, case(config, axis, factor)) for axis in AXES for factor in sizes]
    best = [(math.inf, math.inf)] * len(cases)
    for repeat in range(config.repeats):
        for i, (axis, each) in enumerate(cases):
            line.show(f"time, round {repeat + 1} of {config.repeats}: {axis} {each.size(axis)}")
            forward, adjoint = seconds(config, each)
            best[i] = min(best[i][0], forward), min(best[i][1], adjoint)
    return [Timing(axis, each.size(axis), *best[i]) for i, (axis, each) in enumerate(cases)]


def case(config: Config, axis: str, factor: int) -> Case:
    """One size along an axis; the others stay small enough for a run of seconds."""
    rows, width, steps = {
        "state": (32 * factor, 64, 8),
        "parameters": (64, 32 * factor, 8),
        "horizon": (64, 64, 4 * factor),
    }[axis]
    y0 = torch.randn(rows, config.variables, dtype=torch.float64)
    return Case(MLP(config.variables, (width,)).double(), y0.requires_grad_(), steps)


def seconds(config: Config, case: Case) -> tuple[float, float]:
    """CPU time of the forward pass and of the adjoint's backward pass, the least of several."""
    solver = Solver(config.backend, step=1 / 8, gradient="adjoint")
    times: list[tuple[float, float]] = []
    while not times or sum(map(sum, times)) < config.patience:
        began = time.process_time()
        y = odeint(case.field, case.y0, [0.0, case.steps / 8], solver=solver)
        between = time.process_time()
        torch.autograd.grad(y[-1].mean(), (case.y0, *case.field.parameters()))
        times.append((between - began, time.process_time() - between))
    forward, adjoint = (min(column) for column in zip(*times, strict=True))
    return forward, adjoint


def bands_of_memory(config: Config, peaks: Sequence[Peak]) -> list[Band]:
    """The adjoint is flat; a step costs the others a state, or the activations of six stages."""
    first, last = peaks[0], peaks[-1]
    steps, state = last.steps - first.steps, state_bytes(config)
    grown = {g: (last.n_bytes[g] - first.n_bytes[g]) / steps / state for g in GRADIENTS}
    activations = 6 * config.width / config.variables  # of the hidden layer, in states
    flat = [each.n_bytes["adjoint"] / first.n_bytes["adjoint"] for each in peaks]
    return [
        Band("adjoint, largest peak over that of the loosest tolerance", max(flat), high=1.1),
        Band("checkpointed, states a step", grown["checkpointed"], low=0.95, high=1.1),
        Band("direct, states a step", grown["direct"], low=activations),
    ]


def bands_of_time(timings: Sequence[Timing]) -> list[Band]:
    """Slopes of the upper sizes, and of those below."""
    bands = []
    for axis in AXES:
        own = [each for each in timings if each.axis == axis]
        half = 0 if axis == "horizon" else len(own) // 2
        for name in ("forward", "adjoint"):
            x, y = [each.size for each in own], [getattr(each, name) for each in own]
            bands.append(Band(f"{name}, slope over {axis}", slope(x[half:], y[half:]), 0.85, 1.15))
            if half:
                low = slope(x[: half + 1], y[: half + 1])
                bands.append(Band(f"{name}, slope over small {axis}", low, high=1.0))
    return bands


if __name__ == "__main__":
    command_line(["reproduce", "memory", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
