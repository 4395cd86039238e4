"""Figure 3: what an ODE-Net costs against its tolerance, its time, backwards, and in training.

(a) The error of a solve follows its tolerance; in the paper it always lies below. (b) Time is
proportional to evaluations of the field. (c) Evaluations backwards over those forwards: about one
half in the paper, and there only. It depends on the solver, the norm of the backward solve and the
size of the batch, which is why the script prints it for each and asserts nothing about it: a
Runge-Kutta method takes about as many steps backwards as forwards, and so does SciPy's Adams method
on networks like these. (d) Evaluations at a tolerance of 1e-3 grow while the network learns,
whatever the tolerance it is trained at. (The paper's own panel d starts at 7 evaluations and ends
at 16, where its panels a to c show 37 at the same tolerance; it does not say why.)

`full` trains the ODE-Net of Table 1 with RNODE's costs, the path's kinetic energy and the field's
Jacobian, of small weight. Without them evaluations grew by 17 from 1e-1 to 1e-5, and errors were up
to 21 tolerances, because the field's last layer divides each channel by its deviation over the
image. The field learns a speed above the size of the state that it moves; on so long a way some
channel becomes nearly flat, the division turns the field sharply there, and solvers at loose
tolerances step over it. Kinetic energy alone slows all images and leaves some of them sharp.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 3.2, Figure 3. The paper's solvers are SciPy's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import torch
from _harness.bands import Band, beside_the_paper
from _harness.images import Images
from _harness.live import LiveLine
from _harness.networks import DIGIT_SETS, FULL, PAPER, PAPER_SETS, SMALL, on_first, settled
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.solves import Measured, measured, spearman, timed_again, ways
from _harness.training import Job, Recipe, Trained, lasting, train
from rich.console import Console
from rich.table import Table

from ctflow.cli import main as command_line

PUBLISHED = {1e0: 0.54, 1e-1: 0.36, 1e-2: 0.45, 1e-3: 0.47, 1e-4: 0.46, 1e-5: 0.46}
"""Backward over forward evaluations, read off the paper's panel c."""


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # of the training, and of dopri5 and tsit5
    job: Job = SMALL  # the network to train
    sets: tuple[str, ...] = ()  # of data: take the first that is here
    device: str | None = None  # of the training; None: the job's
    tolerances: tuple[float, ...] = (1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
    batches: tuple[int, ...] = (1, 16)
    n_solves: int = 3  # of each way at each tolerance
    repeats: int = 3  # of the timing
    claims: bool = True
    keep: bool = False
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "figure_3"


_NET = replace(FULL, recipe=replace(FULL.recipe, epochs=10), rnode=0.003)
_FULL = Config("full", job=_NET, batches=(1, 8), n_solves=5, keep=True)
PRESETS = {
    "smoke": Config(
        "smoke",
        job=replace(SMALL, recipe=Recipe(2, batch=50), data="digits", n_train=100),
        tolerances=(1e-1, 1e-3),
        batches=(2,),
        n_solves=1,
        repeats=1,
        claims=False,
    ),
    "quick": Config("quick", sets=DIGIT_SETS, repeats=5),
    "full": _FULL,
    "paper": replace(_FULL, preset="paper", job=PAPER, sets=PAPER_SETS),
}


def main(config: Config) -> dict[str, object]:
    """Train, solve, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("figure_3", config, run, keep=config.keep)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files; without files where the time was up."""
    from _harness.solves_figure import statistics_of_solves  # matplotlib is optional

    job = job_of(config)
    images = job.images()
    console.print(f"data: {images.source.name}: {images.source.what}", highlight=False)
    with LiveLine(console) as line:
        trained = train(job, line.show, lasting(session), images=images)
        trained.model.cpu()  # where SciPy solves
        solves = all_solves(config, trained, images, line)
    bands: list[Band] = []
    if config.claims:
        bands = beside_the_paper("figure_3", bands_of(config, trained, solves))
    console.print(table_of(config, solves), highlight=False)
    epochs = ", ".join(f"{epoch.fine:.1f}" for epoch in trained.history)
    console.print(
        f"evaluations at 1e-3 by epoch: {epochs}", *map(str, bands), sep="\n", highlight=False
    )
    record = {
        "config": session.config | {"job": job.record()},
        "environment": environment(),
        "data": images.record(),
        "error_percent": 100 * trained.error,
        "history": [asdict(epoch) for epoch in trained.history],
        "solves": [asdict(each) for each in solves],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    title = f"Figure 3: {config.job.net} on {images.source.name}"
    figure = statistics_of_solves(title, solves, trained.history, PUBLISHED)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def job_of(config: Config) -> Job:
    """The network to train; in `paper` that of Table 1, whose kept run is used."""
    return on_first(settled(config.job, config.backend, config.seed, config.device), config.sets)


def all_solves(config: Config, trained: Trained, images: Images, line: LiveLine) -> list[Measured]:
    """Every way at every tolerance, and their times in several rounds."""
    chosen = ways(config.batches, config.backend)
    found: list[Measured] = []
    for way, tolerance in product(chosen, config.tolerances):
        line.show(f"{way.solver}, {way.norm}, batch {way.batch}, tolerance {tolerance:.0e}")
        found += measured(trained.model, images.test, way, tolerance, config.n_solves)
    for again in range(2, config.repeats + 1):
        line.show(f"times once more, round {again} of {config.repeats}")
        found = timed_again(trained.model, images.test, found, chosen)
    return found


def bands_of(config: Config, trained: Trained, solves: Sequence[Measured]) -> Iterator[Band]:
    """What is claimed: not the ratio of panel c."""
    methods = ("dopri5", "tsit5") if config.backend == "native" else ("dopri5",)
    for method in methods:
        own = [each for each in solves if each.solver == method and each.norm == "full"]
        worst = max(
            median([each.error for each in own if each.tolerance == tolerance]) / tolerance
            for tolerance in config.tolerances
            if tolerance < 1
        )
        # A solver keeps the error of each step to its tolerance; what they come to is not bounded.
        yield Band(f"{method}: median error over tolerance, the largest", worst, high=10.0)
        below = [each for each in own if each.tolerance < 1]
        order = spearman([each.error for each in below], [each.tolerance for each in below])
        yield Band(f"{method}: rank correlation of error and tolerance", order, low=0.9)
        batch = max(config.batches)
        large = [each for each in own if each.batch == batch]
        yield Band(f"{method}: R2 of time and evaluations", r_squared(large), low=0.9)
        few, many = (
            mean([each.forward for each in own if each.tolerance == tolerance])
            for tolerance in (1e-1, 1e-5)
        )
        yield Band(f"{method}: evaluations at 1e-5 over those at 1e-1", many / few, 1.5, 15.0)
    fine = [epoch.fine or math.nan for epoch in trained.history]
    yield Band(
        "evaluations at 1e-3 after the last epoch over the first", fine[-1] / fine[0], low=1.2
    )


def r_squared(solves: Sequence[Measured]) -> float:
    """How much of the variance of time a line through evaluations explains."""
    x = torch.tensor([[each.forward, 1.0] for each in solves], dtype=torch.float64)
    y = torch.tensor([each.seconds for each in solves], dtype=torch.float64)
    rest = y - x @ torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return 1 - float(rest.square().sum() / (y - y.mean()).square().sum())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def median(values: Sequence[float]) -> float:
    """The middle one, or the lower of two."""
    return sorted(values)[(len(values) - 1) // 2]


def table_of(config: Config, solves: Sequence[Measured]) -> Table:
    """Backward over forward evaluations, for every solver, norm and batch, beside the paper's."""
    table = Table("solver", "norm", "batch", title="Backward over forward evaluations")
    for tolerance in config.tolerances:
        table.add_column(f"{tolerance:.0e}", justify="right")
    for key in dict.fromkeys((each.solver, each.norm, each.batch) for each in solves):
        cells: list[str] = []
        for tolerance in config.tolerances:
            own = [each for each in solves if (each.solver, each.norm, each.batch) == key
                   and each.tolerance == tolerance]  # fmt: skip
            forward, backward = mean([e.forward for e in own]), mean([e.backward for e in own])
            cells.append(f"{backward / forward:.2f} ({forward:.0f})")
        table.add_row(key[0], key[1], str(key[2]), *cells)
    table.add_row("the paper", "", "", *(f"{PUBLISHED[t]:.2f}" for t in config.tolerances))
    table.caption = "in brackets: forward evaluations"
    return table


if __name__ == "__main__":
    command_line(["reproduce", "figure_3", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
