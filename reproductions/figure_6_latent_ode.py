"""Figure 6 of the paper, from an actual run: what a latent ODE does with one series.

A recurrent network reads the observations of a spiral last to first and gives a distribution of
z(t0). A state drawn from it obeys the learned ODE through the observed times and beyond; each state
is decoded. The paper draws this as a sketch; here every curve is that of a trained model.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 5 and figure 6. It has no number to meet: the
    bands say that what is drawn is what was trained.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.spiral_scores import scores_of
from _harness.spiral_training import Job, Recipe, train
from rich.console import Console

from ctflow import Solver
from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    points: int = 30
    steps: int = 800
    n_train: int = 800
    tolerance: float = 1e-4
    reconstruction: float | None = 0.3  # band; None: too short a run to have one
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "figure_6_latent_ode"


PRESETS = {
    "smoke": Config("smoke", steps=2, n_train=20, reconstruction=None),
    "quick": Config("quick"),
    "full": Config("full", backend="compiled", steps=3000, reconstruction=0.2),
}


def main(config: Config) -> dict[str, object]:
    """Train, draw, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session("figure_6_latent_ode", config, run)


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from data to files."""
    from _harness.latent_figure import from_data_to_forecast  # matplotlib is optional

    tolerance = config.tolerance
    solver = Solver(
        config.backend, rtol=tolerance, atol=tolerance, coupling="shared", gradient="direct"
    )
    recipe = Recipe(config.steps, warm_up=min(200, config.steps // 5 + 1))
    job = Job("latent ODE", config.points, config.seed, recipe, solver, config.n_train, 20)
    with LiveLine(console) as line:
        trained = train(job, line.show, session)
    scores = scores_of(trained)
    figure = from_data_to_forecast(trained)
    bands = []
    if config.reconstruction is not None:
        error = scores.reconstruction
        bands.append(Band("RMSE on the observed revolution", error, high=config.reconstruction))
    console.print(*map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": session.config,
        "environment": environment(),
        "scores": scores._asdict(),
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "figure_6_latent_ode", "--root", root, *sys.argv[1:]])
