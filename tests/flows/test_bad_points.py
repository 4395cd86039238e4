"""A point that cannot be followed is named, and the rest of the batch is right."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.distributions import Gamma, Independent, Normal, Uniform

from ctflow import SolveFailed, Solver, Status
from ctflow.errors import InvalidProblem
from ctflow.flows import ContinuousFlow, log_density

FLOAT = torch.float64
GOOD = [0, 2, 3]


def standard() -> Independent:
    """The standard normal distribution in the plane."""
    return Independent(Normal(torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)), 1)


class Exploding(torch.nn.Module):
    """z' = a z, and past z_0 = 2 a blow-up in finite time (backwards as well as forwards)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(-0.3, dtype=FLOAT))

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        wild = torch.where(z[:, :1] > 2, -((z - 2) ** 2) * 50, torch.zeros_like(z))
        return self.a * z + wild


def batch(bad: list[float]) -> Tensor:
    """Four points, of which number 1 is bad."""
    x = torch.tensor([[0.5, 0.1], [0.0, 0.0], [-1.0, 1.0], [1.2, -0.4]], dtype=FLOAT)
    x[1] = torch.tensor(bad)
    return x


@pytest.mark.parametrize("bad", [[torch.nan, 0.0], [0.0, torch.inf]])
def test_a_point_that_is_not_finite_is_named(bad: list[float]) -> None:
    """`log_prob` refuses the batch and says which one it is."""
    flow = ContinuousFlow(standard(), lambda t, z: -z)
    with pytest.raises(InvalidProblem, match=r"`value` must be finite, got sample 1 .*1 of 4"):
        flow.log_prob(batch(bad))
    with pytest.raises(InvalidProblem, match=r"got sample \[0, 1\] with"):
        flow.log_prob(batch(bad).reshape(2, 2, 2).transpose(0, 1)[None, :, 0])


def test_the_other_points_of_a_batch_with_nan_are_right() -> None:
    """Values, and gradients of the field's parameters."""
    field = Exploding()
    flow = ContinuousFlow(standard(), field)
    x = batch([torch.nan, 0.0])
    found = log_density(flow, x)
    wanted = flow.log_prob(x[GOOD])
    assert found.status.tolist() == [0, int(Status.NON_FINITE), 0, 0]
    assert found.value[1].isnan()
    assert torch.allclose(found.value[GOOD], wanted, rtol=1e-12)
    (gradient,) = torch.autograd.grad(found.value[GOOD].sum(), field.a)
    (alone,) = torch.autograd.grad(wanted.sum(), field.a)
    assert torch.allclose(gradient, alone, rtol=1e-8)


COMPILED = [pytest.mark.compiler, pytest.mark.slow]


@pytest.mark.parametrize(
    ("backend", "gradient"),
    [
        ("native", "direct"),
        ("native", "checkpointed"),
        ("native", "adjoint"),
        pytest.param("compiled", "direct", marks=COMPILED),
        pytest.param("compiled", "checkpointed", marks=COMPILED),
    ],
)
def test_a_point_that_blows_up_spoils_no_other(backend: str, gradient: str) -> None:
    """The status says which; the rest keeps its values and gradients."""
    field = Exploding()
    solver = Solver(backend, gradient=gradient, max_steps=60)
    flow = ContinuousFlow(standard(), field, solver=solver)
    x = batch([4.0, 0.0])
    found = log_density(flow, x)
    wanted = flow.log_prob(x[GOOD])
    assert (found.status != 0).tolist() == [False, True, False, False]
    assert found.value[1].isnan()
    assert found.z[1].isnan().all()
    assert torch.allclose(found.value[GOOD], wanted, rtol=1e-12)
    (gradient_found,) = torch.autograd.grad(found.value[GOOD].sum(), field.a)
    (alone,) = torch.autograd.grad(wanted.sum(), field.a)
    assert torch.allclose(gradient_found, alone, rtol=1e-6)


def test_log_prob_raises_with_the_partial_solution() -> None:
    """The message names the sample; the solution has the others."""
    flow = ContinuousFlow(standard(), Exploding(), solver=Solver(max_steps=60))
    with pytest.raises(SolveFailed, match="sample 1 stopped with") as caught:
        flow.log_prob(batch([4.0, 0.0]))
    assert (caught.value.solution.status != 0).tolist() == [False, True, False, False]
    assert torch.isfinite(caught.value.solution.y[0][-1][GOOD]).all()


@pytest.mark.parametrize("ask", ["log_prob", "trajectory", "transform"])
def test_a_failed_sample_of_a_wide_batch_is_named_by_its_place(ask: str) -> None:
    """By its indices, and not only by its row."""
    flow = ContinuousFlow(standard(), Exploding(), solver=Solver(max_steps=60))
    x = batch([4.0, 0.0]).reshape(2, 2, 2)
    follow = {
        "log_prob": flow.log_prob,
        "trajectory": lambda x: flow.trajectory(x, (1.0, 0.0)),
        "transform": flow.transform.inv,
    }[ask]
    with pytest.raises(SolveFailed, match=r"of shape \[2, 2\] it is sample \[0, 1\]"):
        follow(x)


@pytest.mark.parametrize("validate", [True, False])
def test_minus_infinity_means_off_the_support(validate: bool) -> None:
    """The base would raise, or return a number; the others are right, and gradients finite."""
    low, high = torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)
    base = Independent(Uniform(low, high, validate_args=validate), 1)
    field = Exploding()
    flow = ContinuousFlow(base, field)  # z(0) = x e^{0.3}
    x = torch.tensor([[0.2, 0.3], [0.9, 0.5], [-0.1, 0.5], [0.7, 0.7]], dtype=FLOAT)
    found = flow.log_prob(x)
    inside = [True, False, False, True]
    assert torch.isfinite(found).tolist() == inside
    assert found[[1, 2]].tolist() == [-torch.inf] * 2
    assert torch.allclose(found[[0, 3]], torch.tensor(0.6, dtype=FLOAT), rtol=1e-6)
    (gradient,) = torch.autograd.grad(found[[0, 3]].sum(), field.a)
    assert torch.allclose(gradient, torch.tensor(-4.0, dtype=FLOAT), rtol=1e-6)


def test_gradients_stay_finite_beside_a_point_off_the_support() -> None:
    """Where the base's own density is NaN there, in value and in gradient."""
    rate = torch.ones(2, dtype=FLOAT, requires_grad=True)
    base = Independent(Gamma(2 * torch.ones(2, dtype=FLOAT), rate, validate_args=False), 1)
    flow = ContinuousFlow(base, lambda t, z: -0.1 * z)
    x = torch.tensor([[1.0, 2.0], [-1.0, 1.0]], dtype=FLOAT)
    found = flow.log_prob(x)
    (gradient,) = torch.autograd.grad(found[torch.isfinite(found)].sum(), rate)
    assert found[1] == -torch.inf
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()


def test_everything_off_the_support_is_minus_infinity() -> None:
    """Nothing is left to ask the base about."""
    base = Independent(Uniform(torch.zeros(1, dtype=FLOAT), torch.ones(1, dtype=FLOAT)), 1)
    flow = ContinuousFlow(base, lambda t, z: 0 * z)
    assert flow.log_prob(torch.tensor([[2.0], [-3.0]], dtype=FLOAT)).tolist() == [-torch.inf] * 2


def test_a_failed_sample_of_the_base_is_named() -> None:
    """Sampling cannot leave one out."""
    flow = ContinuousFlow(standard(), lambda t, z: z**2 * 100, solver=Solver(max_steps=60))
    torch.manual_seed(0)
    with pytest.raises(SolveFailed, match=r"sample [0-9]+ stopped"):
        flow.sample((20,))


@pytest.mark.parametrize("backend", ["native", "torchdiffeq", "scipy"])
def test_shared_steps_say_how_to_find_the_sample(backend: str) -> None:
    """All samples fail together, so none is named; the message has the way out."""
    solver = Solver(backend, coupling="shared", max_steps=60)
    flow = ContinuousFlow(standard(), Exploding(), solver=solver)
    said = r"one sample that fails .* coupling='per_sample'"
    with pytest.raises(SolveFailed, match=said) as caught:
        flow.log_prob(batch([4.0, 0.0]))
    assert len(caught.value.solution.stops) == 1
    assert log_density(flow, batch([4.0, 0.0])).status.ne(0).all()
