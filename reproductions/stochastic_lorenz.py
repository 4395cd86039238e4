"""A latent SDE learns the stochastic Lorenz attractor from some of its points, with bands of doubt.

Each series is a path of

    dx = 10 (y - x) dt + a dW1,   dy = (x (28 - z) - y) dt + a dW2,   dz = (x y - 8/3 z) dt + a dW3

of which 15 of the 101 points of one unit of time are seen, with noise. Between them and for a
while after them the true path is known here, and not to the model: how far off is its mean, and how
often does its 90 % band hold the truth?

Source:
    Li, Wong, Chen, Duvenaud 2020 (arXiv 2001.01328), section 7.2: the system, and the model's
    parts. Noise, sizes and bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn

from ctflow import Solver, sdeint
from ctflow.cli import main as command_line
from ctflow.latent import ContextEncoder, Gaussian, LatentSDE, annealed

DISTURBANCE = 1.5  # a, per square root of a unit of time; the attractor is some 40 wide
UNIT = 10.0  # units of the model's time in one of the system's, in which it turns about once
N_SEEN, N_AFTER = 101, 30  # grid points, 0.01 apart, of the observed time and of the forecast
NOISE = 0.1  # of what is seen, in standard deviations of a coordinate


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "torchsde"
    steps: int = 500
    batch: int = 64
    latent: int = 4
    context: int = 16
    hidden: int = 64
    share: float = 0.15  # of the points that are seen
    step: float = 0.25  # of the solver, in the model's time
    learning_rate: float = 1e-2
    n_train: int = 1000
    n_test: int = 100
    paths: int = 100  # drawn for the bands
    judged: bool = True  # whether there are bands; False: too short to have any
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "stochastic_lorenz"


PRESETS = {
    "smoke": Config("smoke", steps=2, batch=8, n_train=20, n_test=8, paths=4, judged=False),
    "quick": Config("quick", n_train=500),
    "full": Config("full", steps=4000, step=0.1, learning_rate=5e-3, n_train=4000, paths=400),
}
PRESETS["paper"] = replace(PRESETS["full"], preset="paper", steps=20_000, step=0.05)


class Series(NamedTuple):
    """Paths of the attractor, in standard deviations about its mean.

    Attributes:
        t: Times in the model's units, [N_SEEN + N_AFTER].
        truth: Without noise, [B, N_SEEN + N_AFTER, 3].
        noisy: With it, of the observed time, [B, N_SEEN, 3].
        seen: Which points are seen, bool [B, N_SEEN].
    """

    t: Tensor
    truth: Tensor
    noisy: Tensor
    seen: Tensor

    def rows(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values, times and mask of some series, as a latent model takes them."""
        return self.noisy[rows], self.t[:N_SEEN], self.seen[rows]


class Drift(nn.Module):
    """A drift that does not depend on time."""

    def __init__(self, latent: int, hidden: int) -> None:
        """One hidden layer."""
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, latent)
        )

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """States [B, L] to their drift."""
        return self.net(z)


class Diffusion(nn.Module):
    """A constant diffusion of each variable, learned."""

    def __init__(self, latent: int) -> None:
        """At 0.3, above what it will be."""
        super().__init__()
        self.log = nn.Parameter(torch.full((latent,), -1.2))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
        """The same for every state."""
        return self.log.exp().expand_as(z)


def main(config: Config) -> dict[str, object]:
    """Train, judge, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("stochastic_lorenz", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from paths to files."""
    from _harness.lorenz_figure import bands_of_doubt  # matplotlib is optional

    learned = draw(config.n_train, config.share, seed=config.seed)
    held = draw(config.n_test, config.share, seed=1_000_000)
    torch.manual_seed(config.seed)
    model = build(config)
    with LiveLine(console) as line:
        train(config, model, learned, session, line.show)
    paths = predicted(config, model, held)
    numbers = judge(held, paths)
    bands: list[Band] = []
    if config.judged:
        bands = [
            Band(
                "in between: linear interpolant's RMSE over ours", numbers["linear over ours"], 1.0
            ),
            Band("after: RMSE of holding the last over ours", numbers["holding over ours"], 2.0),
            Band("share of truth in 90 % bands, in between", numbers["coverage"], 0.75, 0.99),
            Band("share of truth in 90 % bands, after", numbers["coverage after"], 0.7, 0.99),
        ]
    for name, value in numbers.items():
        console.print(f"{name}: {value:.4g}", highlight=False)
    console.print(*map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": session.config,
        "environment": environment(),
        **numbers,
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = bands_of_doubt(held.t, paths, held.truth, held.noisy, held.seen)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def lorenz(t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001 - autonomous
    """The drift of the system, [B, 3]."""
    a, b, c = y.unbind(dim=1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], dim=1)


def disturbance(t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG001 - the same everywhere
    """The diffusion of the system, [B, 3]."""
    return torch.full_like(y, DISTURBANCE)


@torch.no_grad()
def draw(n: int, share: float, seed: int) -> Series:
    """Paths that have had a unit of time to reach the attractor, seen in part."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(n, 3, generator=generator, dtype=torch.float64) + torch.tensor([0, 0, 25.0])
    count = N_SEEN + N_AFTER
    t = torch.cat([torch.zeros(1), 1 + torch.arange(count) / 100]).double()
    paths = sdeint(
        lorenz, disturbance, start, t, seed=seed, solver=Solver("torchsde", "srk", step=0.01)
    )[1:].transpose(0, 1)  # fmt: skip
    centre, spread = (
        torch.tensor([0.0, 0.0, 23.5]),
        torch.tensor([7.9, 9.0, 8.6]),
    )  # the attractor's
    truth = ((paths - centre) / spread).float()
    noisy = truth[:, :N_SEEN] + NOISE * torch.randn(n, N_SEEN, 3, generator=generator)
    chosen = torch.rand(n, N_SEEN, generator=generator).argsort(dim=1) < round(share * N_SEEN)
    return Series(UNIT * torch.arange(count) / 100, truth, noisy, chosen)


def build(config: Config) -> LatentSDE:
    """A latent SDE with a linear decoder."""
    latent, hidden = config.latent, config.hidden
    drift = nn.Sequential(
        nn.Linear(latent + config.context + 2, hidden), nn.Softplus(), nn.Linear(hidden, latent)
    )
    return LatentSDE(
        ContextEncoder(3, latent, hidden, config.context), drift, Drift(latent, hidden),
        Diffusion(latent), nn.Linear(latent, 3), Gaussian(NOISE), latent=latent,
        solver=Solver(config.backend, "euler", step=config.step),
    )  # fmt: skip


def train(
    config: Config,
    model: LatentSDE,
    data: Series,
    session: Session,
    show: Callable[[str], None],
) -> None:
    """Maximise the bound; the KL divergence counts fully from a third of the steps on."""
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)

    def loss(rows: Tensor) -> Tensor:
        bound = model.elbo(*data.rows(rows))
        return -bound.value(annealed(training.done, config.steps // 3)).mean()

    training = session.training(
        model, optimiser, loss, schedule=schedule, name="latent SDE", clip=100.0
    )
    for step in training.steps(config.steps):
        value = training.descend(torch.randint(len(data.truth), (config.batch,)))
        show(f"step {step + 1} of {config.steps}, -ELBO {value:.1f}")


@torch.no_grad()
def predicted(config: Config, model: LatentSDE, held: Series) -> Tensor:
    """Posterior paths of the series held out, [S, B, N_SEEN + N_AFTER, 3]."""
    data = held.rows(torch.arange(len(held.truth)))
    return model.predict(*data, at=held.t, n_samples=config.paths, seed=config.seed)


def judge(held: Series, paths: Tensor) -> dict[str, float]:
    """Errors of the mean against the true path, and how often the band holds it."""
    mean = paths.mean(dim=0)
    low, high = paths.quantile(torch.tensor([0.05, 0.95]), dim=0)
    inside = ((held.truth >= low) & (held.truth <= high)).double()
    line = torch.from_numpy(_interpolated(held))
    known = torch.arange(len(held.t)) < N_SEEN
    hidden = ~held.seen
    between, after = mean[:, known], mean[:, ~known]
    ours = _rms((between - held.truth[:, known])[hidden])
    theirs = _rms((line[:, known] - held.truth[:, known])[hidden])
    beyond = _rms(after - held.truth[:, ~known])
    holding = _rms(line[:, ~known] - held.truth[:, ~known])
    return {
        "RMSE in between": ours,
        "of a linear interpolant": theirs,
        "linear over ours": theirs / ours,
        "RMSE after": beyond,
        "of holding the last": holding,
        "holding over ours": holding / beyond,
        "coverage": inside[:, known][hidden].mean().item(),
        "coverage after": inside[:, ~known].mean().item(),
        "mean width of the 90 % bands": (high - low)[:, known].mean().item(),
        "after the data": (high - low)[:, ~known].mean().item(),
    }


def _interpolated(held: Series) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The linear interpolant of what is seen, held after the last."""
    found = np.empty(held.truth.shape, dtype=np.float32)
    t = held.t.numpy()
    for b, seen in enumerate(held.seen.numpy()):
        for k in range(3):
            found[b, :, k] = np.interp(t, t[:N_SEEN][seen], held.noisy[b, held.seen[b], k].numpy())
    return found


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "stochastic_lorenz", "--root", root, *sys.argv[1:]])
