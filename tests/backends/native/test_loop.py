"""The loop steps, judges, observes and stops exactly as its control tells it to."""

from __future__ import annotations

import math

import pytest
import torch

from ctflow import Status
from ctflow.backends.native.methods import METHODS
from tests.backends.native.stubs import CountObserver, Script, SeenField, run_loop


def test_each_sample_takes_its_own_number_of_steps() -> None:
    """Unit steps over 3 and 7 units of time are 3 and 7 steps, none rejected."""
    outcome = run_loop(Script(), ends=[3.0, 7.0])
    assert outcome.counts.n_steps.tolist() == [3, 7]
    assert outcome.counts.n_accepted.tolist() == [3, 7]
    assert outcome.counts.n_rejected.tolist() == [0, 0]
    assert outcome.status.tolist() == [Status.OK, Status.OK]


def test_rejected_steps_are_counted_for_the_sample_that_took_them() -> None:
    """Sample 0 is refused twice, sample 1 once, and each still arrives."""
    accepted = [[False, True], [False, False], [True, True]]
    outcome = run_loop(Script(accepted=accepted), ends=[2.0, 3.0])
    assert outcome.counts.n_steps.tolist() == [4, 4]
    assert outcome.counts.n_accepted.tolist() == [2, 3]
    assert outcome.counts.n_rejected.tolist() == [2, 1]


def test_a_rejected_sample_stays_where_it_was() -> None:
    """After a refused step the next one starts at the same time and state."""
    observer = CountObserver()
    run_loop(Script(accepted=[[False, True]]), ends=[2.0, 2.0], observers=[observer])
    assert observer.times == [[0.0, 1.0], [1.0, 2.0], [2.0, 2.0]]


def test_the_limit_of_steps_is_exact() -> None:
    """A sample that needs one step more than allowed fails after exactly the allowed number."""
    outcome = run_loop(Script(), ends=[4.0, 5.0], max_steps=4)
    assert outcome.status.tolist() == [Status.OK, Status.MAX_STEPS]
    assert outcome.counts.n_steps.tolist() == [4, 4]
    assert [(stop.sample, stop.t, stop.step) for stop in outcome.stops] == [(1, 4.0, 1.0)]


def test_rejected_steps_count_towards_the_limit() -> None:
    """Two accepted and one refused step exhaust a limit of three."""
    outcome = run_loop(Script(accepted=[[False]]), ends=[3.0], max_steps=3)
    assert outcome.status.tolist() == [Status.MAX_STEPS]
    assert (outcome.counts.n_accepted.item(), outcome.counts.n_rejected.item()) == (2, 1)


def test_observers_see_the_steps_that_move_a_sample_and_no_other() -> None:
    """An attempt refused for every sample is shown to nobody."""
    observer = CountObserver()
    control = Script(accepted=[[True, True], [False, False], [True, False]])
    run_loop(control, ends=[2.0, 2.0], observers=[observer])
    assert observer.times == [[1.0, 1.0], [2.0, 1.0], [2.0, 2.0]]
    assert control.n_judged == 4


def test_the_last_step_ends_exactly_at_the_end() -> None:
    """Ten steps of 0.1, whose sum is not 1.0 in floating point, end at 1.0 and nowhere beyond."""
    observer = CountObserver()
    outcome = run_loop(Script(size=0.1), ends=[1.0], observers=[observer])
    assert outcome.counts.n_steps.item() == 10
    assert observer.times[-1] == [1.0]


def test_a_step_that_overshoots_is_cut() -> None:
    """Steps of 0.4 over one unit are three, the last one shorter."""
    observer = CountObserver()
    run_loop(Script(size=0.4), ends=[1.0], observers=[observer])
    assert observer.times == [[0.4], [0.8], [1.0]]


@pytest.mark.parametrize(
    ("method", "per_step", "extra"),
    [
        ("euler", 1, 0),
        ("midpoint", 2, 0),
        ("rk4", 4, 0),
        ("bosh3", 3, 1),
        ("dopri5", 6, 1),
        ("tsit5", 6, 1),
    ],
)
def test_evaluations_are_counted_as_they_are_made(method: str, per_step: int, extra: int) -> None:
    """A first-same-as-last method evaluates one stage less, after one evaluation at the start."""
    field = SeenField()
    outcome = run_loop(Script(), ends=[5.0], field=field, method=method)
    assert len(field.times) == 5 * per_step + extra
    assert outcome.counts.n_f_evals.item() == len(field.times)


def test_the_first_stage_is_kept_after_a_rejected_step() -> None:
    """A refused rk4 step costs three further evaluations, not four."""
    field = SeenField()
    control = Script(accepted=[[False]])
    outcome = run_loop(control, ends=[2.0], field=field, method="rk4")
    assert len(field.times) == 4 + 3 + 4
    assert outcome.counts.n_f_evals.item() == 11


def test_a_finished_sample_rests_at_its_end() -> None:
    """While its neighbour goes on, its evaluations are at its own last state and not counted."""
    field = SeenField()
    outcome = run_loop(Script(), ends=[1.0, 3.0], field=field)
    assert field.times == [[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
    assert [state[0].item() for state in field.states] == [0.0, 1.0, 1.0]
    assert outcome.counts.n_f_evals.tolist() == [1, 3]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", [1.0, -1.0])
def test_no_stage_lies_outside_the_interval(method: str, end: float) -> None:
    """Steps that do not fit the interval are evaluated inside it only, in either direction."""
    field = SeenField()
    run_loop(Script(size=0.3), ends=[end], field=field, method=method)
    low, high = min(0.0, end), max(0.0, end)
    assert all(low <= t <= high for (t,) in field.times)


def test_a_step_of_size_zero_gives_a_finite_sample_up_as_too_small() -> None:
    """The sample stops at its last time, its neighbour takes exactly the steps it needs."""
    control = Script(accepted=[[True, True], [False, True]], sizes=[[1.0, 1.0], [0.0, 1.0]])
    outcome = run_loop(control, ends=[4.0, 4.0])
    assert outcome.status.tolist() == [Status.STEP_TOO_SMALL, Status.OK]
    assert outcome.counts.n_steps.tolist() == [2, 4]
    assert [(stop.sample, stop.t) for stop in outcome.stops] == [(0, 1.0)]


def test_a_step_of_size_zero_gives_a_non_finite_sample_up_as_such() -> None:
    """What the control calls not finite is reported so."""
    control = Script(accepted=[[False]], sizes=[[0.0]], finite=[[False]])
    assert run_loop(control, ends=[1.0]).status.tolist() == [Status.NON_FINITE]


def test_a_step_below_the_resolution_of_time_is_given_up() -> None:
    """At t = 1 a wanted step of 15 units in the last place is too small, one of 17 is not."""
    eps = torch.finfo(torch.float64).eps
    accepted = [[True, True], [False, False]]
    sizes = [[1.0, 1.0], [15 * eps, 17 * eps], [1.0, 1.0]]
    outcome = run_loop(Script(accepted=accepted, sizes=sizes), ends=[2.0, 2.0])
    assert outcome.status.tolist() == [Status.STEP_TOO_SMALL, Status.OK]


def test_a_sample_that_cannot_start_costs_its_neighbour_nothing() -> None:
    """Where f is infinite at the start, the sample takes no step and the other its two."""

    def field(t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.tensor([[True], [False]]) & (t == 0).unsqueeze(1), math.inf, 1.0)

    outcome = run_loop(Script(), ends=[2.0, 2.0], field=field)
    assert outcome.status.tolist() == [Status.NON_FINITE, Status.OK]
    assert outcome.counts.n_steps.tolist() == [0, 2]
    assert outcome.stops[0].f_is_finite is False


def test_the_trace_holds_the_time_after_each_step_that_moved() -> None:
    """It begins with the start and leaves out what was refused for all."""
    outcome = run_loop(Script(accepted=[[False], [True]]), ends=[2.0])
    assert [t.tolist() for t in outcome.trace] == [[0.0], [1.0], [2.0]]
