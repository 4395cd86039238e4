"""Physics from the times of events alone: gravity, restitution and floor of a bouncing ball.

Balls are let go at known heights, and only the times at which they hit the floor are measured, with
noise. The field has gravity for its parameter, the change at a bounce has restitution, and the
event function itself the height of the floor. All three are found by least squares on the times,
whose gradients go through every bounce before.

Source:
    The task is that of section 6 of Chen, Amos, Nickel 2021, "Learning neural event functions for
    ordinary differential equations" (arXiv 2011.03902), in its simplest form; the bands are ours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.threads import torch_threads
from rich.console import Console
from torch import Tensor, nn

from ctflow import Event, ODEProblem, Solver, odeint_event, solve
from ctflow.cli import main as command_line

TRUE = {"gravity": 9.81, "restitution": 0.8, "floor": 0.1}
GUESS = {"gravity": 6.0, "restitution": 0.6, "floor": 0.0}
LATEST = 200.0  # no ball of any guess on the way bounces as long


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    balls: int = 8
    bounces: int = 4
    noise: float = 1e-3  # of a time, in seconds
    steps: int = 30  # of the optimiser
    tolerance: float = 1e-8
    claims: bool = True
    results: Path = Path(__file__).parent / "results" / "bouncing_ball"


PRESETS = {
    "smoke": Config("smoke", balls=2, bounces=2, steps=2, claims=False),
    "quick": Config("quick"),
    "full": Config("full", balls=64, bounces=6),
}


class Ball(nn.Module):
    """Free fall with bounces; its three numbers are parameters.

    Gravity by its logarithm and restitution by its logit, so that every guess is a ball.
    """

    def __init__(self, values: dict[str, float]) -> None:
        """Begin with these."""
        super().__init__()
        gravity, restitution, floor = (
            torch.tensor(values[name], dtype=torch.float64) for name in TRUE
        )
        self.log_gravity = nn.Parameter(gravity.log())
        self.logit_restitution = nn.Parameter(restitution.logit())
        self.floor = nn.Parameter(floor)

    @property
    def gravity(self) -> Tensor:
        """Metres per second squared."""
        return self.log_gravity.exp()

    @property
    def restitution(self) -> Tensor:
        """Speed behind a bounce over speed before."""
        return self.logit_restitution.sigmoid()

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - autonomous
        """Slope of height and speed, [B, 2]."""
        return torch.stack([y[:, 1], -self.gravity + 0 * y[:, 1]], dim=1)

    def contact(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - an event function takes it
        """Height over the floor, [B]."""
        return y[:, 0] - self.floor

    def turned(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - a change takes it
        """The state behind a bounce, [B, 2]."""
        return torch.stack([y[:, 0], -self.restitution * y[:, 1]], dim=1)

    def bounce(self, n: int) -> Event:
        """Contact on the way down; the n-th ends the solve."""
        return Event(self.contact, direction=-1, terminal=n, change=self.turned)

    def values(self) -> dict[str, float]:
        """Its numbers."""
        return {name: float(getattr(self, name).detach()) for name in TRUE}


def main(config: Config) -> dict[str, object]:
    """Measure, fit, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    with torch_threads(1):
        return run(config, Console())


def run(config: Config, console: Console) -> dict[str, object]:
    """The experiment, from measured times to files."""
    from _harness.ball_figure import courses_and_fit  # matplotlib is optional

    torch.manual_seed(config.seed)
    start = starts(config.balls)
    with torch.no_grad():
        exact = times(Ball(TRUE), start, config)
    measured = exact + config.noise * torch.randn_like(exact)
    ball = Ball(GUESS)
    with LiveLine(console) as line:
        way = fitted(ball, start, measured, config, line.show)
    found = ball.values()
    with torch.no_grad():
        misfit = float((times(ball, start, config) - measured).square().mean().sqrt())
    errors = {name: abs(found[name] - TRUE[name]) for name in TRUE}
    console.print(
        *(f"{name}: {found[name]:.5f} (true {TRUE[name]:g})" for name in TRUE),
        sep="\n", highlight=False,
    )  # fmt: skip
    bands = list(bands_of(errors, misfit / config.noise)) if config.claims else []
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "found": found,
        "true": TRUE,
        "misfit": misfit,
        "evaluations": len(way),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    balls = {"true": Ball(TRUE), "guess": Ball(GUESS), "found": ball}
    courses = {name: course(each, start, config) for name, each in balls.items()}
    figure = courses_and_fit(courses, measured[0], way, TRUE)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def starts(n: int) -> Tensor:
    """Balls at rest between 0.5 and 2 metres, [B, 2]."""
    height = 0.5 + 1.5 * torch.rand(n, dtype=torch.float64)
    return torch.stack([height, torch.zeros_like(height)], dim=1)


def solver_of(config: Config) -> Solver:
    """Each ball with steps and events of its own."""
    return Solver(
        config.backend, rtol=config.tolerance, atol=config.tolerance, coupling="per_sample"
    )


def times(ball: Ball, start: Tensor, config: Config) -> Tensor:
    """When each ball bounces, [B, bounces]."""
    event = ball.bounce(config.bounces)
    return odeint_event(ball, start, [0.0, LATEST], event, solver=solver_of(config)).t


def fitted(
    ball: Ball, start: Tensor, measured: Tensor, config: Config, show: Callable[[str], None]
) -> list[dict[str, float]]:
    """Fit the ball to measured times; its numbers at every evaluation on the way."""
    way: list[dict[str, float]] = []
    optimiser = torch.optim.LBFGS(
        ball.parameters(), max_iter=config.steps, line_search_fn="strong_wolfe",
        tolerance_grad=1e-9, tolerance_change=1e-12,
    )  # fmt: skip

    def evaluated() -> Tensor:
        optimiser.zero_grad()
        loss = (times(ball, start, config) - measured).square().mean()
        loss.backward()
        way.append(ball.values())
        show(f"evaluation {len(way)}: loss {loss.item():.3e} s^2")
        return loss

    optimiser.step(evaluated)
    return [*way, ball.values()]


@torch.no_grad()
def course(ball: Ball, start: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Times and heights of the first ball, [T] each."""
    t = torch.linspace(0, 3, 601, dtype=torch.float64)
    problem = ODEProblem(ball, start[:1], t, event=ball.bounce(0))
    return t, solve(problem, solver_of(config)).y[:, 0, 0]


def bands_of(errors: dict[str, float], misfit: float) -> Iterator[Band]:
    """What is claimed: some standard errors, and a misfit that is the noise."""
    yield Band("gravity, error in m/s^2", errors["gravity"], high=0.05)
    yield Band("restitution, error", errors["restitution"], high=2e-3)
    yield Band("floor, error in m", errors["floor"], high=5e-3)
    yield Band("misfit of the times over their noise", misfit, low=0.7, high=1.3)


if __name__ == "__main__":
    command_line(
        ["reproduce", "bouncing_ball", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
