"""Gradients are those of the program itself: finite differences on a frozen step grid."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("hypothesis")

from hypothesis import given, settings

from ctflow import Solver
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.protocol import Coupling, Gradient
from tests.checks import check
from tests.property.strategies import trials
from tests.property.trial import Choices, Trial, gradient_of, make_trial

STEP = 1e-3  # of the difference; its error falls as the fourth power
FORMULA = {-2: 1 / 12, -1: -2 / 3, 1: 2 / 3, 2: -1 / 12}
ADAPTIVE = Solver(coupling="shared", rtol=1e-9, atol=1e-9)


def frozen(trial: Trial, nodes: Tensor, solver: Solver) -> Solver:
    """The solver on a step grid with the trial's own output times among its nodes."""
    t = trial.problem.t.detach()
    far = ((nodes[:, None] - t).abs() > 4 * STEP).all(1)  # so that no time moves past a node
    backend = NativeBackend(control=OnGrid(torch.cat([nodes[far], t])))
    return replace(solver, backend=backend)


def difference(trial: Trial, nodes: Tensor, solver: Solver, part: str, along: Tensor) -> Tensor:
    """Derivative of the loss when one part of the inputs moves along a vector."""
    tensors = trial.parts[part]
    base = [x.detach().clone() for x in tensors]
    moves = [
        a.reshape(x.shape)
        for a, x in zip(along.split([x.numel() for x in base]), base, strict=True)
    ]
    total = torch.zeros(())
    for k, weight in FORMULA.items():
        moved = [x + k * STEP * move for x, move in zip(base, moves, strict=True)]
        with torch.no_grad():
            if part == "t":
                other = trial.with_times(moved[0])
            else:
                other = trial
                for x, new in zip(tensors, moved, strict=True):
                    x.copy_(new)
            total = total + weight * other.loss(frozen(other, nodes, solver)) / STEP
    with torch.no_grad():
        for x, old in zip(tensors, base, strict=True):
            x.copy_(old)
    return total


def directions(trial: Trial) -> list[tuple[str, Tensor]]:
    """A random unit vector for y0, parameters and args, and every single time."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for part in trial.parts:
        if part == "t":
            found += [("t", unit) for unit in torch.eye(len(trial.problem.t), dtype=torch.float64)]
            continue
        n = sum(x.numel() for x in trial.parts[part])
        vector = torch.randn(n, dtype=torch.float64, generator=generator)
        found.append((part, vector / vector.norm()))
    return found


def check_against_differences(choices: Choices, solver: Solver) -> None:
    """Raise unless each derivative agrees to 1e-6 of the whole gradient's norm, or of 1."""
    trial = make_trial(choices)
    nodes = trial.solution(ADAPTIVE).stats.step_times[0]
    gradient = gradient_of(trial, frozen(trial, nodes, solver))
    scale = max(float(torch.cat([g.flatten() for g in gradient]).norm()), 1.0)
    by_part = dict(zip(trial.parts, _grouped(gradient, trial), strict=True))
    for part, along in directions(trial):
        wanted = difference(trial, nodes, solver, part, along)
        error = float((by_part[part] @ along - wanted).abs()) / scale
        check(error <= 1e-6, f"{part} along {along.tolist()}: off by {error:.1e}")


def _grouped(gradient: tuple[Tensor, ...], trial: Trial) -> list[Tensor]:
    rest = iter(gradient)
    return [torch.cat([next(rest).flatten() for _ in part]) for part in trial.parts.values()]


@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
@settings(max_examples=8)
@given(choices=trials(batched=True))
def test_gradient_is_that_of_the_steps_taken(coupling: Coupling, choices: Choices) -> None:
    """For y0, parameters, args and every time of a batch, by back-propagation through the steps."""
    check_against_differences(choices, Solver(gradient="direct", coupling=coupling))


@pytest.mark.parametrize("gradient", ["direct", "checkpointed"])
@settings(max_examples=5)
@given(choices=trials(batched=False))
def test_gradient_of_one_system_is_that_of_the_steps_taken(
    gradient: Gradient, choices: Choices
) -> None:
    """The same for states that are one system, by either exact method."""
    check_against_differences(choices, Solver(gradient=gradient))
