"""Likelihoods are those of torch's distributions, and add up."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from ctflow.errors import InvalidProblem, Unsupported
from ctflow.latent import (
    Bernoulli,
    Gaussian,
    Joint,
    Likelihood,
    PoissonProcess,
    homogeneous_log_prob,
)

torch.manual_seed(0)
DECODED = torch.randn(3, 4, 5, 2, dtype=torch.float64)  # three samples of four series
X = torch.randn(4, 5, 2, dtype=torch.float64)
MASK = torch.rand(4, 5, 2) > 0.3


@pytest.mark.parametrize("scale", [0.5, [0.5, 2.0]])
@pytest.mark.parametrize("learned", [False, True])
def test_gaussian_is_the_normal_density_of_what_was_seen(
    scale: float | list[float], learned: bool
) -> None:
    """Summed over times and features, kept for each sample and series."""
    likelihood = Gaussian(scale, learned=learned).double()
    wanted = Normal(DECODED, torch.as_tensor(scale, dtype=torch.float64)).log_prob(X)
    wanted = (wanted * MASK).sum(dim=(-2, -1))
    torch.testing.assert_close(likelihood.log_prob(DECODED, X, MASK), wanted, rtol=1e-6, atol=1e-6)
    assert [p.requires_grad for p in likelihood.parameters()] == [True] * learned


def test_a_learned_scale_ends_at_the_residuals_own() -> None:
    """The maximum over the scale is the root mean square residual."""
    likelihood = Gaussian(1.0, learned=True).double()
    optimiser = torch.optim.LBFGS(likelihood.parameters(), max_iter=50)
    decoded, mask = torch.zeros_like(X), torch.ones_like(MASK)

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = -likelihood.log_prob(decoded, X, mask).sum()
        value.backward()
        return value

    optimiser.step(loss)
    wanted = X.square().mean().sqrt()
    torch.testing.assert_close(likelihood.log_scale.exp(), wanted, rtol=1e-5, atol=0.0)


def test_bernoulli_is_torchs_with_log_odds() -> None:
    """And refuses what is no truth value."""
    x = (X > 0).double()
    wanted = (TorchBernoulli(logits=DECODED).log_prob(x) * MASK).sum(dim=(-2, -1))
    torch.testing.assert_close(Bernoulli().log_prob(DECODED, x, MASK), wanted)
    with pytest.raises(InvalidProblem, match=r"must be 0 or 1, got 0\.5"):
        Bernoulli().log_prob(DECODED, x.fill_(0.5), MASK)


@pytest.mark.parametrize("logit", [1e4, -1e4])
def test_bernoulli_survives_certainty(logit: float) -> None:
    """Gradients stay finite where probabilities round to 0 and 1."""
    decoded = torch.full((1, 1, 1), logit, requires_grad=True)
    one = torch.ones(1, 1, 1)
    Bernoulli().log_prob(decoded, one, one > 0).sum().backward()
    assert bool(torch.isfinite(decoded.grad).all())


def test_joint_likelihoods_add_up() -> None:
    """Each part sees its own features and its own integrals."""
    events = PoissonProcess((0.0, 2.0))
    x = torch.cat([X, (X > 0).double()[..., :1]], dim=-1)
    decoded = torch.cat([DECODED, DECODED[..., :1]], dim=-1)
    mask = torch.cat([MASK, MASK[..., :1]], dim=-1)
    integral = torch.rand(3, 4, 1, dtype=torch.float64)
    both = Joint([(Gaussian(0.5), 2), (events, 1)])
    wanted = Gaussian(0.5).log_prob(DECODED, X, MASK)
    wanted = wanted + events.log_prob(decoded[..., 2:], x[..., 2:], mask[..., 2:], integral)
    torch.testing.assert_close(both.log_prob(decoded, x, mask, integral), wanted)
    assert both.rate(decoded).shape == (3, 4, 5, 1)
    assert torch.equal(both.windows, events.windows)


@pytest.mark.parametrize(
    "windows", [(1.0, 0.0), (0.0, torch.nan), [(0.0, 2.0), (1.0, 3.0)], (0.0, 1.0, 2.0), ()]
)
def test_windows_that_are_no_intervals_are_refused(windows: object) -> None:
    """They must be finite, forwards, in order and apart."""
    with pytest.raises(InvalidProblem, match="`windows`"):
        PoissonProcess(windows)  # pyright: ignore[reportArgumentType]


def test_parts_with_different_windows_are_refused() -> None:
    """One solve integrates over one set of windows."""
    with pytest.raises(InvalidProblem, match="same windows"):
        Joint([(PoissonProcess((0.0, 1.0)), 1), (PoissonProcess((0.0, 2.0)), 1)])


def test_scales_that_are_not_positive_are_refused() -> None:
    """Noise has a positive size."""
    for scale in (0.0, -1.0, torch.nan, [], "small"):
        with pytest.raises(InvalidProblem, match="`scale` must be positive"):
            Gaussian(scale)  # pyright: ignore[reportArgumentType]


def test_a_scale_is_taken_as_a_number() -> None:
    """No graph of another computation comes with it."""
    scale = torch.tensor(0.5, requires_grad=True)
    assert not Gaussian(scale).log_scale.requires_grad  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("parts", [[], [Gaussian(0.1)], [(Gaussian(0.1), 1.5)], [(abs, 1)]])
def test_parts_that_are_no_pairs_are_refused(parts: object) -> None:
    """Of a likelihood and its number of features."""
    with pytest.raises(InvalidProblem, match="`parts` must be pairs"):
        Joint(parts)  # pyright: ignore[reportArgumentType]


def test_a_poisson_process_without_an_integral_is_refused() -> None:
    """Its density would lack a term."""
    events, one = PoissonProcess((0.0, 1.0)), torch.ones(1, 1, 1)
    with pytest.raises(InvalidProblem, match="`integral`"):
        events.log_prob(one, one, one > 0)
    with pytest.raises(InvalidProblem, match="must count events"):
        events.log_prob(one, -one, one > 0, one[0])
    with pytest.raises(Unsupported, match="no values to draw"):
        events.sample(one)


def test_the_homogeneous_fit_is_best_at_the_mean_rate() -> None:
    """Any other rate has a lower density."""
    best = homogeneous_log_prob(20, 5.0, 4.0)
    assert best > homogeneous_log_prob(20, 5.0, 4.1)
    assert best > homogeneous_log_prob(20, 5.0, 3.9)
    assert homogeneous_log_prob(0, 5.0, 0.0) == 0.0  # nothing was expected, and nothing came
    assert homogeneous_log_prob(1, 5.0, 0.0) == -torch.inf
    with pytest.raises(InvalidProblem, match="`duration` and `rate` must be"):
        homogeneous_log_prob(1, 5.0, -1.0)


@pytest.mark.parametrize(
    "likelihood", [Gaussian(0.1), Bernoulli(), PoissonProcess((0.0, 1.0))], ids=type
)
def test_a_decoder_of_another_width_is_refused(likelihood: Likelihood) -> None:
    """Broadcasting would count one output for every feature."""
    x = torch.ones(4, 5, 2, dtype=torch.float64)
    with pytest.raises(InvalidProblem, match="the decoder must give"):
        likelihood.log_prob(DECODED[..., :1], x, MASK, torch.zeros(3, 4, 1))


def test_a_scale_of_another_width_is_refused() -> None:
    """For the same reason."""
    with pytest.raises(InvalidProblem, match="one number or 1, one for each feature, got 2"):
        Gaussian([0.1, 0.2]).log_prob(DECODED[..., :1], X[..., :1], MASK[..., :1])
