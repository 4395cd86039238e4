"""The same training under every backend: `--backend` is all that changes, and accuracy stays.

A small ODE-Net is trained from the same weights on the same batches, over several seeds, by the
native solver, compiled, by torchdiffeq and by SciPy. Step sizes, their control and the way back
differ (one step size a sample, or one for the batch; back-propagation, or the adjoint), so that
weights part after some steps; what they learn must not. The mean error of each backend is compared
with native's, and the difference with the spread of native's seeds.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 3. The paper compares no solvers; the bands are
    ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from _harness.bands import Band
from _harness.jobs import run_jobs
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.table import mean
from _harness.training import Job, Recipe, Trained, lasting
from rich.console import Console
from rich.table import Table

from ctflow import Solver
from ctflow.backends import available
from ctflow.cli import main as command_line

FIRST = "native"
"""Whom the others are compared with."""


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    seeds: int = 3  # so many, from `seed` on
    backend: str | None = None  # compare this one alone; None: `backends`
    backends: tuple[str, ...] = ("compiled", "torchdiffeq", "scipy")  # those that are installed
    data: str = "digits"
    n_train: int | None = None
    n_test: int | None = None
    tolerance: float = 1e-3  # the paper's
    recipe: Recipe = field(
        default_factory=lambda: Recipe(10, batch=50, learning_rate=1.5e-2, crop=1)
    )
    error: float | None = 8.0  # band on every mean, percent
    keep: bool = False
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "backends"


PRESETS = {
    "smoke": Config(
        "smoke",
        seeds=2,
        backends=("torchdiffeq", "scipy"),
        n_train=50,
        n_test=20,
        recipe=Recipe(1, batch=25),
        error=None,
    ),
    # 28 whole batches: a last one of 37 would have to be compiled for, which takes minutes. Six
    # short trainings say more of a mean, and of native's spread, than three long ones.
    "quick": Config(
        "quick",
        seeds=6,
        n_train=1400,
        recipe=Recipe(6, batch=50, learning_rate=1.5e-2, crop=1),
    ),
    "full": Config(
        "full",
        data="mnist-10000",
        recipe=Recipe(20, batch=50, learning_rate=1e-2, crop=1),
        error=5.0,
        keep=True,
    ),
}


def main(config: Config) -> dict[str, object]:
    """Train, compare, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("backends", config, run, keep=config.keep)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files; without files where the time was up."""
    from _harness.backends_figure import errors_by_backend  # matplotlib is optional

    jobs = jobs_of(config)
    images = next(iter(jobs.values()))[0].images()
    console.print(f"data: {images.source.name}: {images.source.what}", highlight=False)
    trained: dict[str, list[Trained]] = {}
    with LiveLine(console) as line:
        for name, own in jobs.items():
            trained[name] = run_jobs(
                own, lambda text, name=name: line.show(f"{name}: {text}"), lasting(session)
            )
    bands = list(bands_of(config, trained))
    console.print(table_of(trained), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "data": images.record(),
        "runs": [
            {
                "backend": name,
                "seed": each.job.seed,
                "error_percent": 100 * each.error,
                "history": [asdict(epoch) for epoch in each.history],
            }
            for name, own in trained.items()
            for each in own
        ],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    errors = {name: [100 * each.error for each in own] for name, own in trained.items()}
    figure = errors_by_backend(f"One training on {images.source.name}", errors)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def jobs_of(config: Config) -> dict[str, list[Job]]:
    """By backend, native's first: one job a seed, which differ in the solver's backend alone."""
    wanted = config.backends if config.backend is None else (config.backend,)
    names = dict.fromkeys((FIRST, *(name for name in wanted if name in available())))
    return {
        name: [
            Job(
                "small ODE-Net",
                seed,
                config.recipe,
                Solver(name, rtol=config.tolerance, atol=config.tolerance),
                data=config.data,
                n_train=config.n_train,
                n_test=config.n_test,
            )
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        for name in names
    }


def bands_of(config: Config, trained: Mapping[str, Sequence[Trained]]) -> Iterator[Band]:
    """Every backend learns, and as well as native within the spread of its seeds."""
    if config.error is None:
        return
    errors = {name: [100 * each.error for each in own] for name, own in trained.items()}
    for name, own in errors.items():
        yield Band(f"{name}: error in percent, mean of the seeds", mean(own), high=config.error)
    image = 100 / len(trained[FIRST][0].right)
    spread = max(max(errors[FIRST]) - min(errors[FIRST]), image)
    for name, own in errors.items():
        if name != FIRST:
            gap = abs(mean(own) - mean(errors[FIRST]))
            yield Band(f"{name}: difference from {FIRST} over its spread", gap / spread, high=1.0)


def table_of(trained: Mapping[str, Sequence[Trained]]) -> Table:
    """Errors, evaluations and time."""
    table = Table("backend", title="The same training")
    for column in ("error %", "by seed", "evaluations", "s"):
        table.add_column(column, justify="right")
    for name, own in trained.items():
        last = [each.history[-1] for each in own]
        counts = mean(e.forward for e in last), mean(e.backward for e in last)
        table.add_row(
            name,
            f"{100 * mean(each.error for each in own):.2f}",
            ", ".join(f"{100 * each.error:.2f}" for each in own),
            f"{counts[0]:.0f} + {counts[1]:.0f}",
            f"{mean(each.seconds for each in last):.0f}",
        )
    table.caption = "evaluations of a training step in the last epoch; s: of one training"
    return table


if __name__ == "__main__":
    command_line(["reproduce", "backends", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
