"""How well a model of spirals does: errors beyond the data, and what its latent space holds."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from _harness.spiral_training import Trained, data_of
from _harness.spirals import N_SEEN, RADIUS
from ctflow.latent import LatentODE

__all__ = ["Scores", "crossings", "forecast", "scores_of", "traversal", "two_means"]


class Scores(NamedTuple):
    """One trained model on the test spirals; errors are root mean squares of a coordinate.

    Attributes:
        model: Its name.
        points: Observed points.
        seed: Its seed.
        extrapolation: On the 100 points after the observed revolution, against clean truth.
        extrapolation_noisy: Against noisy points.
        relative: Against clean truth, over the radius at the start.
        reconstruction: Of a latent ODE on the observed revolution, clean truth; 0 for an RNN.
        two_means: Of a latent ODE: share of test spirals on whose direction two clusters of
            posterior means agree; 0 for an RNN.
        neighbours: Of a latent ODE: share of test spirals whose nearest other posterior mean has
            the same direction; 0 for an RNN.
        seconds: Of training.
        loss: At the end of training, nats for each series.
    """

    model: str
    points: int
    seed: int
    extrapolation: float
    extrapolation_noisy: float
    relative: float
    reconstruction: float
    two_means: float
    neighbours: float
    seconds: float
    loss: float


@torch.no_grad()
def scores_of(trained: Trained) -> Scores:
    """Measure a model on the test spirals."""
    job, model = trained.job, trained.model
    _, test = data_of(job)
    beyond = slice(N_SEEN, 2 * N_SEEN)
    found = forecast(trained, test.t[beyond])
    clean = _rms(found - test.truth[:, beyond])
    reconstruction = clusters = neighbours = 0.0
    if isinstance(model, LatentODE):
        x, t, mask = test.observed
        reconstruction = _rms(model.predict(x, t, mask, at=t) - test.truth[:, :N_SEEN])
        means = model.posterior(x, t, mask).mean
        clusters = _agreement(two_means(means), test.direction)
        distance = torch.cdist(means, means).fill_diagonal_(torch.inf)
        same = test.direction[distance.argmin(dim=1)] == test.direction
        neighbours = same.double().mean().item()
    return Scores(
        job.model,
        job.points,
        job.seed,
        clean,
        _rms(found - test.noisy[:, beyond]),
        clean / RADIUS,
        reconstruction,
        clusters,
        neighbours,
        trained.seconds,
        trained.losses[-1],
    )


@torch.no_grad()
def forecast(trained: Trained, at: Tensor) -> Tensor:
    """What a model expects of the test spirals at times after those seen, [N, T', 2]."""
    _, test = data_of(trained.job)
    x, t, mask = test.observed
    return trained.model.predict(x, t, mask, at=at)


@torch.no_grad()
def traversal(trained: Trained, n: int = 8) -> Tensor:
    """Decoded paths [n, T, 2] while one latent variable goes from end to end.

    Of each variable, through the posterior means of twenty test spirals, the first traversal is
    taken that turns from one direction to the other once, with the widest path at its narrower
    end; without any such, the one that is widest there.
    """
    _, test = data_of(trained.job)
    model = trained.model
    if not isinstance(model, LatentODE):
        raise TypeError("only a latent ODE has a latent space")
    x, t, mask = test.observed
    means = model.posterior(x, t, mask).mean
    bases = means[:20]
    ways = [_along(bases, means[:, k], k, n) for k in range(means.shape[1])]
    starts = torch.stack(ways)  # [L, 20, n, L]
    z = model.trajectory(starts.reshape(-1, means.shape[1]), test.t[:N_SEEN])
    paths = model.likelihood.mean(model.decoder(z)).reshape(-1, n, *z.shape[1:2], 2)
    area = _areas(paths)
    once = _sign_changes(area) == 1
    width = area[:, [0, -1]].abs().amin(dim=1)
    return paths[int((width + 1e6 * once).argmax())]


def crossings(trained: Trained) -> int:
    """How often the signed area of the traversed paths changes its sign, from one to the next."""
    return int(_sign_changes(_areas(traversal(trained).unsqueeze(0)))[0])


def _along(bases: Tensor, spread: Tensor, place: int, n: int) -> Tensor:
    """Bases [S, L] with one variable at n values from its least to its largest, [S, n, L]."""
    starts = bases.unsqueeze(1).repeat(1, n, 1)
    starts[:, :, place] = torch.linspace(float(spread.min()), float(spread.max()), n)
    return starts


def _areas(paths: Tensor) -> Tensor:
    """Signed area that each path [..., T, 2] sweeps about the origin, [...]."""
    step = paths.diff(dim=-2)
    swept = paths[..., :-1, 0] * step[..., 1] - paths[..., :-1, 1] * step[..., 0]
    return 0.5 * swept.sum(dim=-1)


def _sign_changes(area: Tensor) -> Tensor:
    """How often a row of areas [S, n] changes its sign, [S]."""
    sign = torch.sign(area)
    return (sign[:, 1:] != sign[:, :-1]).sum(dim=1)


def two_means(x: Tensor, n_starts: int = 10) -> Tensor:
    """Which of two clusters each row of x [N, L] belongs to: Lloyd's rule, best of some starts."""
    generator = torch.Generator().manual_seed(0)
    best, lowest = torch.zeros(len(x), dtype=torch.long), torch.inf
    for _ in range(n_starts):
        centres = x[torch.randperm(len(x), generator=generator)[:2]]
        for _ in range(50):
            label = torch.cdist(x, centres).argmin(dim=1)
            centres = torch.stack(
                [x[label == k].mean(0) if bool((label == k).any()) else centres[k] for k in (0, 1)]
            )
        spread = float(torch.cdist(x, centres).min(dim=1).values.square().sum())
        if spread < lowest:
            best, lowest = torch.cdist(x, centres).argmin(dim=1), spread
    return best


def _agreement(label: Tensor, direction: Tensor) -> float:
    share = ((2.0 * label - 1.0) == direction).double().mean().item()
    return max(share, 1 - share)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
