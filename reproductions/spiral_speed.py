"""One small network, forward: ctflow's native solver beside torchdiffeq, in turn, in one process.

A network of 2-50-2 units with tanh, of y cubed, for a batch of 20 and 50 output times on [0, 10],
in float32 at rtol = atol = 1e-6: the size at which users are bound by Python, not by arithmetic.
Both solve with the same weights, start, method and tolerances, on one thread. The ratio is taken
pair by pair, so that a machine whose speed drifts does not decide it.

Source:
    The spiral of Chen et al. 2018 (arXiv 1806.07366v5), as in torchdiffeq's `ode_demo`. The band is
    ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from _harness.bands import Band
from _harness.records import environment, write_json
from _harness.threads import torch_threads
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ctflow import ODEProblem, Solver, odeint, solve
from ctflow.backends.registry import get
from ctflow.cli import main as command_line


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"
    tolerance: float = 1e-6
    pairs: int = 40
    ratio: float | None = 1.5  # band: torchdiffeq's time over ours; None: too short to have one
    results: Path = Path(__file__).parent / "results" / "spiral_speed"


PRESETS = {
    "smoke": Config("smoke", pairs=2, ratio=None),
    "quick": Config("quick"),
    "full": Config("full", pairs=400),
}


class Spiral(nn.Module):
    """f(t, y) = network of y cubed."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 2))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - autonomous
        """States [20, 2] to their derivative."""
        return self.net(y**3)


def main(config: Config) -> dict[str, object]:
    """Time both in turn, print, and write JSON; returns what it holds."""
    with torch_threads(1):
        return run(config, Console())


@torch.no_grad()
def run(config: Config, console: Console) -> dict[str, object]:
    """The measurement."""
    import torchdiffeq

    get(config.backend)
    torch.manual_seed(config.seed)
    field, y0, t = Spiral(), torch.randn(20, 2), torch.linspace(0, 10, 50)
    solver = Solver(config.backend, method="dopri5", rtol=config.tolerance, atol=config.tolerance)

    def ours() -> Tensor:
        return odeint(field, y0, t, solver=solver)

    def theirs() -> Tensor:
        tolerance = config.tolerance
        return torchdiffeq.odeint(field, y0, t, method="dopri5", rtol=tolerance, atol=tolerance)

    difference = float((ours() - theirs()).abs().max())
    pairs = [(_milliseconds(ours), _milliseconds(theirs)) for _ in range(config.pairs)]
    ratio = median(b / a for a, b in pairs)
    medians = median(a for a, _ in pairs), median(b for _, b in pairs)
    evaluations = int(solve(ODEProblem(field, y0, t), solver).stats.forward.n_f_evals[0])
    table = Table("solver", title="spiral, forward, one thread")
    table.add_column("milliseconds", justify="right")
    table.add_row(config.backend, f"{medians[0]:.2f}")
    table.add_row("torchdiffeq", f"{medians[1]:.2f}")
    table.caption = f"medians of {config.pairs} pairs; {evaluations} evaluations of f"
    bands = [Band("largest difference of the states", difference, high=1e3 * config.tolerance)]
    if config.ratio is not None:
        bands.append(Band("torchdiffeq's time over ours", ratio, low=config.ratio))
    console.print(table, *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": {key: value for key, value in asdict(config).items() if key != "results"},
        "environment": environment(),
        "milliseconds": {config.backend: medians[0], "torchdiffeq": medians[1]},
        "ratio": ratio,
        "evaluations": evaluations,
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    return record


def _milliseconds(run: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - began)


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    command_line(["reproduce", "spiral_speed", "--root", root, *sys.argv[1:]])
