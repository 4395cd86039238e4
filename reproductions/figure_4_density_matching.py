"""Figure 4 of the paper: discrete and continuous planar flows matched to three densities.

A flow q is fitted to a density known up to its normaliser, exp(-U)/Z, by minimising
KL(q || p) - log Z = E_q[log q + U]. K planar layers (NF, RMSprop) stand beside M planar units with
weights that are functions of time (CNF, Adam), for K = M from 2 to 32. Both begin at N(0, I).

The loss cannot be less than -log Z, which is found by quadrature and drawn: a run below it has a
wrong log-determinant and fails. U3 and U4 have no finite Z on the plane, so flows are trained on
U + 100 relu(|z| - 4)^2, a wall around the window that the paper draws; losses without it, and
the mass that a flow has inside the window, are reported beside.

Losses are means over fresh samples, the CNF's solved to a tolerance of 1e-5 (the paper's), whatever
it was trained with.

Source:
    Chen et al. 2018 (arXiv 1806.07366v5), section 4.1 and figure 4; the densities: Rezende and
    Mohamed 2015 (arXiv 1505.05770), table 1. The paper's curves have no scale; the bands are ours.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from _harness.bands import Band, least
from _harness.density_training import Fit, Recipe, fit_continuous, fit_layers
from _harness.energies import ENERGIES, WINDOW, confined, log_z
from _harness.live import LiveLine
from _harness.records import environment, need, write_figure, write_json
from _harness.session import Session, run_session
from _harness.workers import train_ahead
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ctflow.cli import main as command_line

FITS = {"NF": fit_layers, "CNF": fit_continuous}


@dataclass(frozen=True)
class Config:
    """Everything that the result depends on, beside the code and the machine."""

    preset: str
    seed: int = 0
    backend: str = "native"  # the one that trains
    cells: tuple[tuple[str, int], ...] = (("U1", 2), ("U3", 8), ("U4", 2))
    cnf_iterations: int = 1000
    nf_iterations: int = 4000
    batch: int = 256
    cnf_rate: float = 1e-2
    nf_rate: float = 2e-2
    loose: float = 1e-3  # rtol and atol of the CNF's training
    tolerance: float = 1e-5  # of everything else: the paper's
    fresh: int = 20_000  # samples that a loss is the mean of
    pixels: int = 120  # of a panel
    bands: str = "quick"
    workers: int = 1  # processes that train
    keep: bool = True  # the states of finished trainings
    threads: int = 1
    minutes: float = math.inf  # stop after so long; the same call goes on from there
    resume: bool = True  # go on with an unfinished call of the same settings
    results: Path = Path(__file__).parent / "results" / "figure_4_density_matching"


ALL = tuple((target, n) for target in ENERGIES for n in (2, 4, 8, 16, 32))
PRESETS = {
    "smoke": Config(
        "smoke",
        cells=(("U1", 2),),
        cnf_iterations=3,
        nf_iterations=3,
        batch=16,
        fresh=200,
        pixels=8,
        bands="none",
        keep=False,
    ),
    "quick": Config(
        "quick", backend="compiled", cnf_iterations=3000, cnf_rate=5e-3, batch=512, loose=1e-5
    ),
    "full": Config(
        "full", backend="compiled", cells=ALL, cnf_iterations=3000, nf_iterations=20_000,
        cnf_rate=5e-3, batch=512, pixels=200, bands="full", workers=2,
    ),
    "paper": Config(
        "paper", cells=ALL, cnf_iterations=10_000, nf_iterations=500_000, cnf_rate=5e-3,
        batch=512, loose=1e-5, pixels=200, bands="full",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What became of one flow.

    Args:
        target: Name of the energy.
        size: K or M.
        kind: "NF" or "CNF".
        loss: E_q[log q + U] with the wall, in nats.
        error: Its standard error.
        bound: -log Z, the least possible loss.
        raw: The loss without the wall.
        inside: Share of the flow's mass inside the window.
        seconds: Training time on the processor.
    """

    target: str
    size: int
    kind: str
    loss: float
    error: float
    bound: float
    raw: float
    inside: float
    seconds: float


def main(config: Config) -> dict[str, object]:
    """Train, compare, print, and write JSON and PNG; returns what the JSON holds."""
    need("matplotlib")
    return run_session(
        "figure_4_density_matching", config, run, keep=config.keep, threads=config.threads
    )


def run(config: Config, console: Console, session: Session) -> dict[str, object]:
    """The experiment, from energies to files."""
    from _harness.density_figure import matching_figure  # matplotlib is optional

    bounds = {target: -log_z(target) for target in {target: 0 for target, _ in config.cells}}
    cells: list[Cell] = []
    images: dict[tuple[str, str, int], Tensor] = {}
    jobs = {
        (target, size, kind): partial(FITS[kind], recipe(config, kind), target, size, session)
        for target, size in config.cells
        for kind in FITS
    }
    with LiveLine(console) as line:
        ahead = {f"{kind}({size}) on {target}": job for (target, size, kind), job in jobs.items()}
        train_ahead(ahead, config.workers, line.show)
        for (target, size, kind), job in jobs.items():
            fit = job(line.show)
            line.show(f"{kind}({size}) on {target}: measured")
            cells.append(measured(config, target, size, kind, bounds[target], fit))
            images[target, kind, size] = image(fit.log_prob, config.pixels)
    bands = bands_of(config, cells)
    console.print(table_of(cells), *map(str, bands), sep="\n", highlight=False)
    record = {
        "config": session.config,
        "environment": environment(),
        "cells": [asdict(cell) for cell in cells],
        "bands": [band.record() for band in bands],
    }
    write_json(config.results / f"{config.preset}.json", record)
    figure = matching_figure(cells, images, config.pixels)
    write_figure(config.results / f"{config.preset}.png", figure)
    console.print(f"Written: {config.preset}.json and {config.preset}.png in {config.results}")
    return record


def recipe(config: Config, kind: str) -> Recipe:
    """How a flow is trained."""
    nf = kind == "NF"
    return Recipe(
        seed=config.seed,
        backend=config.backend,
        iterations=config.nf_iterations if nf else config.cnf_iterations,
        batch=config.batch,
        rate=config.nf_rate if nf else config.cnf_rate,
        loose=config.loose,
        tolerance=config.tolerance,
    )


@torch.no_grad()
def measured(
    config: Config,
    target: str,
    size: int,
    kind: str,
    bound: float,
    fit: Fit,
) -> Cell:
    """The loss over fresh samples, with the wall and without."""
    torch.manual_seed(config.seed + 1)
    x, log_prob = fit.draw(config.fresh)
    losses = (log_prob + confined(target)(x)).double()
    raw = (log_prob + ENERGIES[target](x)).double()
    inside = (x.abs() <= WINDOW).all(dim=1).double()
    return Cell(
        target=target,
        size=size,
        kind=kind,
        loss=losses.mean().item(),
        error=(losses.std() / config.fresh**0.5).item(),
        bound=bound,
        raw=raw.mean().item(),
        inside=inside.mean().item(),
        seconds=round(fit.seconds, 1),
    )


@torch.no_grad()
def image(log_prob: Callable[[Tensor], Tensor], pixels: int) -> Tensor:
    """Density on the window, rows from the top, [pixels, pixels]."""
    side = (torch.arange(pixels) + 0.5) / pixels * 2 * WINDOW - WINDOW
    rows, columns = torch.meshgrid(side.flip(0), side, indexing="ij")
    points = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    return log_prob(points).exp().reshape(pixels, pixels)


def bands_of(config: Config, cells: list[Cell]) -> list[Band]:
    """What the preset claims."""
    above = least(cell.loss + 3 * cell.error - cell.bound for cell in cells)
    bands = [Band("least loss above its bound, with 3 standard errors", above, low=0.0)]
    found = {(cell.target, cell.kind, cell.size): cell for cell in cells}
    gaps = {
        (target, size): found[target, "NF", size].loss - found[target, "CNF", size].loss
        for target, size in config.cells
    }
    if config.bands == "quick":
        bands.append(Band("least lead of CNF over NF (nats)", least(gaps.values()), low=0.1))
        bands.append(Band("CNF loss on U1 with M = 2", found["U1", "CNF", 2].loss, high=-1.55))
    if config.bands == "full":
        unbounded = {key: gap for key, gap in gaps.items() if key[0] != "U1"}
        far = -least(found[t, "CNF", 32].bound - found[t, "CNF", 32].loss for t in ENERGIES)
        wins = sum(gap >= -0.02 for gap in unbounded.values())
        gain = least(found[t, k, 2].loss - found[t, k, 32].loss for t in ENERGIES for k in FITS)
        bands += [
            Band("CNF(32) above its bound (nats), the worst target", far, high=0.05),
            Band("U3 and U4 cells where CNF <= NF + 0.02, of 10", wins, low=8),
            Band("mean lead of CNF on U3 and U4", sum(unbounded.values()) / 10, low=0.1),
            Band("lead of CNF on U1 with 2 units", gaps["U1", 2], low=0.0),
            Band("least gain from 2 to 32", gain, low=0.2),
        ]
    return bands


def table_of(cells: list[Cell]) -> Table:
    """Every flow beside its bound."""
    table = Table(
        "target", "flow", "K = M", "loss", "+-", "bound", "loss without wall", "inside", "s",
        title="Mean of log q + U, in nats",
    )  # fmt: skip
    for cell in cells:
        table.add_row(
            cell.target, cell.kind, str(cell.size), f"{cell.loss:.3f}", f"{cell.error:.3f}",
            f"{cell.bound:.3f}", f"{cell.raw:.3f}", f"{cell.inside:.2%}", f"{cell.seconds:.0f}",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    root = str(Path(__file__).parents[1])
    name = "figure_4_density_matching"
    command_line(["reproduce", name, "--root", root, *sys.argv[1:]])
