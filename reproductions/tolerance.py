"""Precision for speed: a trained ODE-Net at other tolerances, its weights untouched.

The paper promises it in words: train at a high accuracy, and loosen the tolerance where power or
time is short. Here a network is trained once; the same weights then classify the test set at
tolerances from 1e-6 to 10, and with a few fixed steps. What is drawn are accuracy and share of
decisions that are those of the tightest solve, against evaluations.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), sections 1 and 3.2, "adaptive computation". The paper has
    no figure of it; the bands are ours.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.comparison import evaluations
from _harness.images import Images
from _harness.live import LiveLine
from _harness.networks import DIGIT_SETS, FULL, PAPER, PAPER_SETS, SMALL, on_first, settled
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.training import Job, Recipe, Trained, lasting, train
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ctflow import Solver
from ctflow.cli import main as command_line

_QUICK = replace(SMALL, n_test=1000)


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    job: Job = _QUICK  # the network to train
    sets: tuple[str, ...] = ()  # of data: take the first that is here
    device: str | None = None  # of the training; None: the job's
    tolerances: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1e0, 1e1)
    euler: tuple[int, ...] = (1, 2, 4)  # numbers of fixed steps, where the backend has them
    claims: bool = True
    keep: bool = False
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "tolerance"


PRESETS = {
    "smoke": Config(
        "smoke",
        job=replace(SMALL, recipe=Recipe(1, batch=50), data="digits", n_train=100, n_test=50),
        tolerances=(1e-6, 1e-1),
        euler=(1,),
        claims=False,
    ),
    "quick": Config("quick", sets=DIGIT_SETS),
    "full": Config("full", job=FULL, keep=True),
    "paper": Config("paper", job=PAPER, sets=PAPER_SETS, keep=True),
}


@dataclass(frozen=True)
class Setting:
    """The test set under one setting of the solver.

    Args:
        name: The setting.
        tolerance: Its tolerance; None for fixed steps.
        forward: Evaluations, mean over the samples.
        accuracy: Share that is classified right.
        agreement: Share that is classified as at the tightest tolerance.
        milliseconds: CPU time of a sample's forward pass.
    """

    name: str
    tolerance: float | None
    forward: float
    accuracy: float
    agreement: float
    milliseconds: float


def main(config: Config) -> dict[str, object]:
    """Train, classify, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("tolerance", config, run, keep=config.keep)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files; without files where the time was up."""
    from _harness.tolerance_figure import accuracy_and_evaluations  # matplotlib is optional

    job = job_of(config)
    images = job.images()
    console.print(f"data: {images.source.name}: {images.source.what}", highlight=False)
    with LiveLine(console) as line:
        trained = train(job, line.show, lasting(session), images=images)
        line.show("classifying")
        trained.model.cpu()  # whose time is measured
        settings = list(classified(config, trained, images))
    bands = list(bands_of(config, settings)) if config.claims else []
    console.print(table_of(settings), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config | {"job": job.record()},
        "environment": environment(),
        "data": images.record(),
        "settings": [asdict(each) for each in settings],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    title = f"One {config.job.net} on {images.source.name}, trained at {job.solver.rtol:.0e}"
    figure = accuracy_and_evaluations(title, settings)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def job_of(config: Config) -> Job:
    """The network to train; in `full` and `paper` that of Table 1, whose kept run is used."""
    return on_first(settled(config.job, config.backend, config.seed, config.device), config.sets)


def classified(config: Config, trained: Trained, images: Images) -> Iterator[Setting]:
    """The test set under every setting, the tightest tolerance first."""
    model, reference = trained.model, None
    settings = {
        f"tolerance {tolerance:.0e}": Solver(config.backend, rtol=tolerance, atol=tolerance)
        for tolerance in sorted(config.tolerances)
    }
    if config.backend != "scipy":  # whose methods adapt their steps
        settings |= {
            f"{n} Euler step{'s' * (n > 1)}": Solver(config.backend, method="euler", step=1 / n)
            for n in config.euler
        }
    for name, solver in settings.items():
        model.body.solver = solver
        labels, forward, milliseconds = decisions(model, images.test.x)
        reference = labels if reference is None else reference
        yield Setting(
            name,
            solver.rtol,
            forward,
            (labels == images.test.y).double().mean().item(),
            (labels == reference).double().mean().item(),
            milliseconds,
        )


@torch.no_grad()
def decisions(model: nn.Module, x: Tensor) -> tuple[Tensor, float, float]:
    """Labels [N], evaluations and milliseconds of a sample, mean."""
    labels: list[Tensor] = []
    counts, began = 0.0, time.process_time()
    for part in x.split(250):
        labels.append(model(part).argmax(1))
        counts += evaluations(model.body.stats)[0] * len(part)
    return torch.cat(labels), counts / len(x), 1e3 * (time.process_time() - began) / len(x)


def bands_of(config: Config, settings: Sequence[Setting]) -> Iterator[Band]:
    """Loose tolerances are cheaper, and hardly change a decision until they are very loose."""
    by_tolerance = {each.tolerance: each for each in settings if each.tolerance is not None}
    tight, training = by_tolerance[min(config.tolerances)], by_tolerance[config.job.solver.rtol]
    loose = by_tolerance[1e-1]
    yield Band("evaluations at 1e-6 over those at 1e-1", tight.forward / loose.forward, low=1.5)
    lost = 100 * (tight.accuracy - training.accuracy)
    yield Band("points of accuracy lost at the training's tolerance", lost, -0.5, 0.5)
    lost = 100 * (tight.accuracy - loose.accuracy)
    yield Band("points of accuracy lost at 1e-1", lost, -2.0, 2.0)
    yield Band("decisions as at 1e-6, at 1e-1", loose.agreement, low=0.97)


def table_of(settings: Sequence[Setting]) -> Table:
    """All of them."""
    table = Table("setting", title="The same weights")
    for column in ("evaluations", "accuracy", "same decisions", "ms a sample"):
        table.add_column(column, justify="right")
    for each in settings:
        numbers = f"{each.forward:.1f}", f"{each.accuracy:.2%}", f"{each.agreement:.2%}"
        table.add_row(each.name, *numbers, f"{each.milliseconds:.3f}")
    return table


if __name__ == "__main__":
    command_line(
        ["reproduce", "tolerance", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]]
    )
