"""Any continuous distribution over events can be the base, whatever its support is made of."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    Categorical,
    Distribution,
    ExpTransform,
    Independent,
    Laplace,
    LowRankMultivariateNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
    Uniform,
)

from ctflow import Solver
from ctflow.dynamics import MLP
from ctflow.flows import ContinuousFlow

FLOAT = torch.float64
ZERO, ONE = torch.zeros(2, dtype=FLOAT), torch.ones(2, dtype=FLOAT)
SHIFT = torch.tensor([3.0, -5.0], dtype=FLOAT)
STEPS = Solver(method="rk4", step=0.5)


def shift(t: Tensor, z: Tensor) -> Tensor:
    """Everything moves alike."""
    return SHIFT.expand(z.shape)


def box(validate: bool = True) -> Independent:
    """Uniform on the unit square."""
    return Independent(Uniform(ZERO, ONE, validate_args=validate), 1)


def boxes(validate: bool = True) -> MixtureSameFamily:
    """The unit square, and one of side two around it."""
    sides = torch.tensor([[1.0, 1.0], [2.0, 2.0]], dtype=FLOAT)
    parts = Independent(Uniform(torch.zeros_like(sides), sides, validate_args=validate), 1)
    return MixtureSameFamily(Categorical(ONE), parts, validate_args=validate)


def split() -> Independent:
    """Each coordinate between 0 and 1 or between 1 and 3."""
    low, high = torch.tensor([[0.0, 1.0]] * 2), torch.tensor([[1.0, 3.0]] * 2)
    mixture = MixtureSameFamily(Categorical(torch.ones(2, 2)), Uniform(low.to(FLOAT), high))
    return Independent(mixture, 1)


class Unsaid(Distribution):
    """A density whose support is not told."""

    arg_constraints = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__((), (2,), validate_args=False)

    def expand(self, batch_shape: object, _instance: object = None) -> Distribution:
        """The same: it has no batch."""
        return self

    def log_prob(self, value: Tensor) -> Tensor:
        """A Gaussian's, but for its normaliser."""
        return -value.square().sum(dim=-1)


@pytest.mark.parametrize(
    "base",
    [
        MultivariateNormal(ZERO, torch.eye(2, dtype=FLOAT)),
        LowRankMultivariateNormal(ZERO, ONE.unsqueeze(1), ONE),
        Independent(StudentT(3 * ONE), 1),
        Independent(Laplace(ZERO, ONE), 1),
        MixtureSameFamily(Categorical(ONE), Independent(Normal(torch.stack([ZERO, ONE]), 1.0), 1)),
        TransformedDistribution(Independent(Normal(ZERO, ONE), 1), [ExpTransform()]),
        TransformedDistribution(MultivariateNormal(ZERO, torch.eye(2)), [ExpTransform()]),
        ContinuousFlow(Independent(Normal(ZERO, ONE), 1), MLP(2, (4,)).double(), solver=STEPS),
        box(),
        Unsaid(),
    ],
    ids=lambda base: type(base).__name__,
)
def test_a_shift_moves_the_density_of_any_base(base: Distribution) -> None:
    """log p(x) = log p0(x - shift), as the base itself has it."""
    z = torch.tensor([[0.3, 0.8], [0.9, 0.1], [0.5, 0.5]], dtype=FLOAT)
    found = ContinuousFlow(base, shift, solver=STEPS).log_prob(z + SHIFT)
    assert torch.allclose(found, base.log_prob(z), rtol=1e-10)


QUARTER = math.log(0.25)


@pytest.mark.parametrize(
    ("base", "points", "wanted"),
    [
        (box(), [[0.5, 0.5], [1.5, 0.5]], [0.0, -math.inf]),
        (boxes(), [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]], [math.log(0.625), math.log(0.125), -1e999]),
        (boxes(False), [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]], [math.log(0.625), -2.0794415, -1e999]),
        (split(), [[0.5, 2.0], [0.5, 0.5], [0.5, 4.0]], [1.5 * QUARTER, QUARTER, -math.inf]),
        (
            TransformedDistribution(box(), [AffineTransform(1.0, 2.0, event_dim=1)]),
            [[1.5, 2.0], [0.5, 2.0]],
            [QUARTER, -math.inf],
        ),
        (
            TransformedDistribution(box(), [AffineTransform(1.0, 2.0), AffineTransform(0.0, 2.0)]),
            [[3.0, 4.0], [0.5, 2.0]],
            [2 * QUARTER, -math.inf],
        ),
        (
            TransformedDistribution(Independent(Normal(ZERO, ONE), 1), [ExpTransform()]),
            [[1.0, 1.0], [-1.0, 1.0]],
            [-math.log(2 * math.pi), -math.inf],
        ),
        (ContinuousFlow(box(), shift, solver=STEPS), [[3.5, -4.5], [0.5, 0.5]], [0.0, -math.inf]),
    ],
)
def test_off_the_support_is_where_the_base_has_no_density(
    base: Distribution, points: list[list[float]], wanted: list[float]
) -> None:
    """A mixture's support is all that one of its parts has; one inside another counts too."""
    z = torch.tensor(points, dtype=FLOAT)
    found = ContinuousFlow(base, shift, solver=STEPS).log_prob(z + SHIFT)
    assert torch.allclose(found, torch.tensor(wanted, dtype=FLOAT), rtol=1e-6)


def test_gradients_stay_finite_where_one_part_of_a_mixture_has_no_density() -> None:
    """With respect to its weights and to the points."""
    weights = torch.tensor([0.3, -0.2], dtype=FLOAT, requires_grad=True)
    base = MixtureSameFamily(Categorical(logits=weights), boxes().component_distribution)
    x = (torch.tensor([[0.5, 0.5], [1.5, 0.5], [2.5, 0.5]], dtype=FLOAT) + SHIFT).requires_grad_()
    found = ContinuousFlow(base, shift, solver=STEPS).log_prob(x)
    inner = torch.isfinite(found)
    of_weights, of_x = torch.autograd.grad(found[inner].sum(), [weights, x])
    wanted = torch.logsumexp(weights - torch.tensor([0.0, math.log(4)]), 0) + weights[1]
    (known,) = torch.autograd.grad(wanted - 2 * torch.logsumexp(weights, 0), weights)
    assert inner.tolist() == [True, True, False]
    assert torch.allclose(of_weights, known, rtol=1e-6)
    assert float(of_x.abs().max()) == 0.0


def test_samples_of_a_mixture_of_boxes_have_a_density() -> None:
    """Wherever they come from."""
    flow = ContinuousFlow(boxes(), shift, solver=STEPS)
    torch.manual_seed(0)
    x = flow.sample((200,))
    found = flow.log_prob(x)
    assert torch.isfinite(found).all()
    assert len(found.unique()) > 1
