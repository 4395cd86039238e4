"""Beyond the paper: free-form, planar and matched flows on toy data, beside a spline flow.

FFJORD's five sets in the plane, fresh samples at every iteration. Four ways to a continuous flow:
a free-form field by maximum likelihood (FFJORD), planar units with weights that depend on time by
maximum likelihood (the paper's), and the free-form field by flow matching, which solves nothing in
training, with independent and with minibatch-optimal pairs. A neural spline coupling flow from zuko
stands beside them. All are judged by the exact likelihood of the same fresh points; what a
likelihood cost in training time is the figure's other axis.

The checkerboard and the eight Gaussians have a known entropy, which no likelihood can pass.

Source:
    Grathwohl et al. 2019 (arXiv 1810.01367), figure 2; Lipman et al. 2023 (arXiv 2210.02747); Tong
    et al. 2024 (arXiv 2302.00482). These have no numbers for the sets; the bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band
from _harness.flow_training import minimise, one_cycle, training_of
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.toys import TOYS, Sampler, entropies
from _harness.workers import train_ahead
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.flows import (
    ContinuousFlow,
    FreeForm,
    HyperPlanar,
    matching_loss,
    pair_by_transport,
)

LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that trains
    sets: tuple[str, ...] = ("checkerboard", "pinwheel")
    models: tuple[str, ...] = ("FFJORD", "planar CNF", "matching", "matching, OT", "spline")
    likelihood_iterations: int = 300  # of maximum likelihood with a solver
    matching_iterations: int = 1500  # of flow matching, a twentieth of the time each
    iterations: int = 1500  # of the spline flow
    width: int = 64  # of the free-form field's three layers, and units of the planar one
    batch: int = 256
    rate: float = 5e-3
    loose: float = 1e-3  # rtol and atol of training
    tolerance: float = 1e-5  # of everything else
    fresh: int = 4000  # points that a likelihood is the mean of
    pixels: int = 80  # of a panel
    accepted: float | None = 0.0  # the worst model's lead over a Gaussian, nats
    keep: bool = False  # checkpoints
    workers: int = 1  # processes that train
    threads: int = 1
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "toy_densities"


PRESETS = {
    "smoke": Config(
        "smoke", sets=("pinwheel",), likelihood_iterations=1, matching_iterations=1, iterations=1,
        width=4, batch=16, fresh=50, pixels=6, accepted=None,
    ),
    "quick": Config("quick"),
    "full": Config(
        "full", backend="compiled", sets=tuple(TOYS), likelihood_iterations=3000,
        matching_iterations=40_000, iterations=10_000, fresh=10_000, pixels=160, accepted=0.3,
        keep=True, workers=2,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What became of one model on one set.

    Args:
        data: The set.
        model: The model.
        nll: Mean negative log-likelihood of fresh points, nats.
        error: Its standard error.
        gaussian: That of a Gaussian with the set's mean and covariance.
        entropy: The least possible, where it is known.
        seconds: Training time on the processor.
    """

    data: str
    model: str
    nll: float
    error: float
    gaussian: float
    entropy: float | None
    seconds: float


def main(config: Config) -> dict[str, object]:
    """Train, measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib", "zuko")
    return run_session("toy_densities", config, run, keep=config.keep, threads=config.threads)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files."""
    from _harness.toy_figure import toy_figure  # matplotlib is optional

    rows: list[Row] = []
    fits: dict[tuple[str, str], LogProb] = {}
    jobs = {
        (data, model): partial(fit, config, data, model, session)
        for data in config.sets
        for model in config.models
    }
    with LiveLine(console) as line:
        ahead = {f"{model} on {data}": job for (data, model), job in jobs.items()}
        train_ahead(ahead, config.workers, line.show)
        for (data, model), job in jobs.items():
            log_prob, seconds = job(line.show)
            fits[data, model] = log_prob
            rows.append(measured(config, data, model, log_prob, seconds))
    bands = bands_of(config, rows)
    console.print(table_of(rows), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "rows": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    torch.manual_seed(config.seed + 2)
    points = {data: TOYS[data](4000) for data in config.sets}
    write_figure(
        config.results / f"{config.preset}.png", toy_figure(rows, fits, points, config.pixels)
    )
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def base() -> Independent:
    """N(0, I) in the plane."""
    return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


class Plan(NamedTuple):
    """How a model is trained, by the loss of what is drawn for every iteration, and judged."""

    network: nn.Module
    draw: Callable[[], tuple[Tensor, ...]]
    loss: Callable[..., Tensor]
    log_prob: LogProb
    iterations: int


def field_of(config: Config) -> FreeForm:
    """The free-form field of FFJORD's own toy runs (train_toy.py): three layers with tanh."""
    return FreeForm(2, (config.width,) * 3, activation=nn.Tanh)


def free_form(config: Config, sample: Sampler) -> Plan:
    """FFJORD: a free-form field by maximum likelihood, with its exact trace in the plane."""
    return by_likelihood(config, sample, field_of(config))


def planar(config: Config, sample: Sampler) -> Plan:
    """The paper's field by maximum likelihood."""
    return by_likelihood(config, sample, HyperPlanar(2, config.width))


def by_likelihood(config: Config, sample: Sampler, field: nn.Module) -> Plan:
    """Minimise the negative log-likelihood through a loose solve."""
    loose = Solver(
        config.backend, rtol=config.loose, atol=config.loose, coupling="shared", gradient="direct"
    )
    flow = ContinuousFlow(base(), field, solver=loose)

    def loss(x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    def draw() -> tuple[Tensor]:
        return (sample(config.batch),)

    return Plan(field, draw, loss, judged(config, field), config.likelihood_iterations)


def matched(config: Config, sample: Sampler) -> Plan:
    """Flow matching along straight lines between independent points."""
    return by_matching(config, sample, lambda _, x: x)


def transported(config: Config, sample: Sampler) -> Plan:
    """Flow matching along straight lines between optimally paired points."""
    return by_matching(config, sample, lambda z, x: x[pair_by_transport(z, x)])


def by_matching(
    config: Config, sample: Sampler, paired: Callable[[Tensor, Tensor], Tensor]
) -> Plan:
    """Regress the free-form field on the paths' velocities; nothing is solved."""
    field = field_of(config)

    def draw() -> tuple[Tensor, Tensor]:
        z, x = base().sample((config.batch,)), sample(config.batch)
        return z, paired(z, x)

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return matching_loss(field, z, x)

    return Plan(field, draw, loss, judged(config, field), config.matching_iterations)


def judged(config: Config, field: nn.Module) -> LogProb:
    """The exact log-density at the tight tolerance."""
    tight = Solver(rtol=config.tolerance, atol=config.tolerance, coupling="shared")
    return ContinuousFlow(base(), field, solver=tight).log_prob


def spline(config: Config, sample: Sampler) -> Plan:
    """A neural spline coupling flow, zuko's."""
    from zuko.flows import NSF  # optional

    network = NSF(2, transforms=3, hidden_features=(config.width,) * 2)

    def loss(x: Tensor) -> Tensor:
        return -network().log_prob(x).mean()

    def draw() -> tuple[Tensor]:
        return (sample(config.batch),)

    return Plan(network, draw, loss, lambda x: network().log_prob(x), config.iterations)


MODELS = {
    "FFJORD": free_form,
    "planar CNF": planar,
    "matching": matched,
    "matching, OT": transported,
    "spline": spline,
}


def fit(
    config: Config, data: str, model: str, session: Session, show: Callable[[str], None]
) -> tuple[LogProb, float]:
    """Train one model on one set; its log-density, and the seconds it took."""
    torch.manual_seed(config.seed)
    plan = MODELS[model](config, TOYS[data])
    optimiser = torch.optim.Adam(plan.network.parameters(), lr=config.rate)
    schedule = one_cycle(optimiser, config.rate, plan.iterations + 1)
    wanted = ("seed", "width", "batch", "rate", "backend", "loose")
    settings = {key: session.config[key] for key in wanted} | {"iterations": plan.iterations}
    name = f"{model}, {data}, seed {config.seed}"
    training = training_of(session, plan.network, optimiser, schedule, plan.loss, name, settings)
    minimise(training, plan.draw, plan.iterations, show)
    return plan.log_prob, training.seconds


@torch.no_grad()
def measured(config: Config, data: str, model: str, log_prob: LogProb, seconds: float) -> Row:
    """The model beside a Gaussian and the entropy."""
    torch.manual_seed(config.seed + 1)
    x = TOYS[data](config.fresh)
    losses = -log_prob(x).double()
    covariance = torch.cov(TOYS[data](20_000).double().t())
    gaussian = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    return Row(
        data=data,
        model=model,
        nll=losses.mean().item(),
        error=(losses.std() / config.fresh**0.5).item(),
        gaussian=gaussian,
        entropy=entropies().get(data),
        seconds=round(seconds, 1),
    )


def bands_of(config: Config, rows: list[Row]) -> list[Band]:
    """What the preset claims."""
    known = [row for row in rows if row.entropy is not None]
    bands = [Band("likelihoods are finite", float(all(math.isfinite(r.nll) for r in rows)), low=1)]
    if known:
        above = min(row.nll + 3 * row.error - row.entropy for row in known)
        bands.append(Band("least NLL above its entropy, with 3 standard errors", above, low=0.0))
    if config.accepted is not None:
        lead = min(row.gaussian - row.nll for row in rows)
        bands.append(Band("least lead over a Gaussian (nats)", lead, low=config.accepted))
        found = {(row.data, row.model): row for row in rows}
        for data in config.sets:
            one, other = found[data, "matching"], found[data, "FFJORD"]
            ratio = (one.seconds / config.iterations) / (
                other.seconds / config.likelihood_iterations
            )
            name = f"time of an iteration, matching over FFJORD, {data}"
            bands.append(Band(name, ratio, high=0.2))
    return bands


def table_of(rows: list[Row]) -> Table:
    """Every model on every set."""
    table = Table(
        "data", "model", "NLL", "+-", "Gaussian", "entropy", "training (s)",
        title="Mean negative log-likelihood of fresh points, in nats",
    )  # fmt: skip
    for row in rows:
        entropy = "" if row.entropy is None else f"{row.entropy:.3f}"
        table.add_row(
            row.data, row.model, f"{row.nll:.3f}", f"{row.error:.3f}", f"{row.gaussian:.3f}",
            entropy, f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "toy_densities", "--root", root, *sys.argv[1:]])
