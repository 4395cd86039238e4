"""Figure 6 of the paper, from an actual run: what a latent ODE does with one series.

A recurrent network reads the observations of a spiral last to first and gives a distribution of
z(t0). A state drawn from it obeys the learned ODE through the observed times and beyond; each state
is decoded. The paper draws this as a sketch; here every curve is that of a trained model.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 5 and figure 6. It has no number to meet: the
    bands say that what is drawn is what was trained.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
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
    results: Path = Path(__file__).parent / "results" / "figure_6_latent_ode"


PRESETS = {
    "smoke": Config("smoke", steps=2, n_train=20, reconstruction=None),
    "quick": Config("quick"),
    "full": Config("full", steps=6000, reconstruction=0.2),
}


def main(config: Config) -> dict[str, object]:
    """Train, draw, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    from _harness.latent_figure import from_data_to_forecast  # matplotlib is optional

    console = Console()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tolerance = config.tolerance
        solver = Solver(
            config.backend, rtol=tolerance, atol=tolerance, coupling="shared", gradient="direct"
        )
        recipe = Recipe(config.steps, warm_up=min(200, config.steps // 5 + 1))
        job = Job("latent ODE", config.points, config.seed, recipe, solver, config.n_train, 20)
        with LiveLine(console) as line:
            trained = train(job, line.show)
        if trained is None:
            raise RuntimeError("a run without a limit of time stopped")
        scores = scores_of(trained)
        figure = from_data_to_forecast(trained)
    finally:
        torch.set_num_threads(threads)
    bands = []
    if config.reconstruction is not None:
        error = scores.reconstruction
        bands.append(Band("RMSE on the observed revolution", error, high=config.reconstruction))
    console.print(*map(str, bands), sep="\n", highlight=False)
    record: dict[str, object] = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
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
