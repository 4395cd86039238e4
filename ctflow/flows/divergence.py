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
from ctflow.flows.products import forms, squared, summed, unit_vectors, vjp

__all__ = [
    "Divergence",
    "Exact",
    "Field",
    "HutchPlusPlus",
    "Hutchinson",
    "KnowsDivergence",
    "Rates",
]

_AT_ONCE = 8192  # variables of a batch: beyond them both take as long, or a loop less: measured

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
        mode: "reverse" takes D vector-Jacobian products one after another, "forward" D
            Jacobian-vector products at once. None takes what was the cheapest in eager torch
            (D from 2 to 64, batches from 16 to 1024): reverse, all products at once where they are
            small (up to 5 times faster than one after another), and one after another where they
            are not, or where a solve is compiled. They give the same numbers. A field that torch
            cannot vmap (sparse matrices, for one) needs "reverse".

    Cost:
        D products of about the cost of one evaluation each.

    Example:
        >>> z = torch.randn(5, 3)
        >>> Exact().rates(torch.sin, z, None).divergence.allclose(torch.cos(z).sum(dim=1))
        True
    """

    mode: Literal["reverse", "forward"] | None = None

    def __post_init__(self) -> None:
        """Check the mode."""
        if self.mode not in ("reverse", "forward", None):
            raise InvalidProblem(
                f"`mode` must be 'reverse' or 'forward', got {self.mode!r}. Both are exact; None "
                "takes the cheaper."
            )

    def draw(self, field: Field, z: Tensor) -> None:
        """Nothing is random."""

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:  # noqa: ARG002
        """Velocity, trace and squared Frobenius norm."""
        size = z[0].numel()
        if self.mode == "forward":
            return self._forward(field, z, size)
        if self.mode is None and _is_small(z, size):
            return self._at_once(field, z, size)
        return self._reverse(field, z, size)

    def _reverse(self, field: Field, z: Tensor, size: int) -> Rates:
        velocity, pull = vjp(field, z)
        rows = [pull(basis)[0].flatten(1) for basis in unit_vectors(z, size)]
        trace = summed([row[:, i] for i, row in enumerate(rows)])
        return Rates(velocity, trace, lambda: summed([squared(row) for row in rows]))

    def _at_once(self, field: Field, z: Tensor, size: int) -> Rates:
        velocity, pull = vjp(field, z)
        rows: Any = torch.vmap(lambda basis: pull(basis)[0])(torch.stack(unit_vectors(z, size)))
        return _of_jacobian(velocity, rows.flatten(2))

    def _forward(self, field: Field, z: Tensor, size: int) -> Rates:
        bases = torch.stack(unit_vectors(z, size))

        def along(basis: Tensor) -> tuple[Tensor, Tensor]:
            found: Any = torch.func.jvp(field, (z,), (basis,))
            return found[0], found[1]

        both = torch.vmap(along, out_dims=(None, 0))  # pyright: ignore[reportArgumentType] - None is allowed
        with warnings.catch_warnings():  # torch's first jvp compiles something with torch.jit
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            velocity, columns = both(bases)
        return _of_jacobian(velocity, columns.flatten(2))


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
        velocity, pull = vjp(field, z)
        trace, square = forms(pull, _given(noise))
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
            _, pull = vjp(field, z.detach())
            seen = torch.stack([pull(row)[0] for row in sketch]).detach()
        basis = torch.linalg.qr(seen.flatten(2).permute(1, 2, 0)).Q  # [N, D, n_sketch]
        known = torch.einsum("nds,nes,kne->knd", basis, basis, residual)
        both = torch.cat([basis.permute(2, 0, 1), residual - known])
        return both.reshape(-1, *z.shape)

    def rates(self, field: Field, z: Tensor, noise: Tensor | None) -> Rates:
        """Velocity, and estimates of trace and squared Frobenius norm."""
        both = _given(noise)
        velocity, pull = vjp(field, z)
        known, inside = forms(pull, both[: self.n_sketch])
        left, beside = forms(pull, both[self.n_sketch :])
        n = self.n_probes
        return Rates(velocity, known + left / n, lambda: inside() + beside() / n)


def _of_jacobian(velocity: Tensor, jacobian: Tensor) -> Rates:
    """From a Jacobian or its transpose, [D, N, D]."""
    trace = jacobian.diagonal(dim1=0, dim2=2).sum(dim=1)
    return Rates(velocity, trace, lambda: jacobian.square().sum(dim=(0, 2)))


def _is_small(z: Tensor, size: int) -> bool:
    """Whether D products at once beat one after another.

    Not while a compiler follows the code, with tensors of a type of its own: it fuses small
    products, and the one of three dimensions was not measured there.
    """
    return type(z) is Tensor and size > 2 and len(z) * size <= _AT_ONCE


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
