"""How large the next step is, and whether the last one counts."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.native.method import Method
from ctflow.backends.native.step import FlatField, Step, scaled
from ctflow.errors import InvalidProblem

__all__ = [
    "Adaptive",
    "Control",
    "Fixed",
    "OnGrid",
    "Span",
    "Verdict",
    "accept_finite",
    "blended",
    "hairer_size",
    "next_node",
]


class Span(NamedTuple):
    """The time interval of every sample.

    Attributes:
        t0: Start, [B].
        t1: End, [B].
        direction: +1 or -1, [B].
    """

    t0: Tensor
    t1: Tensor
    direction: Tensor


class Verdict(NamedTuple):
    """What a control says of a step.

    Attributes:
        accepted: Whether it counts, bool [B].
        size: Positive size of the next step, [B], in time's own dtype; 0 gives the sample up.
        finite: Whether everything was finite, bool [B].
        memory: What the control wants to be told when it judges the next step, [M, B].
    """

    accepted: Tensor
    size: Tensor
    finite: Tensor
    memory: Tensor | None = None


class Control(Protocol):
    """Chooses step sizes. All tensors are detached: no gradient passes through a control.

    A control may say in an attribute `VALUES` which of its fields are numbers or tensors that a
    compiled program takes as inputs; every other field is part of the program. One whose steps
    are known beforehand, whatever the solution, says `GIVEN = True`: they may be taken under
    torch.vmap.
    """

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """Size of the first step, [B], and how many evaluations it took to find it."""
        ...

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """Where a step of this size that starts at t should end, [B]; the loop cuts it at t1."""
        ...

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Whether the step counts, and the size of the next one.

        `memory` is that of the last verdict, and None, which is to mean ones, for the first; a
        control whose verdicts have none need not take it.
        """
        ...


@dataclass(frozen=True)
class Adaptive:
    """Control of the local error: accept where  r = rms(err / (atol + rtol |y|)) <= 1.

    The next step is  h safety r_n^(-b1 / k) r_(n-1)^(-b2 / k) r_(n-2)^(-b3 / k)  long, where the
    embedded solution is of order k - 1; after a rejected step h safety r^(-1 / k), and the step
    after the repeated one is not longer than that.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        safety: Factor on the step that the error estimate suggests.
        shrink: Smallest factor from one step to the next.
        grow: Largest factor from one step to the next.
        counted: Ranges of the variables that are in the norm; None means all of them.
        betas: b1, b2 and b3; (1, 0, 0) is integral control.
        least: Smallest step, in units of time; a sample that needs a smaller one is given up.
        most: Largest step.
        first_size: Size of the first step, a number or [B]; None finds one.

    Source:
        Hairer, Norsett, Wanner, Solving Ordinary Differential Equations I, section II.4, eq. 4.11
        to 4.13, what follows it on the step after a rejection, and the Euler probe of its starting
        step size (page 169). |y| is the larger of both ends. For the filter, Soderlind 2003,
        Digital filters in adaptive time-stepping, ACM Trans. Math. Softw. 29; that errors are not
        remembered as less than 1e-4 is from Hairer's dopri5.f.
    """

    rtol: float | Tensor
    atol: float | Tensor
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 10.0
    counted: tuple[slice, ...] | None = None
    betas: tuple[float, float, float] = (1.0, 0.0, 0.0)
    least: float | Tensor = 0.0
    most: float | Tensor = math.inf
    first_size: float | Tensor | None = None

    @property
    def VALUES(self) -> tuple[str, ...]:
        """What a compiled program takes as inputs: limits only where there are any."""
        limits = ("least", "most") if self._has_limits else ()
        return ("rtol", "atol", *limits, *(() if self.first_size is None else ("first_size",)))

    @property
    def _has_limits(self) -> bool:
        if isinstance(self.least, Tensor) or isinstance(self.most, Tensor):
            return True
        return self.least > 0 or self.most < math.inf

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """A size whose error should be a tenth of what is allowed, by one Euler probe."""
        length = (span.t1 - span.t0).abs()
        going = length > 0  # a sample at rest gets a size for an interval that comes later
        if self.first_size is not None:
            given = self._between(torch.zeros_like(length) + self.first_size)
            return torch.where(going, torch.minimum(length, given), given), 0
        scale = y0.abs() * self.rtol + self.atol
        d0, d1 = self._rms(y0 / scale), self._rms(f0 / scale)
        tiny = (d0 < 1e-5) | (d1 < 1e-5)
        h0 = torch.where(tiny, 1e-6, 0.01 * d0 / d1).to(length.dtype)
        h0 = torch.where(going, torch.minimum(h0, length), h0)
        t = span.t0 + span.direction * h0
        t = torch.where(h0 == length, span.t1, t)
        signed = (span.direction * h0).to(y0.dtype).unsqueeze(-1)
        f1 = field(t.to(y0.dtype), torch.addcmul(y0, f0, signed))
        d2 = self._rms((f1 - f0) / scale) / h0
        h1 = hairer_size(tableau, d1, d2, h0)
        h1 = torch.where(tiny, h1, self.expected_size(tableau, d0, d1, d2, h1))
        h = torch.minimum(100 * h0, h1)
        h = torch.where(torch.isfinite(h) & (h > 0), h, h0).to(length.dtype)
        resolved = 64 * torch.finfo(length.dtype).eps * span.t0.abs()  # else time would not move
        h = torch.maximum(h, resolved)
        h = torch.where(going, torch.minimum(h, length), h)
        return self._between(h), 1

    def expected_size(
        self, tableau: Method, d0: Tensor, d1: Tensor, d2: Tensor, usual: Tensor
    ) -> Tensor:
        """Size of the first step from what its error is expected to be, [B].

        The k-th derivative is taken to be that of an exponential. Its rate L is both |y''| / |y'|
        and |y'| / |y|, of which the larger is taken: either may be small by chance. The error of a
        step is then  C h^k |y'| L^(k - 1),  C being the method's own constant. Unlike Hairer's
        rule, which has 1 for all but h^k, this one does not depend on the unit of time; it saves
        smooth networks a quarter to a half of their evaluations (docs/methods.md). The error is to
        be 0.1 tolerances, where every other step aims at safety^k, 0.59 for k = 5; and h no more
        than a third of |y'| / |y''|: beyond it, at loose tolerances, that higher derivatives count
        for less is a guess, and of a field with kinks a wrong one.

        Args:
            tableau: The method.
            d0: |y| in tolerances, [B].
            d1: |y'| in tolerances, [B].
            d2: |y''| in tolerances, [B].
            usual: The size by Hairer's rule, for methods without a known constant, [B].
        """
        k, constant = _error_order(tableau) + 1, _error_constant(tableau)
        if constant is None:
            return usual
        bend = d1 / d2
        shortest = torch.minimum(bend, d0 / d1)  # time scale, 1 / L
        tolerable = _power(0.1 / (constant * d1), 1 / k) * _power(shortest, (k - 1) / k)
        return torch.minimum(tolerable, bend / 3)

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """One step of this size."""
        return torch.addcmul(t, span.direction, size)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept by the error estimate; a non-finite one means reject and shrink."""
        if tableau.e is None:
            raise InvalidProblem(
                f"method {tableau.name!r} has no error estimate for adaptive steps, got step=None. "
                "Give Solver(step=...), or take bosh3, dopri5 or tsit5."
            )
        scale = torch.maximum(step.y0.abs(), step.y1.abs()) * self.rtol + self.atol
        ratio = self._error(tableau.e, step, scale)
        if tableau.e_low is not None:
            ratio = blended(ratio, self._error(tableau.e_low, step, scale))
        finite = ratio + scale.amax(dim=1) < torch.inf  # False for NaN too
        ratio = torch.where(finite, ratio, torch.inf)
        accepted = ratio <= 1
        before = self.blank(ratio) if memory is None else memory
        factor = self.factor(tableau, ratio)
        taken = (step.t1 - step.t0).abs()  # shorter than `size` where the step was cut at a stop
        suggested = taken * torch.minimum(factor, before[-1]).to(taken.dtype)
        cut = accepted & (taken * (1 + 1e-9) < size)  # its error says nothing of full steps
        longer = torch.maximum(suggested, size)
        if self._n_errors:
            smooth = torch.minimum(self._filtered(tableau, ratio, before), before[-1])
            suggested = torch.where(accepted, taken * smooth.to(taken.dtype), suggested)
        suggested = torch.where(cut, longer, suggested)
        kept = self._noted(ratio, accepted, cut, before)
        return Verdict(accepted, self.limited(suggested, accepted, taken), finite, kept)

    def _between(self, size: Tensor) -> Tensor:
        if not self._has_limits:
            return size
        return size.clamp(min=self.least).clamp(max=self.most)  # pyright: ignore

    def limited(self, size: Tensor, accepted: Tensor, taken: Tensor) -> Tensor:
        """The size within the limits; 0 where a step of the least size was not accepted.

        Args:
            size: Size of the next step, [B].
            accepted: Whether the last step counts, [B].
            taken: Its length, [B].
        """
        if not self._has_limits:
            return size
        within = torch.where(size > 0, self._between(size), size)
        least = self.least * (1 + 1e-6)  # t + h - t is not quite h
        at_rest = taken == 0  # a sample that has arrived, beside others
        return torch.where(~accepted & ~at_rest & (taken <= least), 0.0, within)

    def blank(self, like: Tensor) -> Tensor:
        """What it remembers before the first step, [.., B].

        Rows of the last errors, if it uses any; the last row is the largest factor on the step.

        Args:
            like: Any tensor [B] in the dtype of the state.
        """
        most = torch.full_like(like, self.grow).unsqueeze(0)
        return torch.cat((like.new_ones(2, len(like)), most)) if self._n_errors else most

    def after_rejection(self, memory: Tensor) -> Tensor:
        """The memory of a step that does not count: of it only that the next may not be longer."""
        return torch.cat((memory[:-1], torch.ones_like(memory[-1:])))

    @property
    def _n_errors(self) -> int:
        return 0 if self.betas == (1.0, 0.0, 0.0) else 2

    def _noted(self, ratio: Tensor, accepted: Tensor, cut: Tensor, before: Tensor) -> Tensor:
        """The memory after a step: its error if it counts and was a full one."""
        most = torch.where(accepted, self.grow, torch.ones_like(ratio)).unsqueeze(0)
        if not self._n_errors:
            return most
        errors = torch.stack((ratio.clamp(min=1e-4), before[0]))
        return torch.cat((torch.where(accepted & ~cut, errors, before[:-1]), most))

    def _filtered(self, tableau: Method, ratio: Tensor, before: Tensor) -> Tensor:
        """Factor on the step size from the errors of three accepted steps, [B]."""
        k = _error_order(tableau) + 1
        factor = torch.full_like(ratio, self.safety)
        for r, beta in zip((ratio, *before[:-1].unbind(0)), self.betas, strict=True):
            factor = factor * _power(r, -beta / k) if beta else factor
        return factor.nan_to_num(self.grow).clamp(self.shrink, self.grow)

    def factor(self, tableau: Method, ratio: Tensor) -> Tensor:
        """Factor on the step size for an error of `ratio` tolerances."""
        factor = self.safety * _power(ratio, -1 / (_error_order(tableau) + 1))
        return factor.clamp(self.shrink, self.grow)

    def _error(self, weights: Sequence[float], step: Step, scale: Tensor) -> Tensor:
        """An error estimate in tolerances, [B]."""
        total, weight = scaled(weights, step.k)
        x = self._in_norm(total * step.h / scale)
        return torch.linalg.vector_norm(x, dim=1) * (abs(weight) * x.shape[1] ** -0.5)

    def _rms(self, x: Tensor) -> Tensor:
        """Root mean square over the counted variables of each sample: [B, N] -> [B]."""
        x = self._in_norm(x)
        return torch.linalg.vector_norm(x, dim=1) * x.shape[1] ** -0.5

    def _in_norm(self, x: Tensor) -> Tensor:
        """The variables that are counted, [B, M]."""
        if self.counted is None:
            return x
        return torch.cat([x[:, columns] for columns in self.counted], dim=1)


@dataclass(frozen=True)
class Fixed:
    """Steps of one size, the last one shorter where it does not fit.

    Args:
        size: The step, positive, in units of time.
    """

    size: float | Tensor

    VALUES: ClassVar[tuple[str, ...]] = ("size",)
    GIVEN: ClassVar[bool] = True

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """The step, without any evaluation."""
        return torch.zeros_like(span.t0) + self.size, 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """One step further."""
        return torch.addcmul(t, span.direction, size)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept whatever is finite."""
        return accept_finite(step, size)


@dataclass(frozen=True, eq=False)
class OnGrid:
    """Steps that end at given times, whatever the error: a frozen step grid.

    For finite differences, which an adaptive solve would falsify by moving its steps, and to
    repeat the steps of an earlier solve (`solution.stats.step_times`).

    Args:
        nodes: Times to step on, [K] in any order; those outside the interval are left out, its
            ends are nodes always. To step on output times, put them among the nodes.
    """

    nodes: Tensor

    VALUES: ClassVar[tuple[str, ...]] = ("nodes",)
    GIVEN: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse what is no grid."""
        if self.nodes.dim() != 1 or not bool(torch.isfinite(self.nodes).all()):
            raise InvalidProblem(
                f"`nodes` must be [K] finite times, got shape {list(self.nodes.shape)}. "
                "Take solution.stats.step_times[0]."
            )

    def first(
        self, field: FlatField, tableau: Method, span: Span, y0: Tensor, f0: Tensor
    ) -> tuple[Tensor, int]:
        """Length of the interval: the grid alone decides."""
        return (span.t1 - span.t0).abs(), 0

    def end(self, t: Tensor, size: Tensor, span: Span) -> Tensor:
        """The next node after t."""
        return next_node(self.nodes.detach().to(t).unsqueeze(0), t, span)

    def judge(
        self, tableau: Method, step: Step, size: Tensor, memory: Tensor | None = None
    ) -> Verdict:
        """Accept whatever is finite."""
        return accept_finite(step, size)


def next_node(nodes: Tensor, t: Tensor, span: Span) -> Tensor:
    """The next of some times ahead of t, or the end of the interval, [B].

    Args:
        nodes: The times, [B, K], or [1, K] where all samples have the same.
        t: Where they stand, [B].
        span: The interval.
    """
    ahead = (nodes - t.unsqueeze(1)) * span.direction.unsqueeze(1)
    distance, nearest = torch.where(ahead > 0, ahead, torch.inf).min(dim=1)
    node = nodes.expand(t.shape[0], -1).gather(1, nearest.unsqueeze(1)).squeeze(1)
    before_the_end = distance < (span.t1 - t) * span.direction
    return torch.where(before_the_end, node, span.t1)


def hairer_size(tableau: Method, d1: Tensor, d2: Tensor, h0: Tensor) -> Tensor:
    """Hairer's size of the first step:  h^k max(|y'|, |y''|) = 0.01  in tolerances, [B].

    Args:
        tableau: The method.
        d1: |y'| in tolerances, [B].
        d2: |y''| in tolerances, [B].
        h0: Length of the Euler probe, [B].

    Source:
        Hairer I, page 169.
    """
    steepest = torch.maximum(d1, d2)
    flat = torch.clamp(h0 * 1e-3, min=1e-6)
    curved = _power(0.01 / steepest, 1 / (_error_order(tableau) + 1))
    return torch.where(steepest <= 1e-15, flat, curved)


def blended(error: Tensor, low: Tensor) -> Tensor:
    """Size of an error from that of its two estimates:  e^2 / sqrt(e^2 + 0.01 low^2).

    Source:
        Hairer I, section II.10, and dop853.f.
    """
    some = error != 0  # true for NaN, which must remain
    e = torch.where(some, error, 1.0)
    return torch.where(some, e * (e / torch.hypot(e, 0.1 * low)), 0.0)


def accept_finite(step: Step, size: Tensor) -> Verdict:
    """The verdict that a step counts where it is finite; elsewhere the sample is given up."""
    finite = torch.isfinite(step.y1).all(dim=1)
    return Verdict(finite, torch.where(finite, size, 0.0), finite)


def _power(x: Tensor, exponent: float) -> Tensor:
    """x to a power, [B], with bits that do not depend on the place of an element in the batch.

    On a CPU torch computes whole vectors of contiguous elements by other code than the rest, and
    the two round differently; elements with a stride are all computed one by one, as is a single
    one.
    """
    if x.shape[0] == 1:
        return x**exponent
    return torch.stack((x, x), dim=1)[:, 0] ** exponent


@lru_cache(maxsize=64)
def _error_constant(tableau: Method) -> float | None:
    """C, where the error estimate of a step of length h under y' = L y, y = 1 is C (h L)^k.

    Of a quadrature, y' = (L t)^(k - 1) / (k - 1)!, where that is more. None for an implicit
    method, whose error under stiff f is no power of h.
    """
    if tableau.implicit or tableau.e is None:
        return None
    constant, k = _leading(tableau, tableau.e)
    if tableau.e_low is None:
        return constant if k == _error_order(tableau) + 1 else None
    low, k_low = _leading(tableau, tableau.e_low)  # as `blended` has it
    return constant**2 / (0.1 * low) if 2 * k - k_low == _error_order(tableau) + 1 else None


def _leading(tableau: Method, weights: Sequence[float]) -> tuple[float, int]:
    """First power of h in an error estimate, and its factor; (0, 0) where there is none."""
    n = len(weights)
    rows, c = tableau.a[:n], tableau.c[:n]
    stages = [1.0] * n  # the power of h in each stage's f under y' = y
    for k in range(1, n + 1):
        powers = [x ** (k - 1) / math.factorial(k - 1) for x in c]
        found = (math.fsum(map(operator.mul, weights, x)) for x in (stages, powers))
        constant = max(map(abs, found))
        if constant > 1e-12:  # the others are rounding
            return constant, k
        stages = [math.fsum(map(operator.mul, row, stages)) for row in rows]
    return 0.0, 0


def _error_order(tableau: Method) -> int:
    return tableau.order if tableau.error_order is None else tableau.error_order
