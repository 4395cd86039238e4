"""Real series, seen at 10 to 50 % of their times: what lies in between, what comes after, and who.

Weekly CO2 at Mauna Loa with its gaps, and two Japanese vowels of nine speakers. Latent ODEs, whose
encoder is a recurrent network or an ODE-RNN, are laid beside recurrent networks that predict from
the past, and beside interpolants that learn nothing. Every model is trained on the same random
choices of observations and is to foretell all that it is not shown. The speakers of the vowels are
then told apart by the encoders, alone and as parts of a latent ODE.

A recurrent network predicts what lies in between from the past alone; interpolants and latent ODEs
look at both sides. What comes after, no one has seen.

Source:
    Rubanova, Chen, Duvenaud 2019 (arXiv 1907.03907), sections 4 and 5: the tasks. The series:
    C. D. Keeling et al. (statsmodels); M. Kudo et al. 1999 (sktime, aeon). Bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.series import Split, load_series, shown
from _harness.series_models import (
    INTERPOLANTS,
    LATENT,
    MODELS,
    Answer,
    Job,
    Recipe,
    classify,
    interpolated,
    predictions,
    train,
)
from _harness.session import Session, run_session
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow import Solver
from ctflow.cli import main as command_line

TASKS = ("in between", "after")
CLASSES = {"vowels": 9}


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    seeds: int = 1  # so many, from `seed` on; their median is shown
    sets: tuple[str, ...] = ("co2", "vowels")
    models: tuple[str, ...] = MODELS
    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.5)
    steps: int = 600  # on the CO2
    vowel_steps: int = 600
    learning_rate: float = 1e-2
    tolerance: float = 1e-3
    judged: bool = True  # whether there are bands; False: too short to have any
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "irregular_series"


PRESETS = {
    "smoke": Config("smoke", steps=2, vowel_steps=2, shares=(0.3,), judged=False),
    "quick": Config(
        "quick",
        steps=900,
        vowel_steps=700,
        learning_rate=2e-2,
        models=(LATENT[0], "RNN with gaps"),
    ),
    "full": Config("full", steps=2000, vowel_steps=2000),
}
PRESETS["paper"] = replace(
    PRESETS["full"], preset="paper", steps=10_000, vowel_steps=10_000, seeds=5, tolerance=1e-4
)


@dataclass(frozen=True)
class Row:
    """One model on one set.

    Args:
        data: Name of the set.
        model: Name of the model.
        task: One of `TASKS`, or "class".
        values: For each share shown, the median over the seeds: RMSE in the data's units (vowels:
            standard deviations of a coefficient), or the share of series told right.
    """

    data: str
    model: str
    task: str
    values: list[float]


def main(config: Config) -> dict[str, object]:
    """Train, judge, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("irregular_series", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files."""
    from _harness.series_figure import errors_by_share  # matplotlib is optional

    splits = {name: load_series(name) for name in config.sets}
    rows: list[Row] = []
    answer: Answer | None = None
    with LiveLine(console) as line:
        for name, split in splits.items():
            found, example = values(config, name, split, session, line.show)
            rows += [*found, *classes(config, name, split, session, line.show)]
            answer = answer or example
    bands = bands_of(config, rows) if config.judged else []
    console.print(*tables(config, rows), *map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": session.config,
        "environment": environment(),
        "rows": [asdict(row) for row in rows],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = errors_by_share(config.shares, rows, answer)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def values(
    config: Config, name: str, split: Split, session: Session, show: Callable[[str], None]
) -> tuple[list[Row], Answer | None]:
    """Errors in between and after, of every model and interpolant; and one example to draw."""
    test, rows = split.test, list[Row]()
    choices = [shown(test, share, _choice(share)) for share in config.shares]
    for kind in INTERPOLANTS:
        each = [errors(interpolated(kind, test, seen), split, seen) for seen in choices]
        rows += [Row(name, kind, task, [e[k] for e in each]) for k, task in enumerate(TASKS)]
    drawn: Answer | None = None
    for model_name in config.models:
        runs: list[list[tuple[float, float]]] = []
        for seed in range(config.seed, config.seed + config.seeds):
            one = job(config, name, model_name, 0, seed)
            model, _ = train(one, split.train, session, show)
            with torch.no_grad():
                found = [predictions(model, test, seen) for seen in choices]
            runs.append([errors(f, split, s) for f, s in zip(found, choices, strict=True)])
            if drawn is None:
                drawn = Answer(model_name, split, choices[0], found[0])
        for k, task in enumerate(TASKS):
            over = [median(run[i][k] for run in runs) for i in range(len(choices))]
            rows.append(Row(name, model_name, task, over))
    return rows, drawn


def classes(
    config: Config, name: str, split: Split, session: Session, show: Callable[[str], None]
) -> list[Row]:
    """Shares of the test series told right; none for a set without classes."""
    if name not in CLASSES:
        return []
    choices = [shown(split.test, share, _choice(share)) for share in config.shares]
    rows: list[Row] = []
    for model_name in config.models:
        runs: list[list[float]] = []
        for seed in range(config.seed, config.seed + config.seeds):
            one = job(config, name, model_name, CLASSES[name], seed)
            _, classifier = train(one, split.train, session, show)
            if classifier is None:
                raise RuntimeError(f"no classifier came of {one}")
            runs.append([classify(classifier, split.test, seen) for seen in choices])
        rows.append(Row(name, model_name, "class", [median(v) for v in zip(*runs, strict=True)]))
    return rows


def errors(found: Tensor, split: Split, seen: Tensor) -> tuple[float, float]:
    """RMSE of what was hidden in between, and of what comes after, in units of the data."""
    test = split.test
    square = (split.unit * (found - test.x)).square().mean(dim=2)
    first = seen.to(torch.int8).argmax(dim=1, keepdim=True)
    hidden = test.early & ~seen & (torch.arange(seen.shape[1]) > first)
    after = test.there & ~test.early
    return square[hidden].mean().sqrt().item(), square[after].mean().sqrt().item()


def job(config: Config, name: str, model: str, classes: int, seed: int) -> Job:
    """One training."""
    steps, latent = (config.steps, 8) if name == "co2" else (config.vowel_steps, 16)
    recipe = Recipe(steps, latent=latent, learning_rate=config.learning_rate)
    tolerance = config.tolerance
    solver = Solver(
        config.backend, rtol=tolerance, atol=tolerance, coupling="shared", gradient="direct"
    )
    return Job(name, model, classes, seed, recipe, solver)


def bands_of(config: Config, rows: Sequence[Row]) -> list[Band]:
    """At the fewest observations a latent ODE beats what learns nothing, and knows the speaker."""
    least = config.shares.index(min(config.shares))

    def best(data: str, task: str, names: Sequence[str]) -> float:
        able = (r for r in rows if (r.data, r.task) == (data, task) and r.model in names)
        return min(row.values[least] for row in able)

    bands = [
        Band(
            f"{data}, {task}, {config.shares[least]:.0%}: interpolant's error over latent ODE's",
            best(data, task, INTERPOLANTS) / best(data, task, LATENT),
            low=1.2,
        )
        for data in config.sets
        for task in TASKS
    ]
    told = [r.values[-1] for r in rows if r.task == "class" and r.model in LATENT]
    if told:
        bands.append(Band("vowels: speakers told right by a latent ODE", max(told), low=0.9))
    return bands


def tables(config: Config, rows: Sequence[Row]) -> list[Table]:
    """One table for each set and task."""
    found: list[Table] = []
    for data, task in dict.fromkeys((row.data, row.task) for row in rows):
        unit = "ppm" if data == "co2" else "standard deviations"
        what = "told right" if task == "class" else f"RMSE {task}, {unit}"
        table = Table("model", title=f"{data}: {what}")
        for share in config.shares:
            table.add_column(f"{share:.0%} shown", justify="right")
        for row in rows:
            if (row.data, row.task) == (data, task):
                table.add_row(row.model, *(f"{value:.3f}" for value in row.values))
        found.append(table)
    return found


def _choice(share: float) -> torch.Generator:
    """Of what is shown of the test series: the same for all models and seeds."""
    return torch.Generator().manual_seed(round(1000 * share))


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "irregular_series", "--root", root, *sys.argv[1:]])
