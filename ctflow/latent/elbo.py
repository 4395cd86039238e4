"""The evidence lower bound: what training a latent model maximises."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from ctflow.errors import InvalidProblem
from ctflow.latent.checks import check_count
from ctflow.latent.likelihoods import Likelihood
from ctflow.latent.model import LatentODE
from ctflow.latent.observations import Observations

__all__ = ["ELBO", "KL", "annealed", "elbo"]

KL = Literal["analytic", "sampled"]


class ELBO(NamedTuple):
    """The two parts of the bound, in nats for each series.

    Attributes:
        log_likelihood: E_q[log p(data | z)], mean over the samples, [B].
        kl: KL(q || p), [B].
    """

    log_likelihood: Tensor
    kl: Tensor

    def value(self, beta: float = 1.0) -> Tensor:
        """log_likelihood - beta * kl, [B]: at beta = 1 a lower bound of log p(data)."""
        return self.log_likelihood - beta * self.kl


def elbo(
    model: LatentODE,
    x: Tensor,
    t: Tensor,
    mask: Tensor | None = None,
    *,
    given: Tensor | None = None,
    n_samples: int = 1,
    kl: KL = "analytic",
) -> ELBO:
    """Evidence lower bound of each series:  E_q[log p(x | z)] - KL(q(z(t0) | x) || p(z(t0))).

    Args:
        model: Its encoder, prior, path and likelihood are used.
        x: Values, [B, T, D].
        t: Times, [T] or [B, T], at or after the model's t0.
        mask: True where a value was seen, [B, T] or [B, T, D]; None: everywhere.
        given: True where the encoder may look at what was seen, [B, T] or [B, T, D]; None:
            everywhere. With a part of the data q learns to foretell the rest, and the bound holds.
        n_samples: Latent states drawn for each series; all take part in one solve.
        kl: "analytic" in closed form, or "sampled": log q - log p at the same samples, as the paper
            writes it; unbiased, and without noise of its own where q is the true posterior.

    Returns:
        Its two parts; `elbo(...).value(beta)` weighs them, with `annealed` for example.

    Raises:
        InvalidProblem: If the observations make no sense, or lie before t0 or outside the
            likelihood's windows.
        SolveFailed: If a path did not reach the last time.

    Cost:
        One solve for n_samples * B paths, whatever the likelihood.

    Source:
        Kingma, Welling 2014 (arXiv 1312.6114), eqs. 2 and 3; Chen et al. 2018, section 5.

    Example:
        >>> from torch import nn
        >>> from ctflow.dynamics import MLP
        >>> from ctflow.latent import Gaussian, RNNEncoder
        >>> model = LatentODE(RNNEncoder(1, 2), MLP(2, (8,)), nn.Linear(2, 1), Gaussian(), latent=2)
        >>> bound = elbo(model, torch.zeros(5, 10, 1), torch.linspace(0, 1, 10), n_samples=3)
        >>> bound.value(beta=0.5).shape
        torch.Size([5])
    """
    check_count(n_samples)
    data = Observations(x, t, mask)
    _check_windows(model.likelihood, data)
    data.require_from(model.t0)  # an encoder sees no more than a part
    q = model.encoded(data if given is None else _part(data, given))
    z0 = q.rsample((n_samples,))
    path = model.path(z0, data.t if data.t.dim() == 1 else _inside(data, model.t0))
    z, data = _seen(path.z, data)
    fits = model.likelihood.log_prob(model.decoder(z), data.x, data.seen, path.integral)
    return ELBO(fits.mean(dim=0), _kl(q, model.prior, z0, kl))


def _seen(z: Tensor, data: Observations) -> tuple[Tensor, Observations]:
    """States [..., B, T, L] and data at the times of each series that hold anything.

    The others say nothing about the model, and to decode them costs as much.
    """
    order = data.order
    if order.shape[1] == z.shape[-2]:
        return z, data
    places = order.unsqueeze(-1).expand(*z.shape[:-2], -1, z.shape[-1])
    return z.gather(-2, places), data.packed()


def annealed(step: int, n_steps: int, start: float = 0.0) -> float:
    """Weight of the KL that grows linearly from `start` at step 0 to 1 at `n_steps`, and stays.

    Raises:
        InvalidProblem: If the step is negative, which would give less than `start`.

    Example:
        >>> annealed(50, 100), annealed(200, 100)
        (0.5, 1.0)
    """
    if step < 0:
        raise InvalidProblem(f"`step` must not be negative, got {step}. Count from 0.")
    return 1.0 if step >= n_steps else start + (1.0 - start) * step / n_steps


def _part(data: Observations, given: Tensor) -> Observations:
    """What the encoder is shown of the data."""
    if given.dtype != torch.bool or given.shape not in (data.x.shape, data.x.shape[:2]):
        raise InvalidProblem(
            f"`given` must be bool [B, T] or [B, T, D], got {given.dtype} {list(given.shape)} for "
            f"`x` of shape {list(data.x.shape)}. Write given=mask & part."
        )
    rows = given if given.dim() == 3 else given.unsqueeze(-1)
    return Observations(data.x, data.t, rows & data.seen)


def _inside(data: Observations, t0: float) -> Tensor:
    """Times [B, T], with t0 where nothing was seen."""
    return torch.where(data.rows, data.t, t0)


def _kl(q: Normal, p: Normal, z0: Tensor, kind: KL) -> Tensor:
    if kind == "analytic":
        return kl_divergence(q, p).sum(dim=-1)
    if kind == "sampled":
        return (q.log_prob(z0) - p.log_prob(z0)).sum(dim=-1).mean(dim=0)
    raise InvalidProblem(f"`kl` must be 'analytic' or 'sampled', got {kind!r}. Choose one.")


def _check_windows(likelihood: Likelihood, data: Observations) -> None:
    """Refuse events that were seen when nobody watched."""
    if likelihood.windows is None:
        return
    windows = likelihood.windows.to(data.t)
    times = data.times.unsqueeze(-1)
    inside = ((times >= windows[:, 0]) & (times <= windows[:, 1])).any(dim=-1)
    wrong = data.rows & ~inside
    if bool(wrong.any()):
        b, i = wrong.nonzero()[0].tolist()
        raise InvalidProblem(
            f"events must lie inside the windows {windows.tolist()}, got t="
            f"{data.times[b, i].item():g} in sample {b}. Widen the windows, or mask the event."
        )
