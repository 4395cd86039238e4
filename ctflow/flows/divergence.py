"""Divergences of a vector field: exact, by Hutchinson's estimator, and by Hutch++."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.flows.noise import Law, draw_seed, probes

__all__ = [
    "Divergence",
    "Exact",
    "Field",
    "HutchPlusPlus",
    "Hutchinson",
    "KnowsDivergence",
    "Rates",
]

Field = Callable[[Tensor], Tensor]
"""A vector field at one time: states [N, ...] to derivatives [N, ...], row by row."""


class Rates(NamedTuple):
    """What changes along a path at one place.

    Attributes:
        velocity: dz/dt, [N, ...].
        divergence: Trace of its Jacobian, exact or estimated, [N].
        jacobian: Gives the squared Frobenius norm of its Jacobian, exact or estimated, [N].
    """

    velocity: Tensor
    divergence: Tensor
    jacobian: Callable[[], Tensor]


@runtime_checkable
class Divergence(Protocol):
    """How the divergence is found: what is drawn once for a solve, and what is done at each place.

    Strategies are frozen dataclasses; the noise travels beside the state, so that the integrand is
    one fixed function of time (arXiv 1810.01367, section 3.1).
    """

    def draw(self, field: Field, z: Tensor) -> Tensor | None:
        """Noise for one solve that starts at z [N, ...]; None where there is none."""
        ...

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:
        """Velocity, divergence and Jacobian at z [N, ...]."""
        ...


@runtime_checkable
class KnowsDivergence(Protocol):
    """A field that knows its own divergence in closed form."""

    def with_divergence(self, t: Tensor, z: Tensor, *context: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [N, ...] and its divergence [N]."""
        ...


@dataclass(frozen=True)
class Exact:
    """The trace itself, from D directional derivatives by autograd.

    Args:
        mode: "reverse" takes D vector-Jacobian products, "forward" D Jacobian-vector products at
            once. They give the same numbers. Reverse is the cheaper in eager torch wherever we
            measured (D from 2 to 64: 1.2 to 6 times), so it is the default.

    Cost:
        D products of about the cost of one evaluation each.

    Example:
        >>> z = torch.randn(5, 3)
        >>> Exact().rates(torch.sin, z, None).divergence.allclose(torch.cos(z).sum(dim=1))
        True
    """

    mode: Literal["reverse", "forward"] = "reverse"

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in ("reverse", "forward"):
            raise InvalidProblem(
                f"`mode` must be 'reverse' or 'forward', got {self.mode!r}. Both are exact."
            )

    def draw(self, field: Field, z: Tensor) -> None:
        """Nothing is random."""

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:  # noqa: ARG002
        """Velocity, trace and squared Frobenius norm."""
        size = z[0].numel()
        if self.mode == "reverse":
            return self._reverse(field, z, size)
        return self._forward(field, z, size)

    def _reverse(self, field: Field, z: Tensor, size: int) -> Rates:
        velocity, pull = _vjp(field, z)
        rows = [pull(basis)[0].flatten(1) for basis in _basis(z, size)]
        trace = _total([row[:, i] for i, row in enumerate(rows)])
        return Rates(velocity, trace, lambda: _total([_square(row) for row in rows]))

    def _forward(self, field: Field, z: Tensor, size: int) -> Rates:
        bases = torch.stack(_basis(z, size))

        def along(basis: Tensor) -> tuple[Tensor, Tensor]:
            found: Any = torch.func.jvp(field, (z,), (basis,))
            return found[0], found[1]

        both = torch.vmap(along, out_dims=(None, 0))  # pyright: ignore[reportArgumentType] - None is allowed
        with warnings.catch_warnings():  # torch's first jvp compiles something with torch.jit
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            velocity, columns = both(bases)
        flat = columns.flatten(2)  # [D, N, D]
        trace = flat.diagonal(dim1=0, dim2=2).sum(dim=1)
        return Rates(velocity, trace, lambda: flat.square().sum(dim=(0, 2)))


@dataclass(frozen=True)
class Hutchinson:
    """The mean of e^T (df/dz) e over K random probes e: unbiased, at K products an evaluation.

    The probes are drawn once for a solve. They belong to the samples and not to the rows, so that
    the estimate of a sample depends neither on its place in the batch nor on its neighbours.

    Args:
        n_probes: K; the sum is divided by it.
        law: "rademacher" has the smaller variance for most matrices: 2 times the squared
            off-diagonal entries of the symmetric part, where "gaussian" has all of its entries.
        seed: None draws a seed from torch's generator for each solve; a number repeats the probes.

    Cost:
        K vector-Jacobian products of about the cost of one evaluation each.

    Source:
        FFJORD (Grathwohl et al. 2019, arXiv 1810.01367), section 3.1; Hutchinson 1990.
    """

    n_probes: int = 1
    law: Law = "rademacher"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_count("n_probes", self.n_probes, least=1)
        _check_law(self.law)

    def draw(self, field: Field, z: Tensor) -> Tensor:  # noqa: ARG002
        """Probes [K, N, ...]."""
        return probes(z, self.n_probes, self.law, draw_seed() if self.seed is None else self.seed)

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:
        """Velocity, and estimates of trace and squared Frobenius norm."""
        velocity, pull = _vjp(field, z)
        trace, square = _forms(pull, _given(noise))
        return Rates(velocity, trace / self.n_probes, lambda: square() / self.n_probes)


@dataclass(frozen=True)
class HutchPlusPlus:
    """Hutch++: exact on a subspace that holds most of the Jacobian, Hutchinson on what is left.

    With Q an orthonormal basis of the range of (df/dz)^T S at the start, S random:
    tr A = tr(Q^T A Q) + tr(P A P), P = I - Q Q^T, and only the second term is estimated. The
    estimate is unbiased for every Q, so one Q serves the whole solve, the integrand stays smooth in
    time, and Q is a constant of the gradient. How much variance it saves depends on how far the
    leading directions move meanwhile.

    Args:
        n_sketch: Dimension of the subspace; at most D.
        n_probes: K, Gaussian or Rademacher probes of what is left.
        law: As for `Hutchinson`.
        seed: As for `Hutchinson`.

    Cost:
        n_sketch + n_probes vector-Jacobian products an evaluation, n_sketch more at the start.

    Source:
        Meyer, Musco, Musco and Woodruff 2021 (arXiv 2010.09649), algorithm 1; there Q is made for
        one matrix, here for the first of a path.
    """

    n_sketch: int = 1
    n_probes: int = 1
    law: Law = "rademacher"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        _check_count("n_sketch", self.n_sketch, least=1)
        _check_count("n_probes", self.n_probes, least=1)
        _check_law(self.law)

    def draw(self, field: Field, z: Tensor) -> Tensor:
        """Basis and probes, [n_sketch + K, N, ...]."""
        size = z[0].numel()
        if self.n_sketch > size:
            raise InvalidProblem(
                f"`n_sketch` must be at most the number of variables {size}, got {self.n_sketch}. "
                "Use Exact() for so few variables."
            )
        seed = draw_seed() if self.seed is None else self.seed
        sketch = probes(z, self.n_sketch, "gaussian", seed)  # signs may coincide where D is small
        residual = probes(z, self.n_probes, self.law, ~seed).flatten(2)
        with torch.enable_grad():
            _, pull = _vjp(field, z.detach())
            seen = torch.stack([pull(row)[0] for row in sketch]).detach()
        basis = torch.linalg.qr(seen.flatten(2).permute(1, 2, 0)).Q  # [N, D, n_sketch]
        known = torch.einsum("nds,nes,kne->knd", basis, basis, residual)
        both = torch.cat([basis.permute(2, 0, 1), residual - known])
        return both.reshape(-1, *z.shape)

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:
        """Velocity, and estimates of trace and squared Frobenius norm."""
        both = _given(noise)
        velocity, pull = _vjp(field, z)
        known, inside = _forms(pull, both[: self.n_sketch])
        left, beside = _forms(pull, both[self.n_sketch :])
        n = self.n_probes
        return Rates(velocity, known + left / n, lambda: inside() + beside() / n)


def _vjp(field: Field, z: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Velocity at z, and the function from cotangents to their products with the Jacobian."""
    found: Any = torch.func.vjp(field, z)
    return found[0], found[1]


def _forms(
    pull: Callable[[Tensor], tuple[Tensor, ...]], vectors: Tensor
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Sums of e^T J e over vectors [K, N, ...], and of |e^T J|^2 on demand; [N] each."""
    rows = [pull(e)[0].flatten(1) for e in vectors]
    trace = _total([(row * e.flatten(1)).sum(dim=1) for row, e in zip(rows, vectors, strict=True)])
    return trace, lambda: _total([_square(row) for row in rows])


def _total(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).sum(dim=0) if len(terms) > 1 else terms[0]


def _square(row: Tensor) -> Tensor:
    return row.square().sum(dim=1)


def _basis(z: Tensor, size: int) -> list[Tensor]:
    """The unit vectors of a sample's variables, each in the shape of z."""
    eye = torch.eye(size, dtype=z.dtype, device=z.device)
    return [row.reshape(1, *z.shape[1:]).expand(z.shape) for row in eye]


def _given(noise: Tensor | None) -> Tensor:
    if noise is None:
        raise InvalidProblem(
            "`noise` must be what `draw` returned, got None. Draw it once before the solve."
        )
    return noise


def _check_count(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise InvalidProblem(
            f"`{name}` must be an integer of at least {least}, got {value!r}. "
            "More of them cost more products and lower the variance."
        )


def _check_law(law: object) -> None:
    if law not in ("rademacher", "gaussian"):
        raise InvalidProblem(
            f"`law` must be 'rademacher' or 'gaussian', got {law!r}. Rademacher varies less."
        )
