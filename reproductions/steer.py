"""STEER's stiff problem: what a random end time does for a field that learns it, and why.

    y' = -1000 y + 3000 - 2000 exp(-t),    y(0) = 0

has a solution that jumps to 1 within 0.005 and then takes its time to 3. A network learns it from
pairs of neighbouring values, one step of 1/8 apart, and is then followed from y(0) for two hundred
such steps. As in the authors' released program, whose network and rate `full` has, the field sees
the time, each pair begins at time 0 of its own, and STEER draws the end of the interval evenly from
just after its start to twice its length.

So the field is asked for times two hundred times as late as any that the plain one was trained at,
whose path leaves the solution; STEER sees times twice as late, and its field depends less on the
time. The control is a field that is not given the time: it fits better, and STEER does not help it.
None follows the jump at the start.

Source:
    Ghosh et al. 2020, "STEER: simple temporal regularization for neural ODEs" (arXiv 2006.10711),
    its toy problem of stiffness; settings from the released program. The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ctflow import Solver, odeint
from ctflow.cli import main as command_line
from ctflow.dynamics import ODEBlock

_TIMES = 120  # in training and in the test
_LEARNED, _FOLLOWED = 15.0, 25.0  # where they end
_SHORTEST = 1e-3  # interval that STEER draws, nearly


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0  # the first
    seeds: int = 3
    backend: str = "native"  # of the training
    steps: int = 500  # of the optimiser
    batch: int = 20
    width: int = 100  # of the two hidden layers
    learning_rate: float = 1e-3
    tolerance: float = 1e-4  # by bosh3: the field is smooth and the interval short
    claims: bool = True
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "steer"


PRESETS = {
    "smoke": Config("smoke", seeds=1, steps=2, width=8, claims=False),
    "quick": Config("quick"),
    "full": Config("full", steps=3000, width=500, learning_rate=1e-4),
}


@dataclass(frozen=True)
class Run:
    """One training, followed from y(0).

    Args:
        timed: Whether the field sees the time.
        steer: Whether the end was random.
        seed: Of weights, batches and ends.
        error: Mean absolute error of the path.
        jump: Error at the first time after the start, when the solution has jumped.
        path: Its values at the times of the test.
    """

    timed: bool
    steer: bool
    seed: int
    error: float
    jump: float
    path: list[float]


class Slope(nn.Module):
    """A network's slope of y, and of the time if it is given that.

    Args:
        width: Of the two hidden layers.
        timed: Whether the time is given, or 0 in its place.
    """

    def __init__(self, width: int, *, timed: bool) -> None:
        """Draw weights of deviation 0.1, biases 0."""
        super().__init__()
        self.timed = timed
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )
        for layer in self.net[::2]:
            nn.init.normal_(layer.weight, std=0.1)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        """[B, 1] at time t (0-dim or [B, 1]) to [B, 1]."""
        time = t.to(y.dtype).expand_as(y) if self.timed else torch.zeros_like(y)
        return self.net(torch.cat([time, y], dim=1))


def solution(t: Tensor) -> Tensor:
    """Of the problem, at times [T]: [T, 1]."""
    slow, fast = 2 / 0.999 * torch.exp(-t), (1 - 2 / 999) * torch.exp(-1000 * t)
    return (3 - slow - fast)[:, None]


def main(config: Config) -> dict[str, object]:
    """Train, follow, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("steer", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from the solution to files."""
    from _harness.steer_figure import paths_by_time  # matplotlib is optional

    seeds = range(config.seed, config.seed + config.seeds)
    with LiveLine(console) as line:
        runs = [
            learned(timed, steer, seed, config, session, line.show)
            for timed, steer, seed in product((True, False), (False, True), seeds)
        ]
    bands = list(bands_of(runs)) if config.claims else []
    console.print(table_of(runs), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "runs": [asdict(each) for each in runs],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    t = followed()
    figure = paths_by_time(t, solution(t)[:, 0], runs)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def followed() -> Tensor:
    """The times of the test."""
    return torch.linspace(0, _FOLLOWED, _TIMES)


def learned(
    timed: bool,
    steer: bool,
    seed: int,
    config: Config,
    session: Session,
    show: Callable[[str], None],
) -> Run:
    """Train one field on pairs of neighbours, and follow it from y(0)."""
    torch.manual_seed(seed)
    times = torch.linspace(0, _LEARNED, _TIMES)
    values, length = solution(times), float(times[1])
    field = Slope(config.width, timed=timed)
    solver = Solver(config.backend, method="bosh3", rtol=config.tolerance, atol=config.tolerance)
    block = ODEBlock(
        field, (0.0, length), solver=solver, random_end=length - _SHORTEST if steer else 0.0
    )
    optimiser = torch.optim.RMSprop(field.parameters(), config.learning_rate)

    def loss(start: Tensor, end: Tensor) -> Tensor:
        return (block(start) - end).abs().mean()

    name = f"{'time' if timed else 'no time'}, {'STEER' if steer else 'plain'}, seed {seed}"
    training = session.training(block, optimiser, loss, name=name)
    for step in training.steps(config.steps):
        rows = torch.randperm(_TIMES - 1)[: config.batch]
        value = training.descend(values[rows], values[rows + 1])
        show(f"{name}: step {step + 1}/{config.steps}  loss {value:.4f}")
    t = followed()
    with torch.no_grad():
        path = odeint(field, torch.zeros(1, 1), t, rtol=1e-5, atol=1e-6)[:, 0]
    error = (path - solution(t)).abs()
    return Run(timed, steer, seed, float(error.mean()), float(error[1]), path[:, 0].tolist())


def middle(runs: list[Run], *, timed: bool, steer: bool, of: str = "error") -> float:
    """Median over the seeds, the lower of two."""
    own = [getattr(each, of) for each in runs if (each.timed, each.steer) == (timed, steer)]
    return sorted(own)[(len(own) - 1) // 2]


def bands_of(runs: list[Run]) -> Iterator[Band]:
    """Half the error at most, given the time; and the other cure, which is at least as good."""
    plain, steered = (middle(runs, timed=True, steer=steer) for steer in (False, True))
    yield Band("given the time: error with STEER over plain, median", steered / plain, high=0.5)
    without = middle(runs, timed=False, steer=False)
    yield Band("error plain without the time over STEER with it, median", without / steered, high=1)


def table_of(runs: list[Run]) -> Table:
    """Medians over the seeds."""
    table = Table("field", "end", title="Mean absolute error up to time 25, medians")
    for column in ("error", "after the jump"):
        table.add_column(column, justify="right")
    for timed, steer in product((True, False), (False, True)):
        error, jump = (middle(runs, timed=timed, steer=steer, of=of) for of in ("error", "jump"))
        names = "given the time" if timed else "of y alone", "random" if steer else "fixed"
        table.add_row(*names, f"{error:.2f}", f"{jump:.2f}")
    return table


if __name__ == "__main__":
    command_line(["reproduce", "steer", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
