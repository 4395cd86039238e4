"""A latent SDE learns an Ornstein-Uhlenbeck process from few noisy points, with bands of doubt.

The process is known, so the answer is too: given the points, its posterior is that of a Gaussian
process, and no model can have a higher evidence lower bound than the exact log-evidence. Prior
drift, diffusion and posterior drift are learned from many series; the bands on held-out series are
then laid beside the exact ones.

Source:
    Li, Wong, Chen, Duvenaud 2020 (arXiv 2001.01328), section 5. Process, sizes and bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.latent import ContextEncoder, Gaussian, LatentSDE

NOISE = 0.5  # standard deviation of what is seen; well above that of one step of the solver
LENGTH = 2.0  # of the observed time; the process forgets within 1
POINTS = 10


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "torchsde"
    steps: int = 220
    batch: int = 128
    step: float = 0.025  # of the solver
    learning_rate: float = 2e-2
    n_test: int = 200
    paths: int = 200  # drawn for the bands
    judged: bool = True  # whether there are bands; False: too short to have any
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "latent_sde"


PRESETS = {
    "smoke": Config("smoke", steps=2, batch=8, n_test=8, paths=4, judged=False),
    "quick": Config("quick"),
    "full": Config("full", steps=5000, step=0.01, learning_rate=5e-3),
}


class Series(NamedTuple):
    """Series of the process dz = -z dt + sqrt(2) dW, which is N(0, 1) at every time.

    Attributes:
        x: What was seen, [B, N, 1].
        t: When, [B, N].
    """

    x: Tensor
    t: Tensor


def main(config: Config) -> dict[str, object]:
    """Train, compare with the exact answer, print, and write JSON and PNG."""
    need("matplotlib")
    return run_session("latent_sde", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from paths to files."""
    from _harness.sde_figure import bands_of_doubt  # matplotlib is optional

    torch.manual_seed(config.seed)
    model = build(config)
    with LiveLine(console) as line:
        train(config, model, session, line.show)
    test = draw(config.n_test, seed=1_000_000)
    numbers = judge(config, model, test)
    at = torch.linspace(0.0, LENGTH + 1.0, 61)
    with torch.no_grad():
        paths = model.predict(
            test.x[:3], test.t[:3], at=at, n_samples=config.paths, seed=config.seed
        )
    bands: list[Band] = []
    if config.judged:
        bands = [
            Band("log-evidence over the bound, nats", numbers["gap"], low=-0.2, high=2.5),
            Band("RMSE of the mean over the exact one's", numbers["error ratio"], high=1.15),
            Band("share of truth in 90 % bands", numbers["coverage"], low=0.8, high=0.97),
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
    exact = [posterior(test.x[b], test.t[b], at) for b in range(3)]
    figure = bands_of_doubt(at, paths[..., 0], exact, test.t[:3], test.x[:3, :, 0])
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def draw(n: int, seed: int) -> Series:
    """Series seen at random times; the process is drawn exactly, from its Gaussian law."""
    generator = torch.Generator().manual_seed(seed)
    t = (LENGTH * torch.rand(n, POINTS, generator=generator)).sort(dim=1).values
    factor = torch.linalg.cholesky(covariance(t, t) + NOISE**2 * torch.eye(POINTS))
    x = factor @ torch.randn(n, POINTS, 1, generator=generator)
    return Series(x, t)


def covariance(s: Tensor, t: Tensor) -> Tensor:
    """Of the process at two sets of times, [..., M] and [..., N] -> [..., M, N]."""
    return torch.exp(-(s.unsqueeze(-1) - t.unsqueeze(-2)).abs())


def posterior(x: Tensor, t: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean and standard deviation of the process given x [N, 1] at t [N], at times [M]."""
    across = covariance(at, t)
    gain = torch.linalg.solve(covariance(t, t) + NOISE**2 * torch.eye(len(t)), across.T).T
    variance = 1 - (gain * across).sum(dim=1)
    return (gain @ x)[:, 0], variance.clamp(min=0).sqrt()


def build(config: Config) -> LatentSDE:
    """One latent variable; what it is seen as is itself, so that its scale is the data's."""
    drift = nn.Sequential(nn.Linear(1 + 16 + 2, 48), nn.Tanh(), nn.Linear(48, 1))
    prior = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
    log_noise = nn.Parameter(torch.full((1,), 0.7))  # 2: too large, which is easy to mend

    class Noise(nn.Module):
        """A constant diffusion, learned."""

        def __init__(self) -> None:
            super().__init__()
            self.log = log_noise

        def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
            return self.log.exp().expand_as(z)

    class Autonomous(nn.Module):
        """A drift that does not depend on time."""

        def __init__(self) -> None:
            super().__init__()
            self.net = prior

        def forward(self, t: Tensor, z: Tensor) -> Tensor:  # noqa: ARG002
            return self.net(z)

    return LatentSDE(
        ContextEncoder(1, 1, hidden=32, context=16), drift, Autonomous(), Noise(), nn.Identity(),
        Gaussian(NOISE), latent=1, solver=Solver(config.backend, "euler", step=config.step),
    )  # fmt: skip


def train(config: Config, model: LatentSDE, session: Session, show: Callable[[str], None]) -> None:
    """Maximise the bound; every step sees new series at new times."""
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    grid = torch.linspace(0.0, LENGTH, 41)[1:]

    def loss(x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        # The KL divergence is never weighed less: it alone keeps the diffusion from shrinking.
        return -model.elbo(x, t, mask).value().mean()

    training = session.training(
        model, optimiser, loss, schedule=schedule, name="latent SDE", clip=10.0
    )
    for step in training.steps(config.steps):
        series = draw(config.batch, seed=config.seed * 100_003 + step)
        # On a common grid of times the union of all series' times stays small.
        t = grid[(series.t / LENGTH * 40).long().clamp(max=39)]
        value = training.descend(*merged(series.x, t))
        show(f"step {step + 1} of {config.steps}, -ELBO {value:.2f}")


def merged(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of several observations that fell on one time only the first is seen."""
    fresh = torch.cat([torch.ones_like(t[:, :1]) > 0, t.diff(dim=1) > 0], dim=1)
    return x, t, fresh


@torch.no_grad()
def judge(config: Config, model: LatentSDE, test: Series) -> dict[str, float]:
    """The bound beside the evidence, and predictions between the points beside the exact ones."""
    law = MultivariateNormal(
        torch.zeros(POINTS), covariance(test.t, test.t) + NOISE**2 * torch.eye(POINTS)
    )
    evidence = law.log_prob(test.x[..., 0])
    bound = torch.stack([model.elbo(*test, seed=k).value() for k in range(8)]).mean(dim=0)
    at = torch.linspace(0.1, LENGTH, 20)
    truth, mean, spread = [], [], []
    generator = torch.Generator().manual_seed(1)
    for x, t in zip(*test, strict=True):  # truth from the exact posterior, time by time
        m, s = posterior(x, t, at)
        truth.append(m + s * torch.randn(len(at), generator=generator))
        mean.append(m)
        spread.append(s)
    exact, answer = torch.stack(mean), torch.stack(truth)
    paths = model.predict(*test, at=at, n_samples=config.paths, seed=0)[..., 0]
    low, high = paths.quantile(torch.tensor([0.05, 0.95]), dim=0)
    ours = (paths.mean(dim=0) - answer).square().mean().sqrt()
    best = (exact - answer).square().mean().sqrt()
    return {
        "log-evidence": float(evidence.mean()),
        "bound": float(bound.mean()),
        "gap": float((evidence - bound).mean()),
        "RMSE": float(ours),
        "RMSE of the exact mean": float(best),
        "error ratio": float(ours / best),
        "coverage": float(((answer >= low) & (answer <= high)).double().mean()),
        "mean width of the 90 % bands": float((high - low).mean()),
        "of the exact ones": float(2 * 1.645 * torch.stack(spread).mean()),
        "learned diffusion (true: 1.414)": float(model.diffusion(torch.zeros(()), torch.zeros(1))),
        "learned pull at 1 (true: -1)": float(
            model.prior_drift(torch.zeros(()), torch.ones(1, 1))
            - model.prior_drift(torch.zeros(()), torch.zeros(1, 1))
        ),
    }


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "latent_sde", "--root", root, *sys.argv[1:]])
