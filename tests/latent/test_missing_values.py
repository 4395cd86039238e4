"""What was not seen, NaN included, reaches no value and no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ctflow.errors import InvalidProblem
from ctflow.latent import Gaussian, Observations, RecurrentModel, elbo
from tests.latent.parts import DTYPE, ENCODERS, irregular, small_model

JUNK = [torch.nan, torch.inf, 1e30]


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
def test_junk_under_the_mask_does_not_reach_a_recurrent_model(junk: float, gaps: bool) -> None:
    """The same for the baselines."""
    torch.manual_seed(0)
    model = RecurrentModel(2, Gaussian(0.3), 5, gaps=gaps).to(DTYPE)
    x, t, mask = irregular()
    mask[:, :2] = True
    clean = model.log_prob(x.where(mask, 0.0), t, mask).sum()
    dirty = model.log_prob(x.where(mask, junk), t, mask).sum()
    assert torch.equal(clean, dirty)
    pairs = zip(gradients(model, clean), gradients(model, dirty), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_nothing(encoder: str) -> None:
    """A series alone and the same one beside a longer one have the same posterior and bound."""
    model, (x, t, mask) = small_model(encoder), irregular()
    mask[1, 3:] = False
    together = model.posterior(x, t, mask)
    alone = model.posterior(x[1:2, :3], t[1:2, :3], mask[1:2, :3])
    torch.testing.assert_close(together.mean[1:2], alone.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(together.stddev[1:2], alone.stddev, rtol=1e-12, atol=1e-12)


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
