"""Laws that a field may be declared to obey; `check_dynamics(..., laws=[...])` checks them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ctflow.api import odeint
from ctflow.backends.captures import pull
from ctflow.backends.protocol import Solver
from ctflow.errors import InvalidProblem
from ctflow.state import Layout, leaves_of, map_leaves
from ctflow.testing.examples import Case
from ctflow.testing.subject import Subject, difference, flat, fresh, said, size_of

__all__ = [
    "Autonomous",
    "Conserves",
    "DivergenceFree",
    "Equivariant",
    "FlowProperty",
    "Hamiltonian",
    "Law",
    "Linear",
    "TimeReversal",
]


class Law(Protocol):
    """Something that a field obeys at every time and state."""

    @property
    def name(self) -> str:
        """Its name in reports."""
        ...

    @property
    def cause(self) -> str:
        """The usual cause of a breach, and what to do."""
        ...

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """What is wrong at an example, or None."""
        ...


@dataclass(frozen=True)
class Linear:
    """f(t, a y + b z) = a f(t, y) + b f(t, z)."""

    name: str = "linear"
    cause: str = "a bias, a forcing term, or a non-linear activation."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """Two states and their combination."""
        other = Case(case.t, map_leaves(lambda y: 0.5 * y + subject.directions(y), case.y))
        layout = Layout.of(case.y, per_sample=False)
        both = 2.0 * layout.pack(case.y) - 0.5 * layout.pack(other.y)
        one, two = subject.value(case), subject.value(other)
        found = subject.value(Case(case.t, layout.unpack(both.detach())))
        return _unequal(
            found, 2.0 * one - 0.5 * two, "f(2 y - z / 2)", "2 f(y) - f(z) / 2", one, two
        )


@dataclass(frozen=True)
class Autonomous:
    """f does not depend on t."""

    name: str = "autonomous"
    cause: str = "time enters as a feature or a gate."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """The same state at the start, at the end, and here."""
        here = subject.value(case)
        for end in (subject.box.t0, subject.box.t1):
            there = subject.value(Case(subject.box.time(end), case.y))
            if wrong := _unequal(there, here, f"f(t={end:g})", f"f(t={float(case.t):g})"):
                return wrong
        return None


@dataclass(frozen=True)
class Conserves:
    """dQ/dt = dQ/dy . f = 0  for a quantity Q.

    Args:
        quantity: Q(y): 0-dim, or one value for each sample [B].
    """

    quantity: Callable[[Any], Tensor]
    name: str = "conserves"
    cause: str = "a wrong sign, damping, or a network that was given no such structure."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """The rate at which the quantity changes, sample by sample."""
        layout = Layout.of(case.y, per_sample=subject.box.batched)
        moved = subject.value(case)
        f = Layout.of(case.y, per_sample=False).unpack(moved.unsqueeze(0))
        slope = _gradient(self.quantity, "quantity", case, layout.batch)
        terms = layout.pack(slope) * layout.pack(f)
        rate, size = terms.sum(dim=1).abs(), terms.abs().sum(dim=1)
        share = float((rate / size.clamp(min=1e-30)).amax())
        if share > _slack(moved):
            return f"the quantity changes at a rate of {share:.2g} of the size of its parts"
        return None


@dataclass(frozen=True)
class Hamiltonian:
    """dq/dt = dH/dp,  dp/dt = -dH/dq,  with q and p the halves of the last dimension.

    Args:
        energy: H(y): 0-dim, or one value for each sample [B].
    """

    energy: Callable[[Tensor], Tensor]
    name: str = "hamiltonian"
    cause: str = "a wrong sign, momenta and positions exchanged, or damping."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """The field against the gradient of the energy."""
        y = case.y
        if not isinstance(y, Tensor) or y.dim() == 0 or y.shape[-1] % 2:
            shape = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InvalidProblem(
                f"`Hamiltonian` speaks of a tensor [..., 2 N], q beside p, got {shape}. "
                "Check a field on torch.cat([q, p], -1), or declare Conserves(energy)."
            )
        layout = Layout.of(y, per_sample=subject.box.batched)
        slope: Tensor = _gradient(self.energy, "energy", case, layout.batch)
        by_q, by_p = slope.chunk(2, dim=-1)
        expected = torch.cat([by_p, -by_q], dim=-1)
        return _unequal(subject.value(case), expected.reshape(-1), "f", "(dH/dp, -dH/dq)")


@dataclass(frozen=True)
class DivergenceFree:
    """tr(df/dy) = 0: volumes are kept."""

    name: str = "divergence_free"
    cause: str = "damping or growth, or a network that was given no such structure."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """The trace of each sample's Jacobian against its norm, a row at a time."""
        layout = Layout.of(case.y, per_sample=subject.box.batched)
        y = layout.pack(case.y).detach().clone().requires_grad_()
        with torch.enable_grad():
            dy = layout.pack(subject(case.t, layout.unpack(y)))
        trace, squares = torch.zeros_like(y[:, 0]), torch.zeros_like(y[:, 0])
        for i in range(layout.size if dy.requires_grad else 0):
            one = dy[:, i]
            (row,) = pull((one,), (y,), (torch.ones_like(one),), keep=True)
            if row is not None:
                trace, squares = trace + row[:, i], squares + row.square().sum(1)
        size = squares.sqrt()
        worst = int((trace.abs() / size.clamp(min=1e-30)).argmax())
        if float(trace[worst].abs()) > _slack(trace) * float(size[worst]):
            return (
                f"the divergence is {float(trace[worst]):.3g}, with a Jacobian of norm "
                f"{float(size[worst]):.3g}"
            )
        return None


@dataclass(frozen=True)
class Equivariant:
    """f(t, g(y)) = Dg(y) f(t, y)  for a transformation g.

    Args:
        transformation: g(y) with the structure of y: a rotation, a permutation of particles.
    """

    transformation: Callable[[Any], Any]
    name: str = "equivariant"
    cause: str = "absolute positions or an order of parts enter the field."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """Transform first, or the derivative afterwards."""
        moved, pushed = _push(subject, self.transformation, case)
        found = subject.value(Case(case.t, moved))
        return _unequal(found, pushed, "f(g(y))", "Dg f(y)")


@dataclass(frozen=True)
class TimeReversal:
    """f(t, r(y)) = -Dr(y) f(t, y): run backwards, the mirrored path is a solution too.

    Args:
        mirror: r(y), for example the reversal of all speeds. For fields that do not know t.
    """

    mirror: Callable[[Any], Any]
    name: str = "time_reversal"
    cause: str = "damping, or an odd power of a speed where an even one belongs."

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """Mirror first, or the derivative afterwards."""
        moved, pushed = _push(subject, self.mirror, case)
        found = subject.value(Case(case.t, moved))
        return _unequal(found, -pushed, "f(r(y))", "-Dr f(y)")


@dataclass(frozen=True)
class FlowProperty:
    """phi(s + t) = phi(t) phi(s), and back again: the future depends on t and y alone."""

    name: str = "flow"
    cause: str = (
        "`f` remembers earlier calls, or its solution is not unique (a root at zero) or grows so "
        "fast that rounding decides."
    )

    def wrong(self, subject: Subject, case: Case) -> str | None:
        """One solve, two solves, and there and back."""
        t0, t1 = subject.box.t0, subject.box.t1
        middle = t0 + 0.4 * (t1 - t0)
        rtol = 1e-9 if leaves_of(case.y)[0].dtype == torch.float64 else 1e-5
        with torch.no_grad():
            once = _end(subject, case.y, t0, t1, rtol)
            twice = _end(subject, _end(subject, case.y, t0, middle, rtol), middle, t1, rtol)
            back = _end(subject, once, t1, t0, rtol)
        for found, wanted, what in (
            (twice, once, "in two solves and in one"),
            (back, case.y, "there and back"),
        ):
            gap = difference(flat(found), flat(wanted))
            if gap > rtol**0.5:  # what a solve may amplify is not known: half the digits
                return f"{what}, states differ by {gap:.2g} of their size"
        return None


def _end(subject: Subject, y: Any, start: float, stop: float, rtol: float) -> Any:  # noqa: ANN401
    solver = Solver(rtol=rtol, atol=rtol, max_steps=1000)
    path = odeint(subject.f, y, [start, stop], solver=solver, args=subject.args)
    return map_leaves(lambda leaf: leaf[-1], path)


def _gradient(quantity: Callable[[Any], object], name: str, case: Case, batch: int) -> Any:  # noqa: ANN401
    """Its gradient at each sample, with the structure of y; zeros where it depends on no leaf.

    Raises:
        InvalidProblem: If it cannot be evaluated, or is not one number a sample.
    """
    y = fresh(case.y)
    with torch.enable_grad():
        try:
            found = quantity(y)
        except Exception as error:
            raise InvalidProblem(
                f"`{name}` must be a function of the state, got {said(error)}. Try it on `states`."
            ) from error
        if not isinstance(found, Tensor) or found.numel() not in (1, batch):
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InvalidProblem(
                f"`{name}` must return one number for each of {batch} samples, got {shape}. "
                "Sum over the variables of a sample."
            )
        if not found.requires_grad:
            raise InvalidProblem(
                f"`{name}` must depend on the state, got a constant. Leave out `.detach()`, "
                "`.item()` and NumPy."
            )
        total = found.sum()
        slopes = iter(pull((total,), leaves_of(y), (torch.ones_like(total),), keep=True))
    return map_leaves(lambda x: torch.zeros_like(x) if (g := next(slopes)) is None else g, y)


def _push(subject: Subject, transformation: Callable[[Any], Any], case: Case) -> tuple[Any, Tensor]:
    """g(y), and its derivative along the field as one vector."""
    layout = Layout.of(case.y, per_sample=False)
    y = layout.pack(case.y).detach()
    f = subject.value(case).unsqueeze(0)

    def of_vector(flat_y: Tensor) -> Tensor:
        return layout.pack(transformation(layout.unpack(flat_y)))

    found = torch.autograd.functional.jvp(of_vector, y, f)  # pyright: ignore
    moved, pushed = cast("tuple[Tensor, Tensor]", found)
    return layout.unpack(moved.detach()), pushed.detach().reshape(-1)


def _unequal(found: Tensor, wanted: Tensor, left: str, right: str, *parts: Tensor) -> str | None:
    size = size_of(found, wanted, *parts)
    gap = float((found - wanted).abs().amax()) / size
    return f"{left} and {right} differ by {gap:.2g} of their size" if gap > _slack(found) else None


def _slack(value: Tensor) -> float:
    """What rounding may do to an identity, relative to the size of its parts."""
    return 1e4 * torch.finfo(value.dtype).eps
