"""Figure 2 of the paper, computed: a state, and its adjoint with a jump at every observation.

A damped pendulum is observed at five times, and  L = sum_i |z(t_i) - x_i|^2 / 2. Its adjoint
a(t) = dL/dz(t) obeys  da/dt = -a df/dz  between observations (eq. 4); going back past t_i it jumps
by dL/dz(t_i) = z(t_i) - x_i. The curve is drawn as the paper describes it: [z, a] is solved
backwards from observation to observation, z put back to the stored state at each.

It is then checked against something that knows nothing of that equation: the gradient, by
back-propagation through the solver, of a solve that starts at the time in question.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 2 and figure 2, which is a sketch there.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band
from _harness.records import Figure, environment, need, write_figure, write_json
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ctflow import Solver, odeint
from ctflow.cli import main as command_line

FLOAT = torch.float64
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's palette


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0  # of the noise on the observations
    backend: str = "native"
    times: tuple[float, ...] = (0.6, 1.3, 1.9, 2.8, 3.5)  # of the observations; t0 is 0
    noise: float = 0.5  # standard deviation of the observations
    tolerance: float = 1e-11  # rtol and atol of every solve
    points: int = 60  # of the curve in each interval
    probes: int = 4  # checks of the curve in each interval
    aside: float = 1e-10  # how far beside an observation a one-sided limit is taken
    results: Path = Path(__file__).parent / "results" / "figure_2_adjoint"


PRESETS = {
    "smoke": Config("smoke", tolerance=1e-10, points=5, probes=1),
    "quick": Config("quick"),
    "full": Config("full", points=200, probes=20),
}


class Pendulum(nn.Module):
    """Angle and speed [2] of a damped pendulum."""

    def __init__(self) -> None:
        """Stiffness and damping, the parameters."""
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([6.0, 0.25], dtype=FLOAT))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """dz/dt."""
        angle, speed = z
        stiffness, damping = self.theta
        return torch.stack([speed, -stiffness * torch.sin(angle) - damping * speed])


class Curves(NamedTuple):
    """What is drawn: for each interval between observations, times [K], states and adjoints."""

    times: list[Tensor]
    states: list[Tensor]
    adjoints: list[Tensor]


class Observed:
    """The pendulum, when it is observed, and what was seen."""

    def __init__(self, config: Config) -> None:
        """Solve it, and add noise to what is seen."""
        torch.manual_seed(config.seed)
        self.config = config
        self.field = Pendulum()
        self.z0 = torch.tensor([1.2, 0.0], dtype=FLOAT)
        self.times = torch.tensor([0.0, *config.times], dtype=FLOAT)  # the start, then t_1 to t_5
        self.solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance)
        with torch.no_grad():
            self.states = odeint(self.field, self.z0, self.times, solver=self.solver)
        self.seen = self.states + config.noise * torch.randn_like(self.states)
        self.residuals = self.states - self.seen  # dL/dz(t_i), for i >= 1

    def loss(self, z: Tensor, start: Tensor, first: int) -> Tensor:
        """L of the observations from number `first` on, as a function of the state at `start`."""
        times = torch.cat([start.reshape(1), self.times[first:]])
        y = odeint(self.field, z, times, solver=self.solver, gradient="direct")
        return (y[1:] - self.seen[first:]).square().sum() / 2

    def adjoint_at(self, t: Tensor) -> Tensor:
        """dL/dz(t) by back-propagation through a solve that starts there."""
        first = int((self.times <= t).sum())
        with torch.no_grad():
            ends = torch.stack([self.times[first - 1], t])
            z = odeint(self.field, self.states[first - 1], ends, solver=self.solver)[-1]
        z.requires_grad_()
        (a,) = torch.autograd.grad(self.loss(z, t, first), z)
        return a

    def backwards(self, t: Tensor, both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """d[z, a]/dt = [f, -a df/dz]."""
        with torch.enable_grad():
            z = both[0].detach().requires_grad_()
            f = self.field(t, z)
            (pulled,) = torch.autograd.grad(f, z, both[1])
        return f.detach(), -pulled

    @torch.no_grad()
    def curves(self) -> Curves:
        """State and adjoint on a fine grid, from the last observation back to the start."""
        found = Curves([], [], [])
        a = torch.zeros_like(self.z0)
        for i in range(len(self.times) - 1, 0, -1):
            a = a + self.residuals[i]  # the jump
            ends = self.times[i].item(), self.times[i - 1].item()
            t = torch.linspace(*ends, self.config.points, dtype=FLOAT)
            z, path = odeint(self.backwards, (self.states[i], a), t, solver=self.solver)
            for kept, values in zip(found, (t, z, path), strict=True):
                kept.append(values)
            a = path[-1]
        return found


def main(config: Config) -> dict[str, object]:
    """Solve, check, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    console, observed = Console(), Observed(config)
    curves = observed.curves()
    jumps = measured_jumps(observed)
    a0 = curves.adjoints[-1][-1]
    bands = [
        Band("jumps against dL/dz(t_i)", largest(jumps - observed.residuals[1:]), high=1e-8),
        Band("curve against gradients", largest_off(observed, curves), high=1e-6),
        *(
            Band(f"a(t0) against autograd, {g}", largest(a0 - start(observed, g)), high=1e-6)
            for g in ("direct", "adjoint")
        ),
    ]
    console.print(table_of(observed, jumps), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "a_t0": a0.tolist(),
        "jumps": jumps.tolist(),
        "dL_dz": observed.residuals[1:].tolist(),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", draw(observed, curves))
    return record


def start(observed: Observed, gradient: str) -> Tensor:
    """dL/dz(t0) by autograd through the solve, in one of the ways of the backend."""
    z = observed.z0.clone().requires_grad_()
    y = odeint(observed.field, z, observed.times, solver=observed.solver, gradient=gradient)
    (a,) = torch.autograd.grad((y[1:] - observed.seen[1:]).square().sum() / 2, z)
    return a


def measured_jumps(observed: Observed) -> Tensor:
    """a just before minus a just after each observation, by gradients alone, [5, 2]."""
    aside = observed.config.aside
    before = [observed.adjoint_at(t - aside) for t in observed.times[1:]]
    after = [observed.adjoint_at(t + aside) for t in observed.times[1:-1]]
    return torch.stack(before) - torch.stack([*after, torch.zeros_like(observed.z0)])


def largest_off(observed: Observed, curves: Curves) -> float:
    """Largest distance of the curve from the gradient of a solve started there."""
    off = 0.0
    for t, path in zip(curves.times, curves.adjoints, strict=True):
        inside = torch.linspace(1, len(t) - 2, observed.config.probes).round().long()
        off = max(off, *(largest(path[i] - observed.adjoint_at(t[i])) for i in inside))
    return off


def largest(x: Tensor) -> float:
    """Largest absolute entry."""
    return x.abs().max().item()


def table_of(observed: Observed, jumps: Tensor) -> Table:
    """Jumps beside what they should be."""
    table = Table("t_i", "jump of a", "dL/dz(t_i)", title="The adjoint jumps at each observation")
    for t, jump, wanted in zip(observed.times[1:], jumps, observed.residuals[1:], strict=True):
        table.add_row(f"{t:.1f}", *(f"{x[0]:+.9f} {x[1]:+.9f}" for x in (jump, wanted)))
    return table


def draw(observed: Observed, curves: Curves) -> Figure:
    """The state above, the adjoint below, on one axis of time."""
    from _harness.adjoint_figure import state_and_adjoint  # matplotlib is optional

    return state_and_adjoint(curves, observed.times[1:], observed.seen[1:])


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "figure_2_adjoint", "--root", root, *sys.argv[1:]])
