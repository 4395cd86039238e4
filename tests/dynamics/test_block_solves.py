"""`ODEBlock` maps its input along the field, and says so when it could not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctflow import InvalidProblem, SolveFailed, Solver, Unsupported
from ctflow.dynamics import MLP, ConcatLinear, ODEBlock
from ctflow.state import expand_time
from tests.checks import check_close

TIGHT = Solver(rtol=1e-10, atol=1e-12)
FIXED = Solver(method="rk4", step=0.05)


def rotation(t: Tensor, y: Tensor) -> Tensor:
    """Turn [B, 2] counter-clockwise with angular velocity 1."""
    return torch.stack([-y[..., 1], y[..., 0]], dim=-1)


def test_the_layer_returns_the_state_at_the_end() -> None:
    """A rotation by t1 - t0 = 0.5."""
    angle = torch.tensor(0.5, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    turn = torch.stack([angle.cos(), angle.sin(), -angle.sin(), angle.cos()]).reshape(2, 2)
    y = ODEBlock(rotation, t=(1.0, 1.5), solver=TIGHT)(x)
    check_close(y, x @ turn, rtol=1e-9, atol=1e-9)


def test_the_reversed_interval_undoes_the_layer() -> None:
    """From 1 to 0 it leads back to the input."""
    field = MLP(2, (8,), layer=ConcatLinear).double()
    x = torch.randn(4, 2, dtype=torch.float64)
    there, back = ODEBlock(field, solver=TIGHT), ODEBlock(field, t=(1.0, 0.0), solver=TIGHT)
    check_close(back(there(x)), x, rtol=1e-8, atol=1e-8)


def test_a_trajectory_begins_at_the_input_and_ends_at_the_output() -> None:
    """Every time has its state, [T, B, ...]."""
    block = ODEBlock(MLP(2, (8,)).double(), solver=FIXED)
    x = torch.randn(4, 2, dtype=torch.float64)
    y = block.trajectory(x, [0.0, 0.5, 1.0])
    assert y.shape == (3, 4, 2)
    check_close(y[0], x, rtol=0.0)
    check_close(y[-1], block(x), rtol=1e-12, atol=1e-14)


def test_states_may_be_dictionaries_of_leaves_of_different_rank() -> None:
    """The structure comes back, and time fits a leaf of any rank through `expand_time`."""

    def f(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: expand_time(t, leaf) * torch.ones_like(leaf) for name, leaf in y.items()}

    x = {"a": torch.zeros(3, 2, dtype=torch.float64), "b": torch.ones(3, 4, 5).double()}
    y = ODEBlock(f, t=(0.0, 2.0))(x)
    check_close(y["a"], x["a"] + 2.0, rtol=1e-12)
    check_close(y["b"], x["b"] + 2.0, rtol=1e-12)


def test_args_reach_the_field() -> None:
    """The layer's second input is the field's third."""
    block = ODEBlock(lambda t, y, rate: rate * y, solver=TIGHT)
    x, rate = torch.ones(3, 1, dtype=torch.float64), torch.tensor([[0.1], [0.2], [-1.0]]).double()
    check_close(block(x, rate), rate.exp(), rtol=1e-9)


def test_each_sample_has_its_own_steps_by_default() -> None:
    """A stiff neighbour costs an easy sample nothing."""
    block = ODEBlock(lambda t, y, rate: -rate * y)
    x, rate = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[0.1], [50.0]]).double()
    block(x, rate)
    together = block.stats.forward.n_steps
    block(x[:1], rate[:1])
    assert together[0] == block.stats.forward.n_steps[0] < together[1]


def test_shared_steps_are_honoured() -> None:
    """coupling="shared" has one step size, and one entry in the statistics, for the batch."""
    block = ODEBlock(MLP(2, (4,)), solver=Solver(coupling="shared"))
    block(torch.randn(5, 2))
    assert block.stats.solver.coupling == "shared"
    assert block.stats.forward.n_steps.shape == (1,)


def test_the_solver_swaps_by_assignment() -> None:
    """A backend's name, a Solver and None are all taken, and shown."""
    block = ODEBlock(rotation)
    block.solver = "torchdiffeq"
    assert block.solver == Solver(backend="torchdiffeq")
    block.solver = None
    assert block.solver == Solver()


def test_a_failed_sample_raises_with_its_solution() -> None:
    """With dy/dt = y^2, y blows up at t = 1 / y0: for sample 1 within the interval."""
    block = ODEBlock(lambda t, y: y**2)
    with pytest.raises(SolveFailed, match="sample 1") as failure:
        block(torch.tensor([[0.5], [2.0]], dtype=torch.float64))
    assert failure.value.solution.status.tolist()[0] == 0
    assert block.stats is failure.value.solution.stats


@pytest.mark.parametrize(
    "t", [(0.0,), (0.0, 0.5, 1.0), (1.0, 1.0), (0.0, float("nan")), "01x", 1.0, None], ids=repr
)
def test_an_interval_that_is_not_two_times_is_refused(t: object) -> None:
    """The message shows what was given."""
    with pytest.raises(InvalidProblem, match=r"`t` must be two"):
        ODEBlock(rotation, t=t)


def test_a_time_that_wants_a_gradient_is_refused_and_shown_the_way() -> None:
    """It would be dropped silently otherwise."""
    with pytest.raises(InvalidProblem, match="trajectory"):
        ODEBlock(rotation, t=torch.tensor([0.0, 1.0], requires_grad=True))


def test_a_field_that_cannot_be_called_is_refused() -> None:
    """At construction, not at the first call."""
    with pytest.raises(InvalidProblem, match="must be callable"):
        ODEBlock(3.0)


@pytest.mark.parametrize(
    "x",
    [
        torch.tensor(1.0),
        torch.zeros(0, 2),
        torch.tensor([[1, 2]]),
        torch.tensor([[0.0, torch.nan]]),
    ],
    ids=["no batch", "empty", "integer", "nan"],
)
def test_an_input_that_cannot_be_solved_is_refused(x: Tensor) -> None:
    """Every bad input is one error of ctflow's."""
    with pytest.raises(InvalidProblem):
        ODEBlock(rotation)(x)


def test_what_the_backend_cannot_do_is_refused_by_name() -> None:
    """A written setting is honoured or refused, never degraded."""
    with pytest.raises(Unsupported, match="no_such_method"):
        ODEBlock(rotation, solver=Solver(method="no_such_method"))(torch.zeros(1, 2))
