"""Each output time is met once, in the step that holds it, by the method's own interpolant."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow import ODEProblem, Solver, solve
from ctflow.backends.native.backend import NativeBackend
from ctflow.backends.native.control import OnGrid
from ctflow.backends.native.interpolate import evaluate
from ctflow.backends.native.loop import Integration, integrate
from ctflow.backends.native.methods import METHODS
from ctflow.backends.native.observers import RecordGrid, SaveAt
from ctflow.backends.native.step import extended, rk_step
from ctflow.backends.tableau import Tableau
from tests.backends.native.stubs import Script, SeenField
from tests.checks import check_close
from tests.problems import FLOAT, limit_cycle, row_wise

methods = pytest.mark.parametrize("tableau", METHODS.values(), ids=METHODS.keys())


def saved(grid: list[list[float]], control: Script) -> tuple[SaveAt, RecordGrid]:
    """What two observers kept of dy/dt = 1 from y = 0 at the first time of each row."""
    t = torch.tensor(grid, dtype=FLOAT)
    y0 = torch.zeros(len(grid), 1, dtype=FLOAT)
    plan = Integration(METHODS["euler"], control, t, 100)
    save, record = plan.saver(SeenField(), y0), RecordGrid()
    integrate(plan, SeenField(), y0, None, [save, record])
    return save, record


def columns(save: SaveAt) -> list[list[tuple[int, int]]]:
    """For each step that was seen, sample and index of the output times inside it."""
    return [list(zip(hits.row.tolist(), hits.column.tolist(), strict=True)) for hits in save.hits]


def test_an_output_belongs_to_the_step_that_ends_at_it_or_holds_it() -> None:
    """Unit steps from 0 to 3: 0.5 in the first, 1 at its end, 2.25 in the last together with 3."""
    save, _ = saved([[0.0, 0.5, 1.0, 2.25, 3.0]], Script())
    assert columns(save) == [[(0, 1), (0, 2)], [], [(0, 3), (0, 4)]]
    assert save.result().flatten().tolist() == [0.0, 0.5, 1.0, 2.25, 3.0]


def test_each_sample_meets_its_own_times_in_its_own_direction() -> None:
    """One sample goes up, one down, one is done early."""
    save, _ = saved([[0.0, 1.5, 2.0], [0.0, -0.5, -3.0], [0.0, 0.25, 1.0]], Script())
    assert columns(save) == [[(1, 1), (2, 1), (2, 2)], [(0, 1), (0, 2)], [(1, 2)]]
    assert save.result()[:, 1, 0].tolist() == [0.0, 0.5 - 1.0, -3.0]


def test_a_rejected_step_meets_no_output() -> None:
    """The time inside it is met when the step is taken again."""
    save, record = saved([[0.0, 0.5, 1.0]], Script(accepted=[[False], [True]]))
    assert columns(save) == [[(0, 1), (0, 2)]]
    assert [(step.t0.item(), step.t1.item()) for step in record.steps] == [(0.0, 1.0)]


def test_what_no_step_reached_is_nan() -> None:
    """The limit of two steps leaves the last output out."""
    t = torch.tensor([[0.0, 1.5, 3.0]], dtype=FLOAT)
    y0 = torch.zeros(1, 1, dtype=FLOAT)
    plan = Integration(METHODS["euler"], Script(), t, 2)
    save = plan.saver(SeenField(), y0)
    integrate(plan, SeenField(), y0, None, [save])
    assert save.result()[:2].flatten().tolist() == [0.0, 1.5]
    assert save.result()[2].isnan().all()


def test_a_recorded_step_of_a_sample_at_rest_has_no_length() -> None:
    """So that it can be taken again with the others and leave the sample where it is."""
    _, record = saved([[0.0, 1.0], [0.0, 3.0]], Script())
    assert [(s.t1 - s.t0).tolist() for s in record.steps] == [[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]


@methods
@pytest.mark.parametrize("h", [0.3, -0.3])
def test_the_end_of_a_step_is_met_bit_for_bit(tableau: Tableau, h: float) -> None:
    """Beside other times too; and the interpolant comes to the same within rounding."""
    y0 = torch.tensor([[0.3, -0.4], [1.0, 0.2]], dtype=FLOAT)
    t0 = torch.tensor([0.1, 0.5], dtype=FLOAT)
    step = rk_step(limit_cycle.f, tableau, t0, t0 + h, y0, None)
    step = extended(limit_cycle.f, tableau, step)
    row = torch.tensor([0, 1, 1])
    times = torch.stack([step.t1[0], step.t1[1], step.t0[1] + h / 2])
    found = evaluate(tableau, step, row, times)
    assert torch.equal(found[:2], step.y1)
    near = evaluate(tableau, step, row, times - 1e-12 * h)
    check_close(near[:2], step.y1, rtol=1e-11)
    assert not torch.equal(found[2], step.y1[1])


@methods
def test_a_step_without_length_keeps_the_state_bit_for_bit(tableau: Tableau) -> None:
    """Though its stages are evaluated."""
    y0, t0 = torch.randn(3, 2, dtype=FLOAT), torch.tensor([0.0, 0.1, 0.2], dtype=FLOAT)
    t1 = t0 + torch.tensor([0.0, 0.5, 0.0], dtype=FLOAT)
    step = rk_step(row_wise_flat, tableau, t0, t1, y0, None)
    assert torch.equal(step.y1[[0, 2]], y0[[0, 2]])


def row_wise_flat(t: Tensor, y: Tensor) -> Tensor:
    """`row_wise` with times [B]."""
    return row_wise(t[:, None], y)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("coupling", ["shared", "per_sample"])
def test_a_frozen_grid_repeats_the_steps_of_a_solve(direction: int, coupling: str) -> None:
    """OnGrid on the step times of an adaptive solve gives its states bit for bit."""
    t = direction * torch.tensor([0.0, 0.3, 0.8], dtype=FLOAT)
    problem = ODEProblem(row_wise, torch.tensor([[0.3, -0.4]], dtype=FLOAT), t)
    adaptive = solve(problem, Solver(coupling=coupling))
    nodes = adaptive.stats.step_times[0]
    frozen = solve(problem, Solver(NativeBackend(control=OnGrid(nodes)), coupling=coupling))
    assert torch.equal(frozen.stats.step_times[0], nodes)
    assert torch.equal(frozen.y, adaptive.y)
