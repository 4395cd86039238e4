"""Figure 5 of the paper: two circles and two moons learnt by maximum likelihood, NF beside CNF.

A continuous flow of 64 planar units with weights that are functions of time, and 64 planar layers,
are fitted to fresh samples of two shapes. The densities and samples on the way from the base to the
data are drawn at 5, 20, 40, 60, 80 and 100 % of the transformation: of time for the CNF, of the
layers for the NF. A planar layer has no cheap inverse, so the NF's layers go from data to base, and
its samples are found by bisection.

No flow can have a smaller mean negative log-likelihood than the entropy of the shape, found
by quadrature: the excess over it is KL(data || flow), in nats. The shapes are scikit-learn's
make_circles and make_moons as distributions, with a random angle for each point.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 4.2 and figure 5. The paper gives no likelihoods;
    the bands are ours.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band, least
from _harness.flow_training import minimise, one_cycle, training_of
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.shapes import SHAPES, Shape, energy_distance
from _harness.workers import train_ahead
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.flows import ContinuousFlow, HyperPlanar, PlanarLayers

FRACTIONS = (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)  # 5 % and not 0 %, as in the paper


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that trains
    shapes: tuple[str, ...] = ("circles", "moons")
    units: int = 64  # of the CNF, and layers of the NF
    cnf_iterations: int = 500
    nf_iterations: int = 500
    batch: int = 256
    rate: float = 5e-3
    loose: float = 1e-3  # rtol and atol of the CNF's training
    tolerance: float = 1e-5  # of everything else: the paper's
    fresh: int = 10_000  # points that a likelihood is the mean of
    drawn: int = 2000  # samples of each flow
    pixels: int = 100  # of a panel
    excess: tuple[tuple[str, float], ...] = (("circles", 0.35), ("moons", 0.25))  # nats accepted
    lead: float | None = 0.0  # of the CNF over the NF
    distance: float | None = 0.05  # energy distance of the CNF's samples accepted
    keep: bool = False  # checkpoints
    workers: int = 1  # processes that train
    threads: int = 1
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "figure_5_max_likelihood"


_FULL = Config(
    "full",
    backend="compiled",
    cnf_iterations=4000,
    nf_iterations=4000,
    batch=512,
    loose=1e-4,
    drawn=5000,
    pixels=160,
    excess=(("circles", 0.08), ("moons", 0.05)),
    distance=0.02,
    keep=True,
    workers=2,
)
PRESETS = {
    "smoke": Config(
        "smoke", shapes=("moons",), units=2, cnf_iterations=2, nf_iterations=2, batch=16,
        fresh=100, drawn=30, pixels=6, excess=(), lead=None, distance=None,
    ),
    "quick": Config("quick"),
    "full": _FULL,
    "paper": replace(_FULL, preset="paper", cnf_iterations=10_000, loose=1e-5),
}  # fmt: skip


class Stage(NamedTuple):
    """A flow at one fraction of its transformation: its density, and its samples."""

    log_prob: Callable[[Tensor], Tensor]
    samples: Tensor


class Fit(NamedTuple):
    """A trained flow.

    Args:
        log_prob: Log-density of points [n, 2], [n].
        stages: One for each of `FRACTIONS`.
        returned: Median distance of base samples from themselves after forward and inverse.
        seconds: Training time on the processor.
    """

    log_prob: Callable[[Tensor], Tensor]
    stages: list[Stage]
    returned: float
    seconds: float


@dataclass(frozen=True)
class Row:
    """What became of one flow.

    Args:
        shape: Which data.
        kind: "NF" or "CNF".
        nll: Mean negative log-likelihood of fresh points, nats.
        error: Its standard error.
        entropy: The least possible.
        excess: nll - entropy, estimated point by point against the true density.
        distance: Energy distance of samples to fresh data.
        mass: Integral of the density over the window.
        returned: Median of |inverse(forward(z)) - z|.
        seconds: Training time on the processor.
    """

    shape: str
    kind: str
    nll: float
    error: float
    entropy: float
    excess: float
    distance: float
    mass: float
    returned: float
    seconds: float


def main(config: Config) -> dict[str, object]:
    """Train, measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session(
        "figure_5_max_likelihood", config, run, keep=config.keep, threads=config.threads
    )


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from shapes to files."""
    from _harness.likelihood_figure import likelihood_figure  # matplotlib is optional

    rows: list[Row] = []
    fits: dict[tuple[str, str], Fit] = {}
    jobs = {
        (name, kind): partial(FITS[kind], config, SHAPES[name], session)
        for name in config.shapes
        for kind in FITS
    }
    with LiveLine(console) as line:
        ahead = {f"{kind} on {name}": job for (name, kind), job in jobs.items()}
        train_ahead(ahead, config.workers, line.show)
        for (name, kind), job in jobs.items():
            fits[name, kind] = job(line.show)
            rows.append(measured(config, SHAPES[name], kind, fits[name, kind]))
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
    data = {name: SHAPES[name].sample(config.drawn) for name in config.shapes}
    stages = {key: fit.stages for key, fit in fits.items()}
    figure = likelihood_figure(stages, data, FRACTIONS, config.pixels)
    write_figure(config.results / f"{config.preset}.png", figure)
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def base() -> Independent:
    """N(0, I) in the plane."""
    return Independent(Normal(torch.zeros(2), torch.ones(2)), 1)


def fit_continuous(
    config: Config, shape: Shape, session: Session, show: Callable[[str], None]
) -> Fit:
    """Planar units with weights that depend on time."""
    torch.manual_seed(config.seed)
    field = HyperPlanar(2, config.units)
    tight = Solver(rtol=config.tolerance, atol=config.tolerance, coupling="shared")
    loose = Solver(
        config.backend, rtol=config.loose, atol=config.loose, coupling="shared", gradient="direct"
    )
    flow = ContinuousFlow(base(), field, solver=loose)
    checked = ContinuousFlow(base(), field, solver=tight)

    def loss(x: Tensor) -> Tensor:
        return -flow.log_prob(x).mean()

    seconds = fitted(config, session, field, loss, shape, "CNF", show)
    with torch.no_grad():
        z = base().sample((config.drawn,))
        path = checked.trajectory(z, (0.0, *FRACTIONS))
        returned = distance(round_trip(config, field, z), z)
    stages = [
        Stage(checked.at(fraction).log_prob, samples)
        for fraction, samples in zip(FRACTIONS, path[1:], strict=True)
    ]
    return Fit(checked.log_prob, stages, returned, seconds)


def round_trip(config: Config, field: nn.Module, z: Tensor) -> Tensor:
    """Forward, then inverse, in float64 at a hundredth of the tolerance.

    The inverse magnifies what the forward solve is off by: as much as the data are thinner than the
    base, a hundred times for the circles when they are learnt well.
    """
    field, z = copy.deepcopy(field).double(), z.double()
    fine = config.tolerance / 100
    tight = Solver(rtol=fine, atol=fine, coupling="shared")
    start = Independent(Normal(z.new_zeros(2), z.new_ones(2)), 1)
    flow = ContinuousFlow(start, field, solver=tight)
    return flow.trajectory(flow.trajectory(z, (0.0, 1.0))[-1], (1.0, 0.0))[-1]


def fit_layers(config: Config, shape: Shape, session: Session, show: Callable[[str], None]) -> Fit:
    """Planar layers from data to base."""
    torch.manual_seed(config.seed)
    layers, end = PlanarLayers(2, config.units), base()

    def log_prob(x: Tensor, part: slice = slice(None)) -> Tensor:
        z, log_det = layers.push(x, part)
        return end.log_prob(z) + log_det

    def loss(x: Tensor) -> Tensor:
        return -log_prob(x).mean()

    seconds = fitted(config, session, layers, loss, shape, "NF", show)
    stages: list[Stage] = []
    with torch.no_grad():
        z = end.sample((config.drawn,))
        for fraction in FRACTIONS:  # the last layers are the first on the way from the base
            part = slice(config.units - max(1, round(fraction * config.units)), None)
            stages.append(Stage(lambda x, part=part: log_prob(x, part), layers.pull(z, part)))
        back, _ = layers.push(stages[-1].samples)
    return Fit(log_prob, stages, distance(back, z), seconds)


def fitted(
    config: Config,
    session: Session,
    model: nn.Module,
    loss: Callable[[Tensor], Tensor],
    shape: Shape,
    kind: str,
    show: Callable[[str], None],
) -> float:
    """Train a flow by Adam on fresh points of a shape; the seconds that it took."""
    iterations = config.cnf_iterations if kind == "CNF" else config.nf_iterations
    optimiser = torch.optim.Adam(model.parameters(), lr=config.rate)
    schedule = one_cycle(optimiser, config.rate, iterations)
    wanted = ("seed", "units", "batch", "rate", "backend", "loose")
    settings = {key: session.config[key] for key in wanted} | {"iterations": iterations}
    name = f"{kind}-{shape.name}-{config.seed}"
    training = training_of(session, model, optimiser, schedule, loss, name, settings)
    minimise(training, lambda: (shape.sample(config.batch),), iterations, show)
    return training.seconds


def distance(x: Tensor, y: Tensor) -> float:
    """Median distance of rows."""
    return (x - y).norm(dim=1).median().item()


FITS = {"CNF": fit_continuous, "NF": fit_layers}


@torch.no_grad()
def measured(config: Config, shape: Shape, kind: str, fit: Fit) -> Row:
    """The flow beside the shape's own density."""
    torch.manual_seed(config.seed + 1)
    x = shape.sample(config.fresh)
    own, true = fit.log_prob(x).double(), shape.log_prob(x.double())
    ratio = true - own  # its mean is KL(data || flow)
    entropy = shape.entropy()
    samples = fit.stages[-1].samples
    side = torch.arange(-2.5, 3.5, 0.03)
    mass = fit.log_prob(torch.cartesian_prod(side, side)).exp().sum().item() * 0.03**2
    return Row(
        shape=shape.name,
        kind=kind,
        nll=entropy + ratio.mean().item(),
        error=(ratio.std() / config.fresh**0.5).item(),
        entropy=entropy,
        excess=ratio.mean().item(),
        distance=energy_distance(samples, x[: len(samples)]),
        mass=mass,
        returned=fit.returned,
        seconds=round(fit.seconds, 1),
    )


def bands_of(config: Config, rows: list[Row]) -> list[Band]:
    """What the preset claims."""
    found = {(row.shape, row.kind): row for row in rows}
    above = least(row.excess + 3 * row.error for row in rows)
    bands = [Band("least excess over the entropy, with 3 standard errors", above, low=0.0)]
    for name, accepted in config.excess:
        row = found[name, "CNF"]
        bands.append(Band(f"CNF above the entropy (nats), {name}", row.excess, high=accepted))
        bands.append(Band(f"mass of the CNF, {name}", row.mass, low=0.98, high=1.02))
        bands.append(Band(f"forward then inverse, {name}", row.returned, high=1e-4))
        if config.lead is not None:
            lead = found[name, "NF"].nll - row.nll
            bands.append(Band(f"lead of CNF over NF (nats), {name}", lead, low=config.lead))
        if config.distance is not None:
            band = Band(f"energy distance, {name}", row.distance, high=config.distance)
            bands.append(band)
    return bands


def table_of(rows: list[Row]) -> Table:
    """Every flow beside the entropy."""
    table = Table(
        "data", "flow", "NLL", "+-", "entropy", "excess", "energy distance", "mass", "s",
        title="Mean negative log-likelihood of fresh points, in nats",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.shape, row.kind, f"{row.nll:.3f}", f"{row.error:.3f}", f"{row.entropy:.3f}",
            f"{row.excess:.3f}", f"{row.distance:.4f}", f"{row.mass:.4f}", f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "figure_5_max_likelihood", "--root", root, *sys.argv[1:]])
