"""Fields with structure learn what they are made for: an energy that stays, and crossing paths.

Pendulum: from noisy pieces of motion, a Hamiltonian field and a plain one of the same size learn to
predict; then both are followed ten times as long as they were trained. The Hamiltonian one keeps
the true energy, the plain one drifts off.

Sign flip: x -> -x of points on a line is impossible for an ODE of first order (see `augmented`); a
second-order field whose velocity starts at 0 learns it without any added data.

Source:
    Greydanus et al. 2019, "Hamiltonian neural networks" (arXiv 1906.01563); Norcliffe et al. 2020,
    "On second order behaviour in augmented neural ODEs" (arXiv 2006.07220). The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn

from ctflow import Solver, odeint
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP, ConcatLinear, HamiltonianField, SecondOrderField

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    steps: int = 300  # of the optimiser
    pieces: int = 50  # of motion, in training
    noise: float = 0.05
    width: int = 32
    piece: float = 1.5  # length of a piece in time
    longer: float = 10.0  # so many times as long is followed in the test
    tolerance: float = 1e-4
    learning_rate: float = 1e-2
    claims: bool = True
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "mechanics"


PRESETS = {
    "smoke": Config("smoke", steps=2, pieces=5, longer=2.0, claims=False),
    "quick": Config("quick"),
    "full": Config("full", steps=3000, pieces=200, width=64),
}


class Energy(nn.Module):
    """A network's energy of angle and momentum."""

    def __init__(self, width: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
        )

    def forward(self, q: Tensor, p: Tensor) -> Tensor:
        """[B, 1] and [B, 1] to [B]."""
        return self.net(torch.cat([q, p], dim=1))[:, 0]


class Plain(nn.Module):
    """A network's slope of angle and momentum, without structure."""

    def __init__(self, width: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.net = MLP(2, (width, width))

    def forward(self, t: Tensor, y: Pair) -> Pair:
        """Derivative of a pair of [B, 1]."""
        q, p = self.net(t, torch.cat(y, dim=1)).split(1, dim=1)
        return q, p


class Acceleration(nn.Module):
    """A network's acceleration from place, velocity and time."""

    def __init__(self, width: int) -> None:
        """Draw the weights."""
        super().__init__()
        self.first = ConcatLinear(2, width)
        self.last = nn.Linear(width, 1)

    def forward(self, t: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """[B, 1] each."""
        return self.last(torch.tanh(self.first(t, torch.cat([x, v], dim=1))))


def true_energy(q: Tensor, p: Tensor) -> Tensor:
    """Of a pendulum with unit mass, length and gravity, [...] each."""
    return 0.5 * p.square() + 1 - torch.cos(q)


def pendulum(t: Tensor, y: Pair) -> Pair:  # noqa: ARG001 - autonomous
    """Its motion."""
    return y[1], -torch.sin(y[0])


def main(config: Config) -> dict[str, object]:
    """Train, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("mechanics", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from motions to files."""
    from _harness.motion_figure import motions_and_energies  # matplotlib is optional

    with LiveLine(console) as line:
        torch.manual_seed(config.seed)
        fields = {
            "Hamiltonian": HamiltonianField(Energy(config.width)),
            "plain": Plain(config.width),
        }
        motions = {name: learned(f, config, session, name, line.show) for name, f in fields.items()}
        flip = second_order(config, session, line.show)
    t, start, truth = test_motion(config)
    drift = {name: energy_error(start, motion) for name, motion in motions.items()}
    console.print(
        f"energy, mean square error over {config.longer:g} times the training's length: "
        + ", ".join(f"{name} {value:.2e}" for name, value in drift.items()),
        f"sign flip by a second-order field: error {flip:.2e}",
        sep="\n",
        highlight=False,
    )
    bands = list(bands_of(drift, flip)) if config.claims else []
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "energy_error": drift,
        "sign_flip_error": flip,
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = motions_and_energies(t, {"true": truth, **motions}, true_energy)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def starts(n: int) -> Pair:
    """Swings of different energy below the turning over, [n, 1] each."""
    angle, size = 2 * math.pi * torch.rand(n, 1), 0.5 + 1.0 * torch.rand(n, 1)
    return size * angle.cos(), size * angle.sin()


def learned(
    field: nn.Module, config: Config, session: Session, name: str, show: Callable[[str], None]
) -> Pair:
    """Train a field on noisy pieces, then follow it; [T, B, 1] each."""
    torch.manual_seed(config.seed + 1)
    times = torch.linspace(0, config.piece, 6)
    tight = Solver(rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        clean = odeint(pendulum, starts(config.pieces), times, solver=tight)
        q, p = (leaf + config.noise * torch.randn_like(leaf) for leaf in clean)
    optimiser = torch.optim.Adam(field.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    solver = solver_of(config)

    def loss(rows: Tensor) -> Tensor:
        own_q, own_p = q[:, rows], p[:, rows]
        found = odeint(field, (own_q[0], own_p[0]), times, solver=solver)
        return (found[0] - own_q).square().mean() + (found[1] - own_p).square().mean()

    training = session.training(field, optimiser, loss, schedule=schedule, name=name)
    for step in training.steps(config.steps):
        value = training.descend(torch.arange(config.pieces))
        show(f"{name}: step {step + 1}/{config.steps}  loss {value:.5f}")
    t, start, _ = test_motion(config)
    with torch.no_grad():
        return odeint(field, start, t, solver=tight)


def test_motion(config: Config) -> tuple[Tensor, Pair, Pair]:
    """Times, starts and true motion of the test, far longer than what was learned from."""
    torch.manual_seed(config.seed + 2)
    t = torch.linspace(0, config.longer * config.piece, 101)
    start = starts(10)
    with torch.no_grad():
        return t, start, odeint(pendulum, start, t, solver=Solver(rtol=1e-5, atol=1e-6))


def energy_error(start: Pair, motion: Pair) -> float:
    """Mean square difference of the true energy along a motion from that at its start."""
    return float((true_energy(*motion) - true_energy(*start)).square().mean())


def second_order(config: Config, session: Session, show: Callable[[str], None]) -> float:
    """Mean square error of x -> -x, learned by an acceleration."""
    torch.manual_seed(config.seed)
    field = SecondOrderField(Acceleration(config.width))
    optimiser = torch.optim.Adam(field.parameters(), config.learning_rate)
    solver = solver_of(config)

    def loss(x: Tensor) -> Tensor:
        end, _ = odeint(field, (x, torch.zeros_like(x)), [0.0, 1.0], solver=solver)
        return (end[-1] + x).square().mean()

    training = session.training(field, optimiser, loss, name="sign flip")
    for step in training.steps(config.steps):
        training.notes["error"] = training.descend(2 * torch.rand(64, 1) - 1)
        show(f"sign flip: step {step + 1}/{config.steps}  loss {training.notes['error']:.5f}")
    return training.notes["error"]


def solver_of(config: Config) -> Solver:
    """That of the training."""
    return Solver(config.backend, rtol=config.tolerance, atol=config.tolerance)


def bands_of(drift: dict[str, float], flip: float) -> Iterator[Band]:
    """What is claimed."""
    ratio = drift["plain"] / drift["Hamiltonian"]
    yield Band("energy error, plain over Hamiltonian", ratio, low=2.0)
    yield Band("sign flip by a second-order field, error", flip, high=1e-2)


if __name__ == "__main__":
    command_line(
        ["reproduce", "mechanics", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
