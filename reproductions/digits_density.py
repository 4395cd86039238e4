"""Beyond the paper: handwritten digits in 64 dimensions, in bits per dimension.

scikit-learn's 1,797 digits of 8 x 8 pixels with 17 grey levels, made continuous by fresh uniform
noise, so that the mean negative log-density bounds the code length of the pixels themselves. All
models see logits of the pixels, whitened: there N(0, I) is the full-covariance Gaussian, with which
the free-form flow begins. That is trained by maximum likelihood, with Hutchinson's trace and
RNODE's costs, and by flow matching, which solves nothing. A potential flow has its trace in closed
form; a neural spline coupling flow from zuko stands beside them. Each is kept as it is when best on
images set aside; the images are few, and all models overfit.

Test images are judged with the exact trace, 64 products an evaluation.

Source:
    Grathwohl et al. 2019 (arXiv 1810.01367); Finlay et al. 2020 (arXiv 2002.02798); Onken et al.
    2021 (arXiv 2006.00104); Lipman et al. 2023 (arXiv 2210.02747); for the noise Theis et al. 2016
    (arXiv 1511.01844), section 3.1. The bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from _harness.bands import Band
from _harness.flow_training import one_cycle, training_of
from _harness.live import LiveLine
from _harness.pixel_models import PLANS, base
from _harness.pixels import LEVELS, Pixels, Space, load_pixels
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that trains
    models: tuple[str, ...] = ("FFJORD", "potential", "matching", "spline")
    likelihood_iterations: int = 1000  # of maximum likelihood with a solver
    iterations: int = 700  # of the others
    check_every: float = 1 / 30  # of the training, on the images set aside
    width: int = 128  # of the free-form field's two layers; half that of the potential's one
    batch: int = 128
    rate: float = 5e-3  # twice that for the potential, and less for the spline
    decay: float = 1e-3  # of AdamW
    regularised: float = 0.01  # weight of each of RNODE's costs
    loose: float = 1e-2  # rtol and atol of training
    tolerance: float = 1e-4  # of the judge
    repeats: int = 4  # draws of the noise for a test image
    images: int | None = None  # of each part; None: all
    lead: float | None = 0.05  # band: of FFJORD over the Gaussian, bits per dimension
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "digits_density"


PRESETS = {
    "smoke": Config(
        "smoke", likelihood_iterations=1, iterations=1, check_every=1.0, width=4, batch=8,
        repeats=1, images=80, tolerance=1e-2, lead=None,
    ),
    "quick": Config("quick"),
    "full": Config("full", likelihood_iterations=4000, iterations=4000, rate=3e-3, width=256),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What became of one model.

    Args:
        model: Its name.
        bits: Of a pixel of the test images, mean.
        error: Its standard error, over images.
        train: Bits of a pixel of the training images.
        at: Iteration at which it was best on the images set aside, and was kept.
        seconds: Training time on the processor, up to the last iteration.
    """

    model: str
    bits: float
    error: float
    train: float
    at: int
    seconds: float


class Fit(NamedTuple):
    """A trained model: its log-density of whitened points [n, 64], and how it was trained."""

    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    at: int = 0
    seconds: float = 0.0


def main(config: Config) -> dict[str, object]:
    """Train, measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib", "sklearn", "zuko")
    return run_session("digits_density", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from images to files."""
    from _harness.pixels_figure import pixels_figure  # matplotlib is optional

    pixels = load_pixels(config.seed, config.images)
    space = Space.of(pixels.train, config.seed)
    fits = {"Gaussian": Fit(base().log_prob, lambda n: base().sample((n,)))}
    with LiveLine(console) as line:
        for name in config.models:
            fits[name] = fit(config, name, pixels, space, session, line.show)
        line.show("test images, exact trace")
        rows = [measured(config, name, each, pixels, space) for name, each in fits.items()]
    bands = bands_of(config, rows)
    console.print(table_of(rows), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "images": {
            "train": len(pixels.train),
            "aside": len(pixels.aside),
            "test": len(pixels.test),
        },
        "rows": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    torch.manual_seed(config.seed)
    with torch.no_grad():
        drawn = {name: space.back(each.sample(20)) for name, each in fits.items()}
    figure = pixels_figure(rows, {"data": pixels.test[:20]} | drawn)
    write_figure(config.results / f"{config.preset}.png", figure)
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def fit(
    config: Config,
    name: str,
    pixels: Pixels,
    space: Space,
    session: Session,
    show: Callable[[str], None],
) -> Fit:
    """Train a model, and keep it as it was when best on the images set aside."""
    torch.manual_seed(config.seed)
    plan = PLANS[name](config)
    optimiser = torch.optim.AdamW(
        plan.network.parameters(), lr=plan.rate, weight_decay=config.decay
    )
    schedule = one_cycle(optimiser, plan.rate, plan.iterations + 1)
    training = training_of(session, plan.network, optimiser, schedule, plan.loss, name)
    best = training.notes.setdefault("best", {"bits": math.inf, "at": 0, "state": {}})
    every = max(1, round(plan.iterations * config.check_every))
    until = plan.iterations // every * every
    for step in training.steps(until):
        rows = torch.randint(len(pixels.train), (config.batch,))
        value = training.descend(space.points(pixels.train[rows])[0])
        show(f"{name}  iteration {step + 1}/{until}  loss {value:.3f}  {training.seconds:.0f} s")
        if (step + 1) % every:
            continue
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # the same noise and probes at every check
            bits = space.bits(plan.quick, pixels.aside, config.repeats).mean().item()
        if bits < best["bits"]:
            state = {key: value.clone() for key, value in plan.network.state_dict().items()}
            best.update(bits=bits, at=step + 1, state=state)
    plan.network.load_state_dict(best["state"])
    return Fit(plan.log_prob, plan.sample, best["at"], training.seconds)


@torch.no_grad()
def measured(config: Config, name: str, fit: Fit, pixels: Pixels, space: Space) -> Row:
    """Bits of test and training images."""
    torch.manual_seed(config.seed + 1)
    bits = space.bits(fit.log_prob, pixels.test, config.repeats)
    train = space.bits(fit.log_prob, pixels.train[: len(pixels.test)], 1)
    return Row(
        model=name,
        bits=bits.mean().item(),
        error=(bits.std() / len(bits) ** 0.5).item(),
        train=train.mean().item(),
        at=fit.at,
        seconds=round(fit.seconds, 1),
    )


def bands_of(config: Config, rows: list[Row]) -> list[Band]:
    """What the preset claims."""
    found = {row.model: row for row in rows}
    bands = [Band("bits are finite", float(all(math.isfinite(row.bits) for row in rows)), low=1)]
    if config.lead is not None:
        worst = max(row.bits for row in rows)  # log2(17) is what uniform levels need
        bands.append(Band("bits per dimension of the worst", worst, 0.0, math.log2(LEVELS)))
        for name, least in (("FFJORD", config.lead), ("potential", 2 * config.lead)):
            lead = found["Gaussian"].bits - found[name].bits
            bands.append(
                Band(f"lead of {name} over the Gaussian (bits per dimension)", lead, least)
            )
    return bands


def table_of(rows: list[Row]) -> Table:
    """Every model."""
    table = Table(
        "model", "bits per dimension", "+-", "training images", "best at", "training (s)",
        title="Test images, dequantised",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row.model, f"{row.bits:.3f}", f"{row.error:.3f}", f"{row.train:.3f}", str(row.at),
            f"{row.seconds:.0f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "digits_density", "--root", root, *sys.argv[1:]])
