"""A flow in time, as an animation: noise becomes data, and its density with it.

A free-form field learns five bent arms by flow matching, which takes seconds; then one and the same
`ContinuousFlow` carries samples along it and has the exact density at every time on the way.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 4, for the flow; Lipman et al. 2023 (arXiv
    2210.02747) for the training; Grathwohl et al. 2019 (arXiv 1810.01367) for the data. The band is
    ours.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.flow_training import minimise, one_cycle, training_of
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.toys import TOYS
from rich.console import Console
from torch import Tensor, nn
from torch.distributions import Independent, Normal

from ctflow import Solver
from ctflow.cli import main as command_line
from ctflow.flows import ContinuousFlow, FreeForm, matching_loss, pair_by_transport


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that draws
    data: str = "pinwheel"
    iterations: int = 3000
    width: int = 64  # of the field's three layers
    batch: int = 256
    rate: float = 5e-3
    tolerance: float = 1e-4
    fresh: int = 4000  # points that the likelihood is the mean of
    drawn: int = 1500  # samples
    frames: int = 40
    pixels: int = 80  # of the density
    lead: float | None = 0.5  # band: over a Gaussian, nats
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "flow_animation"


PRESETS = {
    "smoke": Config(
        "smoke", iterations=2, width=4, batch=16, fresh=50, drawn=30, frames=3, pixels=8, lead=None
    ),
    "quick": Config("quick"),
    "full": Config("full", iterations=30_000, width=128, pixels=110),
}


def main(config: Config) -> dict[str, object]:
    """Train, animate, print, and write JSON, PNG and GIF; returns what the JSON holds."""
    need("matplotlib")
    return run_session("flow_animation", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The work, from data to files."""
    from _harness.animation import animation, filmstrip  # matplotlib is optional

    base = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance, coupling="shared")
    with LiveLine(console) as line, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        field, seconds = trained(config, base, session, line)
        flow = ContinuousFlow(base, field, solver=solver)
        x = TOYS[config.data](config.fresh)
        with torch.no_grad():
            nll = -flow.log_prob(x).double().mean().item()
        gaussian = 0.5 * float(torch.logdet(2 * math.pi * math.e * torch.cov(x.double().t())))
        frames = list(film(config, flow, line))
    bands = [Band("likelihood is finite", float(math.isfinite(nll)), low=1.0)]
    if config.lead is not None:
        bands.append(Band("lead over a Gaussian (nats)", gaussian - nll, low=config.lead))
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "nll": nll,
        "gaussian": gaussian,
        "training_seconds": round(seconds, 1),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", filmstrip(frames))
    animation(config.results / f"{config.preset}.gif", frames)
    console.print(f"Written: {config.preset}.json, .png and .gif in {config.results}")
    return record


def trained(
    config: Config, base: Independent, session: Session, line: LiveLine
) -> tuple[FreeForm, float]:
    """The field by flow matching, and the seconds it took."""
    field = FreeForm(2, (config.width,) * 3, activation=nn.Tanh)  # FFJORD's, for such data
    optimiser = torch.optim.Adam(field.parameters(), lr=config.rate)
    schedule = one_cycle(optimiser, config.rate, config.iterations)

    def loss(z: Tensor, x: Tensor) -> Tensor:
        return matching_loss(field, z, x)

    def draw() -> tuple[Tensor, Tensor]:
        z, x = base.sample((config.batch,)), TOYS[config.data](config.batch)
        return z, x[pair_by_transport(z, x)]

    training = training_of(session, field, optimiser, schedule, loss, config.data)
    minimise(training, draw, config.iterations, line.show)
    return field, training.seconds


@torch.no_grad()
def film(
    config: Config, flow: ContinuousFlow, line: LiveLine
) -> list[tuple[float, Tensor, Tensor]]:
    """For each frame its time, samples [n, 2], and density [pixels, pixels], rows from the top."""
    from _harness.animation import HALF  # matplotlib is optional

    times = torch.linspace(0, 1, config.frames).tolist()
    paths = flow.trajectory(flow.base.sample((config.drawn,)), times)
    side = ((torch.arange(config.pixels) + 0.5) / config.pixels * 2 - 1) * HALF
    rows, columns = torch.meshgrid(side.flip(0), side, indexing="ij")
    grid = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    frames = []
    for time, points in zip(times, paths, strict=True):
        line.show(f"density at {time:.2f}")
        now = flow.base if time == 0 else flow.at(time)
        density = now.log_prob(grid).exp().reshape(config.pixels, config.pixels)
        frames.append((time, points, density))
    return frames


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "flow_animation", "--root", root, *sys.argv[1:]])
