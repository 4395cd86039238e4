"""Firing of a neuron, sequence by sequence, as Poisson processes whose rate is a latent path.

The model of figure 7, with a recognition network: each of 469 sequences of 3 to 6 spikes has a
latent state of its own, from which an ODE gives the rate. On sequences held out, its log-density is
bounded from below with importance samples, and laid beside that of a constant rate, and of one rate
for all sequences.

The data are licensed under the GPL and not part of ctflow: the script says how to get them.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 5, "Poisson Process likelihoods"; Burda, Grosse,
    Salakhutdinov 2016 (arXiv 1509.00519), eq. 8: the bound. Data, sizes and bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine, counted
from _harness.neurons import LENGTH, load_sequences
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from torch import Tensor, nn
from torch.distributions import Normal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.dynamics import MLP
from ctflow.latent import (
    LatentODE,
    Observations,
    PoissonProcess,
    RNNEncoder,
    annealed,
    elbo,
    homogeneous_log_prob,
)

Sequences = tuple[Tensor, Tensor, Tensor]
_AT_ONCE = 50  # samples of each sequence in one solve


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "compiled"  # a tenth of native's time
    steps: int = 1500
    batch: int = 64
    latent: int = 4
    learning_rate: float = 1e-2
    tolerance: float = 1e-3
    samples: int = 100  # of each sequence held out
    every: int = 5  # one sequence of so many is held out
    judged: bool = True  # whether there are bands; False: too short to have any
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "neuron_firing"


PRESETS = {
    "smoke": Config("smoke", backend="native", steps=2, batch=8, samples=3, judged=False),
    "quick": Config("quick"),
    "full": Config("full", steps=6000, tolerance=1e-4, samples=1000),
}
PRESETS["paper"] = replace(PRESETS["full"], preset="paper", steps=20_000, tolerance=1e-6)


class Turning(nn.Module):
    """f(z) = A z + network(z), where A begins as rotations at once and twice a frequency.

    Without them training ends at a constant rate: spikes come in turn, and a path that hardly moves
    at first has no slope towards one that oscillates.

    Args:
        latent: Variables, at least 4.
        frequency: Of the slower rotation, in radians for each unit of time.
    """

    def __init__(self, latent: int, frequency: float) -> None:
        """Two planes turn; the variables beyond stand still."""
        super().__init__()
        self.linear, self.net = nn.Linear(latent, latent, bias=False), MLP(latent, (32,))
        with torch.no_grad():
            self.linear.weight.zero_()
            for plane in (0, 1):
                i, speed = 2 * plane, (plane + 1) * frequency
                self.linear.weight[i, i + 1], self.linear.weight[i + 1, i] = -speed, speed

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """States [..., L] to their derivative."""
        return self.linear(z) + 0.1 * self.net(t, z)


class Shared(nn.Module):
    """One distribution of the latent state for all sequences, learned itself."""

    def __init__(self, latent: int) -> None:
        """Near the middle of the prior."""
        super().__init__()
        self.mean = nn.Parameter(0.1 * torch.randn(latent))
        self.log_scale = nn.Parameter(torch.full((latent,), -3.0))

    def forward(self, data: Observations, t0: float) -> Normal:  # noqa: ARG002
        """q(z(t0)), [B, L]."""
        shape = (len(data.x), len(self.mean))
        return Normal(self.mean.expand(shape), self.log_scale.exp().expand(shape))


def main(config: Config) -> dict[str, object]:
    """Train, judge, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("neuron_firing", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from spikes to files."""
    from _harness.neuron_figure import firing  # matplotlib is optional

    sequences = load_sequences()
    held = torch.arange(len(sequences[0])) % config.every == config.every // 2
    learned, judged = _rows(sequences, ~held), _rows(sequences, held)
    with LiveLine(console) as line:
        one = train(config, learned, True, session, line.show)
        each = train(config, learned, False, session, line.show)
    numbers = judge(config, learned, judged, one, each)
    figure = firing(one, each, judged)
    bands: list[Band] = []
    if config.judged:
        bands = [
            Band("nats over a constant rate, all held out", numbers["gain"], low=5.0),
            Band("nats over one rate for all, all held out", numbers["gain over one"], low=5.0),
            Band("expected spikes over seen ones", numbers["expected over seen"], 0.95, 1.05),
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
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def train(
    config: Config,
    sequences: Sequences,
    shared: bool,
    session: Session,
    show: Callable[[str], None],
) -> LatentODE:
    """Fit one rate to all sequences, or a latent path to each."""
    torch.manual_seed(config.seed)
    latent = config.latent
    log_rate = nn.Sequential(nn.Linear(latent, 32), nn.Tanh(), nn.Linear(32, 1))
    x, t, mask = sequences
    with torch.no_grad():
        log_rate[-1].bias.fill_(math.log(float(mask.sum()) / (len(x) * LENGTH)))
    tolerance = config.tolerance
    gaps = t.diff(dim=1)[mask[:, 1:]]  # from each spike to the next
    field = Turning(latent, 2 * math.pi / float(gaps.mean()))
    model = LatentODE(
        Shared(latent) if shared else RNNEncoder(1, latent, cell="gru"),
        field, log_rate, PoissonProcess((0.0, LENGTH)), latent=latent,
        solver=Solver(config.backend, rtol=tolerance, atol=tolerance, gradient="direct"),
    )  # fmt: skip
    optimiser = torch.optim.Adam(model.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.steps)
    name = "one rate for all" if shared else "a path for each"

    def loss(*data: Tensor) -> Tensor:
        weight = annealed(training.done, config.steps // 2)
        return -elbo(model, *data).value(weight).mean()

    training = session.training(
        model, optimiser, loss, schedule=schedule, name=name, clip=10.0,
        settings={"sequences": len(x), "spikes": int(mask.sum())},
    )  # fmt: skip
    for step in training.steps(config.steps):
        rows = torch.randint(len(x), (config.batch,))
        value = training.descend(x[rows], t[rows], mask[rows])
        so_far = f"{name}: step {step + 1} of {config.steps}, -ELBO {value:.2f}"
        show(so_far + counted(model.stats))
    return model.eval()


@torch.no_grad()
def judge(
    config: Config, learned: Sequences, held: Sequences, one: LatentODE, each: LatentODE
) -> dict[str, float]:
    """Log-densities of the sequences held out, in nats and summed over them."""
    torch.manual_seed(config.seed + 1)
    counts = held[2].sum(dim=1)
    rate = float(learned[2].sum()) / (len(learned[0]) * LENGTH)
    constant = float(homogeneous_log_prob(counts, LENGTH, rate).sum())
    mean = one.posterior(*held).mean
    path = one.path(mean, torch.where(held[2], held[1], 0.0))
    decoded = one.decoder(path.z)
    inside = held[2].unsqueeze(-1)
    shared = float(one.likelihood.log_prob(decoded, held[0], inside, path.integral).sum())
    bounds, expected = importance(each, held, config.samples)
    return {
        "sequences held out": float(len(counts)),
        "log-density under a constant rate": constant,
        "under one rate for all": shared,
        "under a path for each, at least": float(bounds.sum()),
        "gain": float(bounds.sum()) - constant,
        "gain of each": (float(bounds.sum()) - constant) / len(counts),
        "gain over one": float(bounds.sum()) - shared,
        "expected over seen": float(expected.sum()) / float(counts.sum()),
    }


def importance(model: LatentODE, data: Sequences, n: int) -> tuple[Tensor, Tensor]:
    """A lower bound on the log-density of each series, and its expected number of events.

        log p(x) >= E log mean_k p(x | z_k) p(z_k) / q(z_k | x)

    Args:
        model: A latent model of events.
        data: Counts [B, n, 1], times [B, n] and mask [B, n].
        n: Samples of each.
    """
    x, t, mask = data
    q = model.posterior(x, t, mask)
    times = torch.where(mask, t, model.t0)
    weights: list[Tensor] = []
    expected: list[Tensor] = []
    for part in torch.ones(n).split(_AT_ONCE):
        z = q.sample(part.shape)
        path = model.path(z, times)
        if path.integral is None:
            raise RuntimeError("a process without an integral")
        fit = model.likelihood.log_prob(model.decoder(path.z), x, mask.unsqueeze(-1), path.integral)
        weights.append(fit + (model.prior.log_prob(z) - q.log_prob(z)).sum(dim=-1))
        expected.append(path.integral.sum(dim=-1))
    bound = torch.cat(weights).logsumexp(dim=0) - math.log(n)
    return bound, torch.cat(expected).mean(dim=0)


def _rows(sequences: Sequences, rows: Tensor) -> Sequences:
    x, t, mask = sequences
    return x[rows], t[rows], mask[rows]


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "neuron_firing", "--root", root, *sys.argv[1:]])
