"""Figure 1: a residual network jumps from layer to layer, an ODE is evaluated where it needs it.

Seven particles on a line, from where the paper's start, follow the same field: on the left in five
residual layers, which are Euler steps of size 1; on the right as solutions of the ODE, each solved
for by itself. Circles are places where the field was evaluated. The paths of the ODE never cross,
those of the residual network do, and the solver's circles stand closer where the field is strong.

The paper's field is not known (its figure illustrates); ours draws particles together at first and
apart later on, as the paper's does.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), Figure 1; start points measured in the figure.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from _harness.bands import Band
from _harness.records import environment, need, write_figure, write_json
from rich.console import Console
from torch import Tensor

from ctflow import Solver, odeint
from ctflow.cli import main as command_line

STARTS = (-3.5, -2.5, -1.5, 0.0, 1.5, 2.5, 3.5)
DEPTH = 5


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0  # nothing here is random
    backend: str = "native"
    tolerance: float = 1e-3
    outputs: int = 101  # points of each drawn path
    results: Path = Path(__file__).parent / "results" / "figure_1"


PRESETS = {name: Config(name) for name in ("smoke", "quick", "full", "paper")}


def field(t: Tensor, x: Tensor) -> Tensor:
    """Together at first, apart later on; [...] to [...]."""
    return 0.3 * torch.tanh(t - 2.5) * x - 1.44 * torch.tanh(1.2 * x) * torch.cos(t)


class Watched:
    """The field, and everywhere that it was evaluated."""

    def __init__(self) -> None:
        """Nowhere yet."""
        self.places: list[tuple[float, float]] = []

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Evaluate it at one particle."""
        self.places.append((float(t), float(x)))
        return field(t, x)


@dataclass(frozen=True)
class Particle:
    """One particle.

    Args:
        path: Place at every output depth, by the ODE.
        evaluations: Depth and place of every evaluation of the ODE's field, by depth.
        layers: Place after each residual layer, the start first.
    """

    path: list[float]
    evaluations: list[tuple[float, float]]
    layers: list[float]


def main(config: Config) -> dict[str, object]:
    """Solve, print, and write JSON and PNG; returns what the JSON holds."""
    from _harness.paths_figure import residual_and_ode  # matplotlib is optional

    need("matplotlib")
    console = Console()
    with torch.no_grad():
        particles = [follow(start, config) for start in STARTS]
    bands = list(bands_of(particles))
    counts = ", ".join(str(len(each.evaluations)) for each in particles)
    console.print(
        f"evaluations of each particle: {counts} (the paper's figure, by another solver: 7 to 13)"
    )
    console.print(*map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "particles": [asdict(each) for each in particles],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    depths = [DEPTH * i / (config.outputs - 1) for i in range(config.outputs)]
    figure = residual_and_ode(
        field,
        depths,
        [each.path for each in particles],
        [each.evaluations for each in particles],
        [each.layers for each in particles],
    )
    write_figure(config.results / f"{config.preset}.png", figure)
    return record


def follow(start: float, config: Config) -> Particle:
    """One particle, by both networks."""
    x = torch.tensor([start], dtype=torch.float64)
    watched = Watched()
    times = torch.linspace(0, DEPTH, config.outputs, dtype=torch.float64)
    solver = Solver(config.backend, rtol=config.tolerance, atol=config.tolerance)
    path = odeint(watched, x, times, solver=solver)[:, 0].tolist()
    layers = [start]
    for layer in range(DEPTH):
        x = x + field(torch.tensor(float(layer), dtype=torch.float64), x)
        layers.append(float(x))
    return Particle(path, sorted(set(watched.places)), layers)


def bands_of(particles: list[Particle]) -> Iterator[Band]:
    """What the figure is to show."""
    paths = torch.tensor([each.path for each in particles])
    layers = torch.tensor([each.layers for each in particles])
    yield Band("least distance of two neighbours on the ODE's paths", closest(paths), low=1e-6)
    yield Band("least distance, neighbours in layers", closest(layers), high=-1e-6)
    gaps = [torch.tensor([t for t, _ in each.evaluations]).unique().diff() for each in particles]
    uneven = min(float(gap.max() / gap[gap > 1e-3].min()) for gap in gaps)
    yield Band("largest over smallest gap of evaluations, the least uneven", uneven, low=2.0)
    off = (layers[:, -1] - paths[:, -1]).abs().max()
    yield Band("largest distance of the two networks at the end", float(off), low=0.5)


def closest(paths: Tensor) -> float:
    """Least signed distance from a particle to the next one, [N, T]; negative once they cross."""
    return float(paths.diff(dim=0).min())


if __name__ == "__main__":
    command_line(["reproduce", "figure_1", "--root", str(Path(__file__).parents[1]), *sys.argv[1:]])
