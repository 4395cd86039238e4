"""What was not seen, NaN included, reaches no value and no gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ctflow import Solver
from ctflow.backends.protocol import Coupling
from ctflow.errors import InvalidProblem
from ctflow.latent import (
    Bernoulli,
    Gaussian,
    Joint,
    Likelihood,
    Observations,
    PoissonProcess,
    RecurrentModel,
    elbo,
    pad,
)
from ctflow.latent.encoders import Cell
from tests.latent.parts import DTYPE, ENCODERS, irregular, small_model, without_noise

JUNK = [torch.nan, torch.inf, 1e30]


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "gaussian": lambda: Gaussian(0.3, learned=True),
    "bernoulli": Bernoulli,
    "poisson": lambda: PoissonProcess((0.0, 1.5)),
    "joint": lambda: Joint([(Bernoulli(), 1), (PoissonProcess((0.0, 1.5)), 1)]),
}


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    """Of every parameter; zeros where there is none."""
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if g is None else g for g in found]


def bound(model: nn.Module, x: Tensor, t: Tensor, mask: Tensor) -> Tensor:
    """ELBO with the same draw each time."""
    torch.manual_seed(1)
    return elbo(model, x, t, mask).value().sum()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("junk", JUNK)
def test_junk_under_the_mask_changes_no_bound_and_no_gradient(encoder: str, junk: float) -> None:
    """Values and gradients are bit for bit those of zeros in its place."""
    model, (x, t, mask) = small_model(encoder), irregular()
    mask[1, 2:] = False  # a whole tail of one series, and its times
    empty = ~mask.any(dim=2)
    clean = bound(model, x.where(mask, 0.0), t.where(~empty, 0.0), mask)
    dirty = bound(model, x.where(mask, junk), t.where(~empty, junk), mask)
    assert torch.equal(clean, dirty)
    pairs = zip(gradients(model, clean), gradients(model, dirty), strict=True)
    assert all(torch.equal(a, b) and bool(torch.isfinite(b).all()) for a, b in pairs)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("junk", JUNK)
def test_no_likelihood_lets_junk_through(likelihood: str, junk: float) -> None:
    """In the bound and by itself: no value, and no gradient to the decoder, knows of it."""
    model, (x, t, mask) = small_model(likelihood=LIKELIHOODS[likelihood]()), irregular()
    x = (x > 0).to(DTYPE)
    values: list[Tensor] = []
    slopes: list[Tensor] = []
    for stuff in (0.0, junk):
        values.append(bound(model, x.where(mask, stuff), t, mask))
        slopes.append(torch.cat([g.flatten() for g in gradients(model, values[-1])]))
        decoded = torch.ones_like(x, requires_grad=True)
        integral = torch.ones(len(x), 2, dtype=DTYPE)
        alone = model.likelihood.log_prob(decoded, x.where(mask, stuff), mask, integral)
        values.append(alone)
        slopes += torch.autograd.grad(alone.sum(), decoded)
    for found in (values, slopes):
        assert torch.equal(found[0], found[2])
        assert torch.equal(found[1], found[3])
        assert all(bool(torch.isfinite(each).all()) for each in found)


@pytest.mark.parametrize("junk", JUNK)
def test_a_gradient_to_the_data_is_zero_where_nothing_was_seen(junk: float) -> None:
    """And finite where something was."""
    model, (x, t, mask) = small_model(), irregular()
    x = x.where(mask, junk).requires_grad_()
    (g,) = torch.autograd.grad(bound(model, x, t, mask), x)
    assert bool((g[~mask] == 0).all())
    assert bool(torch.isfinite(g).all())
    assert bool((g[mask] != 0).any())


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_junk_under_the_mask_does_not_reach_a_recurrent_model(
    junk: float, gaps: bool, cell: Cell
) -> None:
    """The same for the baselines: density, forecast, and what lies in between."""
    torch.manual_seed(0)
    model = RecurrentModel(2, Gaussian(0.3), 5, gaps=gaps, cell=cell).to(DTYPE)
    x, t, mask = irregular()
    mask[:, :2] = True
    mask[1, 4:] = False
    rows, at = mask.any(dim=2), torch.tensor([2.0, 2.5], dtype=DTYPE)
    found: list[list[Tensor]] = []
    for stuff in (0.0, junk):
        data = x.where(mask, stuff), t.where(rows, stuff), mask
        parts = [model.log_prob(*data), model.predict(*data, at=at), model.between(*data, at=at)]
        found.append([*parts, *gradients(model, torch.cat([p.flatten() for p in parts]).sum())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(bool(torch.isfinite(each).all()) for each in found[1])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_no_posterior(encoder: str) -> None:
    """A series alone and the same one beside a longer one have the same."""
    model, (x, t, mask) = small_model(encoder), irregular()
    mask[1, 3:] = False
    together = model.posterior(x, t, mask)
    alone = model.posterior(x[1:2, :3], t[1:2, :3], mask[1:2, :3])
    torch.testing.assert_close(together.mean[1:2], alone.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.stddev[1:2], alone.stddev, rtol=1e-12, atol=1e-12)


EACH = [(encoder, "gaussian", "per_sample") for encoder in ENCODERS]
EACH += [("gru", likelihood, "per_sample") for likelihood in LIKELIHOODS]
EACH += [("gru", "joint", "shared"), ("ode-rnn", "poisson", "shared")]


@pytest.mark.parametrize(("encoder", "likelihood", "coupling"), EACH)
def test_ragged_series_have_the_bounds_and_gradients_that_each_has_alone(
    encoder: str, likelihood: str, coupling: Coupling
) -> None:
    """Padded side by side, with times of their own in other numbers, down to one observation."""
    solver = Solver(rtol=1e-9, atol=1e-9, coupling=coupling)
    model = without_noise(small_model(encoder, LIKELIHOODS[likelihood](), solver=solver))
    x, t, mask = irregular()
    lengths = (6, 1, 4, 3)
    series = [(x[b, :n].gt(0).to(DTYPE), t[b, :n]) for b, n in enumerate(lengths)]
    padded, times, _ = pad([t for _, t in series], [x for x, _ in series])
    together = elbo(model, padded, times, mask & (times > 0).unsqueeze(-1)).value()
    alone = torch.cat(
        [
            elbo(model, x.unsqueeze(0), t.unsqueeze(0), mask[b : b + 1, : len(t)]).value()
            for b, (x, t) in enumerate(series)
        ]
    )
    torch.testing.assert_close(together, alone, rtol=1e-7, atol=1e-7)
    found, wanted = (
        torch.cat([g.flatten() for g in gradients(model, v.sum())]) for v in (together, alone)
    )
    torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-6 * wanted.norm().item())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_one_observation_is_enough(encoder: str) -> None:
    """Even at t0 itself, where no time is left to pass."""
    model = small_model(encoder)
    x = torch.ones(2, 1, 2, dtype=DTYPE)
    for t in (torch.tensor([0.0]), torch.tensor([[0.0], [0.7]])):
        assert bool(torch.isfinite(bound(model, x, t.to(DTYPE), torch.ones(2, 1) > 0)))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_empty_series_is_refused_by_every_encoder(encoder: str) -> None:
    """Nothing but the prior is known of it."""
    x, t, mask = irregular()
    mask[2] = False
    with pytest.raises(InvalidProblem, match="none for sample 2"):
        small_model(encoder).posterior(x, t, mask)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_observations_before_the_latent_state_are_refused(encoder: str) -> None:
    """The message names the time and the sample."""
    x, t, mask = irregular()
    with pytest.raises(InvalidProblem, match=r"sample 0.*earlier t0"):
        small_model(encoder, t0=5.0).posterior(x, t, mask)


def test_times_at_which_nothing_was_seen_are_not_decoded() -> None:
    """The bound is that of every time decoded, and the decoder works on a part of them."""
    model, (x, t, mask) = small_model(), irregular()
    mask[:, [1, 3, 4]] = False
    mask[0, 5] = False
    asked: list[list[int]] = []
    inner = model.decoder

    def decoder(z: Tensor) -> Tensor:
        asked.append(list(z.shape))
        return inner(z)

    del model.decoder  # a submodule, which a function cannot replace
    model.decoder = decoder
    torch.manual_seed(1)
    found = elbo(model, x, t, mask, n_samples=2)
    assert asked == [[2, 4, 3, 3]]
    torch.manual_seed(1)
    data = Observations(x, t, mask)
    z0 = model.encoder(data, model.t0).rsample((2,))
    z = model.trajectory(z0, torch.where(data.rows, data.t, model.t0))
    whole = model.likelihood.log_prob(inner(z), data.x, data.seen).mean(dim=0)
    torch.testing.assert_close(found.log_likelihood, whole, rtol=1e-12, atol=1e-12)
