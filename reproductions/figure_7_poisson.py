"""Figure 7 of the paper: events whose rate is read off a latent path; and real ones.

The rate of an inhomogeneous Poisson process is a network of a latent state that obeys an ODE. Its
integral is a running cost of the solve that gives the path, so that both come from one call of the
solver. First the paper's twenty events in two bursts; then 191 coal-mining disasters, where blocks
of years are held out and the model is compared there with a constant rate.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 5 and figure 7; its events read off the figure.
    Sizes and training are ours: the paper does not state them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band, beside_the_paper
from _harness.events import Events, bursts, coal_mining
from _harness.live import LiveLine, counted
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP
from ctflow.latent import LatentODE, Observations, PoissonProcess, elbo, homogeneous_log_prob

JUDGED = 1e-6  # tolerance at which what was learned is judged
LENGTH = 5.0  # of every solve, in the model's own units of time


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    steps: int = 800  # on the bursts
    coal_steps: int = 250
    learning_rate: float = 1e-2
    coal_decay: float = 3e-2  # weight decay: the disasters' rate is smooth
    tolerance: float = 1e-4
    judged: bool = True  # whether there are bands; False: too short to have any
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "figure_7_poisson"


PRESETS = {
    "smoke": Config("smoke", steps=2, coal_steps=2, judged=False),
    "quick": Config("quick"),
    "full": Config("full", steps=3000, learning_rate=5e-3, tolerance=1e-6),
}


class FreeStart(nn.Module):
    """A posterior of the latent state that is learned itself: there is one series alone."""

    def __init__(self, latent: int) -> None:
        """Near the middle of the prior."""
        super().__init__()
        self.mean = nn.Parameter(0.1 * torch.randn(1, latent))
        self.log_scale = nn.Parameter(torch.full((1, latent), -3.0))

    def forward(self, data: Observations, t0: float) -> Normal:  # noqa: ARG002
        """q(z(t0)), for each series the same."""
        shape = (len(data.x), self.mean.shape[1])
        return Normal(self.mean.expand(shape), self.log_scale.exp().expand(shape))


class Fit(NamedTuple):
    """A fitted process.

    Attributes:
        events: What was fitted, in its own time.
        model: The model, whose time is the events' from their first window on, times `scale`.
        scale: Model time for each unit of the events' time.
        start: Where the first window starts.
    """

    events: Events
    model: LatentODE
    scale: float
    start: float

    @torch.no_grad()
    def rate(self, t: Tensor) -> Tensor:
        """Events per unit of the events' time, at times [T]."""
        z = self.model.trajectory(self._z0(), (t - self.start) * self.scale)[0]
        return self.model.likelihood.mean(self.model.decoder(z))[:, 0].double() * self.scale

    @torch.no_grad()
    def log_prob(self, windows: Tensor) -> float:
        """Log-density in nats of the events inside some windows, per the events' own time."""
        times = (self.events.inside(windows) - self.start) * self.scale
        judge = PoissonProcess((windows - self.start) * self.scale)
        own, self.model.likelihood = self.model.likelihood, judge
        try:
            path = self.model.path(self._z0(), times)
        finally:
            self.model.likelihood = own
        one = torch.ones(1, len(times), 1)
        decoded = self.model.decoder(path.z)
        found = judge.log_prob(decoded, one, one > 0, path.integral)
        return float(found) + len(times) * math.log(self.scale)

    @torch.no_grad()
    def integral(self) -> float:
        """Expected number of events inside the fitted windows, from the solve's running cost."""
        found = self.model.path(self._z0(), torch.tensor([LENGTH])).integral
        return float(found.sum()) if found is not None else math.nan

    def _z0(self) -> Tensor:
        one = torch.zeros(1, 1, 1)
        return self.model.posterior(one, torch.zeros(1)).mean


def main(config: Config) -> dict[str, object]:
    """Fit both, judge, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("figure_7_poisson", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from events to files."""
    from _harness.poisson_figure import rates  # matplotlib is optional

    with LiveLine(console) as line:
        two = fit(config, bursts(), config.steps, 0.0, session, line.show)
        coal = fit(config, coal_mining(), config.coal_steps, config.coal_decay, session, line.show)
    numbers, bands = judge_bursts(two)
    coal_numbers, coal_bands = judge_coal(coal)
    found: list[Band] = []
    if config.judged:
        found = beside_the_paper("figure_7_poisson", [*bands, *coal_bands])
    peaks = [LENGTH * numbers["first peak"], LENGTH * numbers["second peak"]]
    numbers |= coal_numbers
    for name, value in numbers.items():
        console.print(f"{name}: {value:.4g}", highlight=False)
    console.print(*map(str, found), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": session.config,
        "environment": environment(),
        **numbers,
        "bands": [band.record() for band in found],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", rates(two, coal, peaks))
    return record


def fit(
    config: Config,
    events: Events,
    steps: int,
    decay: float,
    session: Session,
    show: Callable[[str], None],
) -> Fit:
    """Fit a latent ODE of four variables and a rate to the events inside the windows."""
    torch.manual_seed(config.seed)
    start, end = float(events.windows.min()), float(max(events.windows.max(), events.t.max()))
    scale = LENGTH / (end - start)
    log_rate = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    inside = events.inside(events.windows)
    watched = float((events.windows[:, 1] - events.windows[:, 0]).sum())
    with torch.no_grad():
        log_rate[-1].bias.fill_(math.log(len(inside) / (watched * scale)))
    solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance, coupling="shared")
    model = LatentODE(
        FreeStart(4), MLP(4, (32,)), log_rate, PoissonProcess((events.windows - start) * scale),
        latent=4, solver=solver,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    t = (inside - start) * scale
    x = torch.ones(1, len(t), 1)

    def loss(series: Tensor) -> Tensor:
        return -elbo(model, series, t).value().mean()

    name = f"{len(t)} events"
    training = session.training(
        model, optimiser, loss, schedule=schedule, name=name, clip=10.0, settings={"steps": steps}
    )
    for step in training.steps(steps):
        value = training.descend(x)  # one series, which several processes cannot split
        so_far = f"{name}: step {step + 1} of {steps}, -ELBO {value:.2f}"
        show(so_far + counted(model.stats))
    # What is judged to 1e-3 is solved better than that, however loosely the model was trained.
    model.solver = replace(solver, rtol=JUDGED, atol=JUDGED)
    return Fit(events, model.eval(), scale, start)


def judge_bursts(fitted: Fit) -> tuple[dict[str, float], list[Band]]:
    """Figure 7's numbers: the integral, where its mass lies, where it peaks (see `peak`)."""
    t = torch.linspace(0.0, LENGTH, 2001, dtype=torch.float64)
    rate = fitted.rate(t)
    near = ((t > 0.35) & (t < 1.55)) | ((t > 3.05) & (t < 4.25))  # within 0.15 of a burst
    total = float(torch.trapezoid(rate, t))
    inside = float(torch.trapezoid(torch.where(near, rate, 0.0), t)) / total
    half = len(t) // 2
    peaks = [peak(t[:half], rate[:half]), peak(t[half:], rate[half:])]
    log_prob = fitted.log_prob(fitted.events.windows)
    numbers = {
        "integral of the rate": fitted.integral(),
        "share of its mass in the bursts": inside,
        "first peak": peaks[0] / LENGTH,
        "second peak": peaks[1] / LENGTH,
        "peak over mean": float(rate.max() / rate.mean()),
        "negative log-likelihood": -log_prob,
        "of a constant rate": -float(homogeneous_log_prob(20, LENGTH, 20 / LENGTH)),
    }
    integral = numbers["integral of the rate"]
    return numbers, [
        Band("integral of the rate (20 events)", integral, low=19.0, high=21.0),
        Band("share of its mass in the bursts", inside, low=0.85),
        Band(
            "first peak, middle at half height (paper 0.188)",
            peaks[0] / LENGTH, low=0.158, high=0.218,
        ),
        Band(
            "second peak, middle at half height (paper 0.733)",
            peaks[1] / LENGTH, low=0.703, high=0.763,
        ),
        Band("negative log-likelihood", -log_prob, high=-20.0),
        Band("running cost against trapezoids", abs(integral - total) / total, high=1e-3),
    ]  # fmt: skip


def peak(t: Tensor, rate: Tensor) -> float:
    """Where a rate has its peak: the middle of the interval about its maximum above half of it.

    The rate of a burst has a flat top, on which the maximum jumps from one edge to the other.

    Args:
        t: Times, growing, [T].
        rate: The rate there, [T].

    Returns:
        Midpoint of the full width at half maximum, in the unit of `t`.
    """
    top = int(rate.argmax())
    low = (rate < rate[top] / 2).nonzero()[:, 0]  # outside of the interval
    first = int(low[low < top].max()) + 1 if (low < top).any() else 0
    last = int(low[low > top].min()) - 1 if (low > top).any() else len(t) - 1
    return float(t[first] + t[last]) / 2


def judge_coal(fitted: Fit) -> tuple[dict[str, float], list[Band]]:
    """Against a constant rate on the years held out; and what everybody sees in these data."""
    events = fitted.events
    lengths = [float((w[:, 1] - w[:, 0]).sum()) for w in (events.windows, events.held_out)]
    mean = len(events.inside(events.windows)) / lengths[0]
    n_held = len(events.inside(events.held_out))
    constant = float(homogeneous_log_prob(n_held, lengths[1], mean))
    gain = fitted.log_prob(events.held_out) - constant
    early = fitted.rate(torch.linspace(1851.0, 1890.0, 200, dtype=torch.float64)).mean()
    late = fitted.rate(torch.linspace(1900.0, 1962.0, 200, dtype=torch.float64)).mean()
    numbers = {
        "disasters held out": float(n_held),
        "nats over a constant rate on the years held out": gain,
        "rate before 1890 over rate after 1900": float(early / late),
    }
    return numbers, [
        Band("coal: nats over a constant rate, held out", gain, low=5.0),
        Band("coal: rate before 1890 over after 1900", float(early / late), low=2.0),
    ]


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "figure_7_poisson", "--root", root, *sys.argv[1:]])
