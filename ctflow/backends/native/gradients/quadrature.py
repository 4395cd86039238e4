"""The parameters' gradient as a quadrature on the backward solve, which watches its error."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.backends.adjoint import Evaluated, Linearised, in_tolerances
from ctflow.backends.native.control import Adaptive, Control, Span, Verdict, blended
from ctflow.backends.native.method import Method
from ctflow.backends.native.step import FlatField, Step
from ctflow.state import as_real

__all__ = ["FAR", "WithQuadrature", "quadrature_error"]

FAR = 10.0  # a rebuilt state this many times larger than any of the forward pass is lost


class WithQuadrature:
    """A step-size control that sums up the parameters' gradient and watches its error.

    The quadrature's error estimate is a block of its own: one number for all samples, because the
    sum over samples is what is wanted. It is computed for the steps that would be accepted; if it
    is above tolerance none of them counts.

    Args:
        control: Judges state and adjoint.
        field: Their derivatives.
        share: Factor on each sample's adjoint in the sum, [B, 1].
        bound: Largest |y| that a rebuilt state may have, [B]; beyond it the sample is given up.
        seminorm: Sum the error up, but let it decide nothing.
        total: The sum up to now, one tensor for each of the field's leaves; None for zeros.

    Attributes:
        total: The sum of the steps that counted.
        pending: What the step judged last adds to it if it counts, and its error estimate; one
            after the other where the method has two.
    """

    def __init__(
        self,
        control: Control,
        field: Linearised,
        share: Tensor,
        bound: Tensor,
        seminorm: bool,
        total: Sequence[Tensor] | None = None,
    ) -> None:
        self._control = control
        self._field = field
        self._share = share
        self._bound = bound
        self._seminorm = seminorm
        self._known: dict[int, tuple[Tensor, Evaluated]] = {}
        self.pending: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.total = list(total or (torch.zeros_like(leaf) for leaf in field.leaves))
        self._estimate: list[Tensor] = []

    def field_of_both(self, t: Tensor, y: Tensor) -> Tensor:
        """d[y, a]/dt = [f, -a df/dy] on [B, 2 N]."""
        state, a = y.chunk(2, dim=1)
        place = self._field(t, state, a)
        derivative = torch.cat([place.dy.detach(), -place.pulled], dim=1)
        self.remember(derivative, place)
        return derivative

    def remember(self, derivative: Tensor, place: Evaluated) -> None:
        """Take a derivative of both, [B, 2 N], as that of a place which was evaluated before."""
        self._known[id(derivative)] = (derivative, place)

    def place_of(self, derivative: Tensor) -> Evaluated:
        """Where a derivative of the step judged last is from: its first or its last stage."""
        return self._known[id(derivative)][1]

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """The control's own first step."""
        return self._control.first(field, tableau, span, y0, f0)

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """The control's own."""
        return self._control.end(t, size, span)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept where the control does and the quadrature's error allows it."""
        known = () if memory is None else (memory,)
        verdict = self._give_up(step, self._control.judge(tableau, step, size, *known))
        places = self._places(step)
        counts = verdict.accepted.unsqueeze(1)
        forward_h = -step.h  # the integral runs forward in time
        weight = torch.where(counts, forward_h * self._share, 0.0)
        share = self._sum(tableau.b, places, weight, keep=True)
        rows = (row for row in (tableau.e, tableau.e_low) if row is not None)
        estimate = [x for row in rows for x in self._sum(row, places, weight, keep=True)]
        self.pending = (share, estimate)
        if self._seminorm or not estimate or not isinstance(self._control, Adaptive):
            return verdict
        ratio = _ratio(estimate, self.total, share, self._control).reshape(1)
        taken = (step.t1 - step.t0).abs()
        suggested = taken * self._control.factor(tableau, ratio).to(taken.dtype)
        within = ratio <= 1
        cut = taken < size * (1 - 1e-9)  # or at rest: keep the size for the next interval
        most = torch.where(cut & (within | (taken == 0)), torch.maximum(suggested, size), suggested)
        rejected = within & ~verdict.accepted
        size = torch.where(rejected, verdict.size, torch.minimum(verdict.size, most))
        accepted = verdict.accepted & within
        size = self._control.limited(size, accepted, taken)
        kept = verdict.memory
        if kept is not None:
            before = self._control.blank(ratio.expand_as(taken)) if memory is None else memory
            kept = torch.where(accepted, kept, self._control.after_rejection(before))
        return Verdict(accepted, size, verdict.finite & (ratio < torch.inf), kept)

    def _give_up(self, step: Step, verdict: Verdict) -> Verdict:
        """Stop a sample whose rebuilt state is far outside what the forward pass saw."""
        far = step.y0.chunk(2, dim=1)[0].abs().amax(dim=1) > self._bound
        return Verdict(
            verdict.accepted & ~far,
            torch.where(far, 0.0, verdict.size),
            verdict.finite & ~far,
            verdict.memory,
        )

    def commit(self, step: Step, t_new: Tensor) -> None:
        """Add what the step contributed; forget its graphs but the last."""
        share, estimate = self.pending
        for i, part in enumerate(share):
            self.total[i] = self.total[i] + part
        known = self._estimate or [torch.zeros_like(x) for x in estimate]
        self._estimate = [x + part for x, part in zip(known, estimate, strict=True)]

    def error(self) -> float:
        """Norm of the summed estimates in units of tolerance."""
        return quadrature_error(self._estimate, self.total, self._control)

    def _places(self, step: Step) -> list[Evaluated]:
        """The stages with their graphs; a first stage that was pieced together is redone."""
        found: list[Evaluated] = []
        for k in step.k:
            kept = self._known.get(id(k))
            if kept is None:
                y, a = step.y0.chunk(2, dim=1)
                found.append(self._field(step.first_time, y, a))
            else:
                found.append(kept[1])
        ends = (step.k[0], step.k[-1])
        self._known = {id(k): self._known[id(k)] for k in ends if id(k) in self._known}
        return found

    def _sum(
        self, weights: tuple[float, ...], places: list[Evaluated], h: Tensor, keep: bool
    ) -> list[Tensor]:
        used = [(w, p) for w, p in zip(weights, places, strict=True) if w]
        return self._field.weighted([w for w, _ in used], [p for _, p in used], h, keep)


def quadrature_error(
    estimate: Sequence[Tensor], total: Sequence[Tensor], control: Control
) -> float:
    """Norm of the summed estimates in units of the control's tolerance; 0 where it has none.

    Args:
        estimate: One tensor for each of `total`; after them those of `e_low` where it is in use.
        total: What they are errors of.
        control: Has the tolerances.
    """
    if not (total and estimate and isinstance(control, Adaptive)):
        return 0.0
    return float(_ratio(estimate, total, None, control))


def _ratio(
    estimate: Sequence[Tensor],
    total: Sequence[Tensor],
    share: Sequence[Tensor] | None,
    control: Adaptive,
) -> Tensor:
    """Size of the error in tolerances, all parameters together."""
    n = len(total)
    ratio = _rms_ratio(estimate[:n], total, share, control)
    low = estimate[n:]
    return blended(ratio, _rms_ratio(low, total, share, control)) if low else ratio


def _rms_ratio(
    estimate: Sequence[Tensor],
    total: Sequence[Tensor],
    share: Sequence[Tensor] | None,
    control: Adaptive,
) -> Tensor:
    """One estimate in tolerances; what it is an error of is the larger of both ends.

    Real and imaginary part are numbers of their own, as in a state.
    """
    estimate, total = [as_real(x) for x in estimate], [as_real(x) for x in total]
    sizes = [x.abs() for x in total]
    if share is not None:
        ends = zip(sizes, total, map(as_real, share), strict=True)
        sizes = [torch.maximum(size, (x + more).abs()) for size, x, more in ends]
    return in_tolerances(estimate, sizes, control.rtol, control.atol)
