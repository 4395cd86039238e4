"""The discrete planar flow: layers that are invertible by constraint and inverted numerically."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

from ctflow.errors import InvalidProblem

__all__ = ["PlanarLayers", "PlanarTransform"]

_ALL = slice(None)
_NEUTRAL = math.log(math.e - 1)  # with it m(0) = 0, so that small weights are near the identity
_DOUBLE = 54  # halvings of an interval that exhaust a float64's digits


class _Layer(NamedTuple):
    """w [D], u [D] with u.w > -1, and b []."""

    w: Tensor
    u: Tensor
    b: Tensor
    overlap: Tensor


class PlanarLayers(nn.Module):
    """K planar layers:  z <- z + u tanh(w . z + b),  log det = log(1 + u . psi).

    Each is a bijection: what is learned is moved along w so that u . w > -1. `push` is the cheap
    direction. For densities of data (maximum likelihood) use `transform.inv`, which puts the cheap
    direction from data to base; its samples are then found by bisection, layer by layer.

    Args:
        dim: Variables, D.
        n_layers: K.

    Cost:
        O(K D) a sample and K operations in a row; the inverse about 60 times that.

    Source:
        Rezende and Mohamed 2015 (arXiv 1505.05770), eqs. 10 to 13 and appendix A.1; Chen et al.
        2018 (arXiv 1806.07366v5), eq. 7.

    Example:
        >>> layers = PlanarLayers(2, 8)
        >>> z = torch.randn(5, 2)
        >>> bool(torch.allclose(layers.pull(layers.push(z)[0]), z, atol=1e-4))
        True
    """

    def __init__(self, dim: int, n_layers: int) -> None:
        """Draw small weights: the map begins near the identity."""
        super().__init__()
        for name, size in (("dim", dim), ("n_layers", n_layers)):
            if type(size) is not int or size < 1:
                raise InvalidProblem(
                    f"`{name}` must be a positive integer, got {size!r}. It counts variables or "
                    "layers."
                )
        self.w = nn.Parameter(torch.randn(n_layers, dim) / math.sqrt(dim))
        self.u = nn.Parameter(torch.randn(n_layers, dim) * 0.1)
        self.b = nn.Parameter(torch.zeros(n_layers))

    @property
    def transform(self) -> PlanarTransform:
        """The layers as a transform whose call is `push`; `.inv` turns it round."""
        return PlanarTransform(self)

    def push(self, z: Tensor, part: slice = _ALL) -> tuple[Tensor, Tensor]:
        """Through the layers.

        Args:
            z: Points, [..., D].
            part: Which layers; all of them if not given.

        Returns:
            Where they are mapped to [..., D], and the log-determinant [...].
        """
        factors = [torch.ones_like(z[..., 0])]
        for layer in self._layers(part):
            h = torch.tanh(z @ layer.w + layer.b)
            factors.append(1 + (1 - h.square()) * layer.overlap)
            z = z + h.unsqueeze(-1) * layer.u
        return z, torch.stack(factors).log().sum(dim=0)

    def pull(self, x: Tensor, part: slice = _ALL) -> Tensor:
        """Back through the layers: the points [..., D] that `push` maps to x [..., D].

        Each layer is one monotone equation in w . z, solved by bisection; gradients pass.
        """
        for layer in reversed(list(self._layers(part))):
            wanted = x @ layer.w
            with torch.no_grad():
                a = _bisect(wanted, layer)
            h = torch.tanh(a + layer.b)  # one step of Newton's polishes, and carries the gradient
            slope = (1 + (1 - h.square()) * layer.overlap).detach()
            a = a - (a + layer.overlap * h - wanted) / slope
            x = x - torch.tanh(a + layer.b).unsqueeze(-1) * layer.u
        return x

    def _layers(self, part: slice) -> Iterator[_Layer]:
        """Some of the layers, with their constraint met."""
        inner = (self.w * self.u).sum(dim=1)
        overlap = softplus(inner + _NEUTRAL) - 1  # m(w . u) > -1: Rezende and Mohamed, A.1
        along = self.w / self.w.square().sum(dim=1, keepdim=True)
        u = self.u + (overlap - inner).unsqueeze(1) * along
        chosen = (self.w[part], u[part], self.b[part], overlap[part])
        for w, u_k, b, o in zip(*chosen, strict=True):
            yield _Layer(w, u_k, b, o)


class PlanarTransform(Transform):
    """`PlanarLayers` as a torch transform; it keeps its last `push`, as torch's caches do.

    Args:
        layers: The layers.
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, layers: PlanarLayers) -> None:
        """Nothing is computed yet."""
        super().__init__()
        self.layers = layers
        self._last: tuple[Tensor, Tensor] | None = None

    def with_cache(self, cache_size: int = 1) -> PlanarTransform:  # noqa: ARG002
        """The transform itself."""
        return self

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.layers.push(x)
        self._last = (x, log_det)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.layers.pull(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """Log-determinant at x [..., D], [...]."""
        last, self._last = self._last, None
        if last is not None and last[0] is x:
            return last[1]
        return self.layers.push(x)[1]


def _bisect(wanted: Tensor, layer: _Layer) -> Tensor:
    """The a with  a + (u . w) tanh(a + b) = wanted, which grows in a; shape of `wanted`."""
    reach = layer.overlap.abs() + 1e-6 * (1 + wanted.abs())
    low, high = wanted - reach, wanted + reach
    for _ in range(_DOUBLE):
        middle = (low + high) / 2
        above = middle + layer.overlap * torch.tanh(middle + layer.b) > wanted
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2
