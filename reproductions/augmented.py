"""Augmented ODE-Nets learn what paths that cannot cross forbid, with fewer evaluations.

Sign flip: x -> -x on a line. Every solution of an ODE on the line keeps the order of its points, so
that no ODE-Net of one variable can do it; with one more variable it is half a turn.

Spheres: a disc and the ring around it, told apart by a linear layer on the state at the end. In the
plane the disc cannot leave the ring; a plain ODE-Net squeezes it through a gap that the data do not
show, and pays in evaluations. With more variables the disc is lifted out.

Source:
    Dupont et al. 2019, "Augmented neural ODEs" (arXiv 1904.01681). The bands are ours; that of the
    plain network on the sign flip is a theorem: no order-preserving map has a mean square error
    below that of the best constant.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.comparison import evaluations
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP, Augment, ConcatLinear, ODEBlock

TASKS = ("sign flip", "spheres")


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    steps: int = 300  # of the optimiser
    batch: int = 64
    width: int = 32  # of the hidden layers
    extra: int = 3  # variables that are added
    learning_rate: float = 1e-2
    tolerance: float = 1e-3
    test: int = 500  # points
    claims: bool = True
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "augmented"


PRESETS = {
    "smoke": Config("smoke", steps=3, test=20, claims=False),
    "quick": Config("quick"),
    "full": Config("full", steps=3000, test=5000),
}


@dataclass(frozen=True)
class Run:
    """One network on one task.

    Args:
        task: One of `TASKS`.
        extra: Variables that were added; 0: a plain ODE-Net.
        losses: Mean square error of every step of the training.
        forward: Evaluations of every step, mean over the samples.
        test: Mean square error on points that were not learned from.
    """

    task: str
    extra: int
    losses: list[float]
    forward: list[float]
    test: float


def main(config: Config) -> dict[str, object]:
    """Train, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("augmented", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from points to files."""
    from _harness.learning_figure import losses_and_evaluations  # matplotlib is optional

    with LiveLine(console) as line:
        runs = [
            learn(task, extra, config, session, line.show)
            for task in TASKS
            for extra in (0, config.extra)
        ]
    bands = list(bands_of(config, runs)) if config.claims else []
    for each in runs:
        console.print(
            f"{each.task}, {each.extra} added: test error {each.test:.4f}, evaluations "
            f"{each.forward[0]:.1f} at first, {last(each):.1f} at last",
            highlight=False,
        )
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "runs": [asdict(each) for each in runs],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    curves = {
        task: {
            ("plain" if each.extra == 0 else f"{each.extra} added"): (each.losses, each.forward)
            for each in runs
            if each.task == task
        }
        for task in TASKS
    }
    figure = losses_and_evaluations("Plain and augmented ODE-Nets", curves)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def learn(
    task: str, extra: int, config: Config, session: Session, show: Callable[[str], None]
) -> Run:
    """Train one network on points drawn anew for every step."""
    torch.manual_seed(config.seed)
    dim = {"sign flip": 1, "spheres": 2}[task] + extra
    solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance)
    field = MLP(dim, (config.width, config.width), layer=ConcatLinear)
    block = ODEBlock(field, solver=solver)
    # The sign flip is the flow itself; the spheres are read off by a linear layer.
    model = nn.Sequential(
        Augment(extra) if extra else nn.Identity(),
        block,
        First() if task == "sign flip" else nn.Linear(dim, 1),
    )
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return (model(x) - y).square().mean()

    name = f"{task}, {extra} added"
    training = session.training(model, optimiser, loss, schedule=schedule, name=name)
    losses: list[float] = training.notes.setdefault("losses", [])
    forward: list[float] = training.notes.setdefault("forward", [])
    for step in training.steps(config.steps):
        losses.append(training.descend(*points(task, config.batch)))
        forward.append(evaluations(block.stats)[0])
        show(
            f"{name}: step {step + 1}/{config.steps}  loss {losses[-1]:.4f}  "
            f"evaluations {forward[-1]:.1f}"
        )
    x, y = points(task, config.test)
    with torch.no_grad():
        test = (model(x) - y).square().mean().item()
    return Run(task, extra, losses, forward, test)


class First(nn.Module):
    """The first variable of a state."""

    def forward(self, y: Tensor) -> Tensor:
        """[B, D] to [B, 1]."""
        return y[:, :1]


def points(task: str, n: int) -> tuple[Tensor, Tensor]:
    """Points [n, D] and what they are to become [n, 1].

    Sign flip: evenly from -1 to 1. Spheres: half in the disc of radius 1/2 (to become -1), half in
    the ring from 1 to 3/2 (to become 1), evenly in radius.
    """
    if task == "sign flip":
        x = 2 * torch.rand(n, 1) - 1
        return x, -x
    outer = (torch.arange(n) % 2).float()
    radius = 0.5 * torch.rand(n) + outer
    angle = 2 * math.pi * torch.rand(n)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
    return x, (2 * outer - 1)[:, None]


def last(run: Run) -> float:
    """Evaluations over the last tenth of the training, mean."""
    tail = run.forward[-max(len(run.forward) // 10, 1) :]
    return sum(tail) / len(tail)


def bands_of(config: Config, runs: list[Run]) -> Iterator[Band]:
    """What is claimed."""
    flip, flip_more, spheres, spheres_more = runs
    best = 1 / 3  # mean square of x: the error of the best constant
    yield Band("sign flip, plain: error over that of a constant", flip.test / best, low=0.9)
    yield Band(f"sign flip, {config.extra} added: error", flip_more.test, high=1e-2)
    yield Band(f"spheres, {config.extra} added: error", spheres_more.test, high=1e-2)
    yield Band("spheres: error plain over augmented", spheres.test / spheres_more.test, low=2.0)
    yield Band(
        "spheres: evaluations augmented over plain", last(spheres_more) / last(spheres), high=1.0
    )


if __name__ == "__main__":
    command_line(
        ["reproduce", "augmented", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
