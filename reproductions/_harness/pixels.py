"""Handwritten digits as points of a continuous space, and bits per dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LEVELS", "N_PIXELS", "Pixels", "Space", "load_pixels"]

N_PIXELS = 64
LEVELS = 17  # grey levels, 0 to 16
_MARGIN = 0.05  # keeps logits finite; Dinh et al. 2017 (arXiv 1605.08803), section 4.1


class Pixels(NamedTuple):
    """Grey levels of images, [n, 64] each: to train with, to stop by, and to test with."""

    train: Tensor
    aside: Tensor
    test: Tensor


def load_pixels(seed: int, n: int | None = None) -> Pixels:
    """scikit-learn's digits, shuffled: a fifth to test, a tenth set aside.

    Args:
        seed: Of the order.
        n: Images in all; None for all 1,797.
    """
    from sklearn.datasets import load_digits  # optional

    images = torch.tensor(load_digits().data, dtype=torch.float32)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    images = images[order[:n]]
    fifth, tenth = len(images) // 5, len(images) // 10
    return Pixels(images[fifth + tenth :], images[fifth : fifth + tenth], images[:fifth])


class Space(NamedTuple):
    """Logits of pixels, whitened by the mean and covariance of the training images.

    Args:
        mean: Of the logits, [64].
        factor: Cholesky factor of their covariance, [64, 64].
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, images: Tensor, seed: int, repeats: int = 20) -> Space:
        """The space in which images [n, 64] have mean zero and covariance one."""
        noise = torch.Generator().manual_seed(seed)
        logits = torch.cat([_logits(_dequantised(images, noise))[0] for _ in range(repeats)])
        covariance = torch.cov(logits.double().t())
        return cls(logits.mean(dim=0), torch.linalg.cholesky(covariance).float())

    def points(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, 64] with fresh noise as points [n, 64], and the map's log-determinant [n]."""
        logits, log_det = _logits(_dequantised(images))
        off = (logits - self.mean).t()
        points = torch.linalg.solve_triangular(self.factor, off, upper=False).t()
        return points, log_det - self.factor.diagonal().log().sum()

    def back(self, points: Tensor) -> Tensor:
        """Grey levels [n, 64], in [0, 17), of points [n, 64]."""
        logits = points @ self.factor.t() + self.mean
        share = (torch.sigmoid(logits) - _MARGIN) / (1 - 2 * _MARGIN)
        return LEVELS * share.clamp(0, 1)

    def bits(self, log_prob: Callable[[Tensor], Tensor], images: Tensor, repeats: int) -> Tensor:
        """Bits per dimension of images [n, 64], [n]: the mean over so many draws of the noise."""
        total = torch.zeros(len(images))
        for _ in range(repeats):
            points, log_det = self.points(images)
            total = total - (log_prob(points) + log_det)
        return total / (repeats * N_PIXELS * math.log(2))


def _dequantised(images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Grey levels with uniform noise, in [0, 17)."""
    return images + torch.rand(images.shape, generator=generator)


def _logits(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of levels [n, 64] in [0, 17], and the map's log-determinant [n]."""
    share = _MARGIN + (1 - 2 * _MARGIN) * levels / LEVELS
    slope = math.log((1 - 2 * _MARGIN) / LEVELS) - share.log() - torch.log1p(-share)
    return torch.logit(share), slope.sum(dim=1)
