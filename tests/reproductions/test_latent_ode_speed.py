"""The side-by-side timing of a training step runs, and every solver takes the same step."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _harness.spiral_training import Job, Recipe, Run

from ctflow import Solver
from ctflow.cli.checkout import load_script

pytest.importorskip("torchdiffeq")

speed = load_script(Path(__file__).parents[2], "latent_ode_speed")


def test_every_solver_is_timed_on_the_same_weights(tmp_path: Path) -> None:
    """The smoke preset takes the real path."""
    record = speed.main(replace(speed.PRESETS["smoke"], results=tmp_path))
    (row,) = record["rows"]
    assert set(row["milliseconds"]) == {"native", "torchdiffeq", "torchdiffeq, adjoint"}
    assert row["ratios"]["native"] == 1.0
    assert min(row["evaluations"].values()) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["smoke.json"]


def test_a_step_taken_over_is_the_same_whoever_solves() -> None:
    """Of the bound, from the same weights, batch and draw."""
    losses: list[float] = []
    state: dict[str, object] | None = None
    for backend in ("native", "torchdiffeq"):
        solver = Solver(backend, rtol=1e-6, atol=1e-6, coupling="shared", gradient="direct")
        run = Run(Job("latent ODE", 30, 0, Recipe(100, batch=8), solver, 20, 4))
        if state is None:
            for _ in run.training.steps(2):
                run.step()
            state = copy.deepcopy(run.training.state())
        else:
            run.training.restore(state)
        torch.manual_seed(0)
        losses.append(run.step())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
