"""The continuous adjoint as every backend of ours walks it: Algorithms 1 and 2 of the paper.

From the last output time to the first, one interval at a time: the adjoint jumps by the gradient
that reaches an output, the state is put back to the stored output, and  [y, a]  with
dy/dt = f,  da/dt = -a df/dy  is solved backwards, while  dL/dtheta = int a df/dtheta dt  is summed
up (arXiv 1806.07366v5, eq. 4 and 5, Algorithm 1, figure 2). Who solves an interval is handed in.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ctflow.backends.captures import Captures, pull, sequence_number
from ctflow.backends.field import Field
from ctflow.errors import GradientWarning, SolveFailed
from ctflow.solution import GradientReport
from ctflow.state import widest

__all__ = [
    "LOOK_CLOSER",
    "AdjointField",
    "Evaluated",
    "Found",
    "Interval",
    "IntervalSolver",
    "Linearised",
    "RanAway",
    "conclude",
    "drift_of",
    "effect_of_drift",
    "in_tolerances",
    "recorded",
    "scale_of",
    "size_of",
    "walk",
    "warn",
]

LOOK_CLOSER = 1e-5  # relative drift from which its effect on the gradient is estimated
_DOUBT = 5e-3  # estimated relative error of the gradient from which a warning is given
_QUADRATURE = 100.0  # estimated error in tolerances from which a warning is given
_DEEPEST = 12  # halvings of an interval
_SMALLEST = 1e-30


class Evaluated(NamedTuple):
    """The field at one place, with the graph that its vector-Jacobian products need.

    Attributes:
        dy: f(t, y), [B, N], with its graph.
        state: The leaf it was evaluated at, [B, N].
        a: Adjoint there, [B, N].
        pulled: a df/dy, [B, N].
        t: Time, [B].
        shares: a df/dtheta, summed over samples, for each parameter; empty where it is asked for
            later, of the graph.
    """

    dy: Tensor
    state: Tensor
    a: Tensor
    pulled: Tensor
    t: Tensor
    shares: tuple[Tensor, ...] = ()


class Linearised(Protocol):
    """f and its vector-Jacobian products."""

    @property
    def leaves(self) -> Sequence[Tensor]:
        """The parameters."""
        ...

    def __call__(self, t: Tensor, y: Tensor, a: Tensor) -> Evaluated:
        """Evaluate f and a df/dy at times [B], states [B, N] and adjoints [B, N]."""
        ...

    def weighted(
        self, weights: Sequence[float], places: Sequence[Evaluated], h: Tensor, keep: bool
    ) -> list[Tensor]:
        """Sum over places of weight h a df/dtheta, summed over samples; h is [B, 1].

        One tensor for each of `leaves`; `keep` says whether the graphs are needed again.
        """
        ...


def scale_of(size: Tensor, absolute: bool) -> Tensor:
    """What the adjoint, which is linear, is divided by while it is solved.

    Args:
        size: The largest of the incoming gradient: one number, or one for each sample.
        absolute: Whether the tolerances are not in units of it.

    Returns:
        The size, where it is not 0; of absolute tolerances 1.
    """
    if absolute:
        return torch.ones_like(size)
    return torch.where(size > 0, size, 1.0)


def recorded(
    field: Field, captures: Captures, leaves: tuple[Tensor, ...], t: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """A leaf with the values of y, and f there with its graph.

    Args:
        field: dy/dt on flat tensors.
        captures: What it reads beside t and y.
        leaves: What stands in the place of `captures.inputs` now.
        t: Times [B].
        y: States [B, N].

    Raises:
        Unsupported: If f reached a tensor that the forward pass could not name.
    """
    with torch.enable_grad():
        state = y.detach().requires_grad_()
        marker = sequence_number()
        dy = field(t, state)
        captures.recheck(dy, state, marker, leaves, t)
    return state, dy


class AdjointField:
    """f and its vector-Jacobian products, while the captured tensors stand as in the forward pass.

    Args:
        field: dy/dt on flat tensors.
        captures: What it reads beside t and y.
        leaves: What stands in the place of `captures.inputs` now.
    """

    def __init__(self, field: Field, captures: Captures, leaves: tuple[Tensor, ...]) -> None:
        self._field = field
        self._captures = captures
        self.leaves = leaves
        self.n_f_evals = 0

    def __call__(self, t: Tensor, y: Tensor, a: Tensor) -> Evaluated:
        """Evaluate f and a df/dy at times [B], states [B, N] and adjoints [B, N]."""
        self.n_f_evals += 1
        state, dy = recorded(self._field, self._captures, self.leaves, t, y)
        (pulled,) = pull((dy,), (state,), (a,), keep=True) if dy.requires_grad else (None,)
        return Evaluated(dy, state, a, torch.zeros_like(y) if pulled is None else pulled, t)

    def weighted(
        self, weights: Sequence[float], places: Sequence[Evaluated], h: Tensor, keep: bool
    ) -> list[Tensor]:
        """Sum over places of weight h a df/dtheta; see `Linearised.weighted`."""
        cotangents = [w * h * p.a for w, p in zip(weights, places, strict=True)]
        return self.parameters(places, cotangents, keep)

    def parameters(
        self, places: Sequence[Evaluated], cotangents: Sequence[Tensor], keep: bool
    ) -> list[Tensor]:
        """Sum over places of cotangent df/dtheta, summed over samples; never [B, P].

        Args:
            places: Where f was evaluated.
            cotangents: One [B, N] for each place.
            keep: Whether the graphs are needed again.

        Returns:
            One tensor for each of `leaves`; zeros where f did not reach it.
        """
        pairs = [(p.dy, c) for p, c in zip(places, cotangents, strict=True) if p.dy.requires_grad]
        if not (pairs and self.leaves):
            return [torch.zeros_like(leaf) for leaf in self.leaves]
        shares = pull([dy for dy, _ in pairs], self.leaves, [c for _, c in pairs], keep)
        return [
            torch.zeros_like(leaf) if share is None else share
            for leaf, share in zip(self.leaves, shares, strict=True)
        ]


class RanAway(Exception):
    """The state rebuilt backwards left the range of the forward pass, or could not go on.

    Args:
        t: Time at which it was given up.
        cause: What happened, for the message.
    """

    def __init__(self, t: float, cause: str) -> None:
        super().__init__(cause)
        self.t = t
        self.cause = cause


class IntervalSolver(Protocol):
    """Whoever solves the adjoint equation backwards over one interval at a time."""

    def back(self, t_from: Tensor, t_to: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """State and adjoint at t_to [B] from those at t_from [B]; sums up the quadrature.

        Raises:
            RanAway: If it did not get there; the quadrature is as it was before.
        """
        ...

    def forth(self, t_from: Tensor, t_to: Tensor, y: Tensor) -> Tensor:
        """State at t_to [B] from that at t_from [B], as the forward pass would find it."""
        ...


class Interval(NamedTuple):
    """What is known of the gradient's error after one interval.

    Attributes:
        drift: Distance of the rebuilt state from the stored one, relative, [B].
        error: Estimated relative error of the adjoint, [B].
        shared: Estimated error of the parameters' gradient, absolute, 0-dim.
        splits: How often the interval had to be split.
        cause: Why, if it was.
    """

    drift: Tensor
    error: Tensor
    shared: Tensor
    splits: int = 0
    cause: str = ""


def walk(
    solver: IntervalSolver, field: Linearised, times: Tensor, out: Tensor, g: Tensor
) -> tuple[Tensor, list[Interval]]:
    """Solve the adjoint equation from the last output time to the first.

    Args:
        solver: Solves one interval.
        field: For the estimate of what the drift does to the gradient.
        times: Output times, [B, T].
        out: Stored states, [T, B, N].
        g: Gradient that reaches each of them, [T, B, N].

    Returns:
        Gradient of the initial state, [B, N], and what was found on each interval, first to last.

    Raises:
        SolveFailed: If an interval cannot be solved backwards even in small pieces.
    """
    largest = size_of(out)
    a = g[-1]
    found: list[Interval] = []
    for i in range(out.shape[0] - 1, 0, -1):
        ends = (times[:, i], times[:, i - 1])
        a, interval = _interval(solver, field, ends, (out[i], out[i - 1]), a, largest, 0)
        found.append(interval)
        a = a + g[i - 1]
    return a, found[::-1]


def _interval(
    solver: IntervalSolver,
    field: Linearised,
    times: tuple[Tensor, Tensor],
    states: tuple[Tensor, Tensor],
    a: Tensor,
    largest: Tensor,
    depth: int,
) -> tuple[Tensor, Interval]:
    """Adjoint at the earlier end of an interval; in two halves if solving back runs away.

    The state in the middle is solved for forwards once more, so the memory grows by one state for
    each halving.
    """
    try:
        rebuilt, a = solver.back(*times, states[0], a)
    except RanAway as stop:
        if depth == _DEEPEST:
            raise SolveFailed(
                f"the adjoint cannot be solved backwards near t={stop.t:.6g}: {stop.cause}, even "
                f"over 1/{2**depth} of the interval. Use gradient='checkpointed'."
            ) from None
        middle = (times[0] + times[1]) / 2
        state = solver.forth(times[1], middle, states[1])
        a, late = _interval(
            solver, field, (times[0], middle), (states[0], state), a, largest, depth + 1
        )
        a, early = _interval(
            solver, field, (middle, times[1]), (state, states[1]), a, largest, depth + 1
        )
        return a, Interval(
            torch.maximum(late.drift, early.drift),
            torch.maximum(late.error, early.error),
            late.shared + early.shared,
            late.splits + early.splits + 1,
            f"{stop.cause} at t={stop.t:.6g}",
        )
    return a, _drift(field, times, rebuilt, states[1], a, largest)


def _drift(
    field: Linearised,
    times: tuple[Tensor, Tensor],
    rebuilt: Tensor,
    stored: Tensor,
    a: Tensor,
    largest: Tensor,
) -> Interval:
    """How far the rebuilt state is from the stored one, and what that did to the gradient."""
    drift = drift_of(rebuilt, stored, largest)
    if not bool((drift > LOOK_CLOSER).any()):
        none = torch.zeros_like(drift)
        return Interval(drift, none, none.sum())
    return Interval(drift, *effect_of_drift(field, times, rebuilt, stored, a))


def in_tolerances(
    errors: Sequence[Tensor], sizes: Sequence[Tensor], rtol: float | Tensor, atol: float | Tensor
) -> Tensor:
    """Root mean square of the errors of the parameters' gradient over their tolerance, 0-dim.

    The tolerance of an element is relative to its own size or to that of the tensor it is in, its
    root mean square, whichever is larger. Relative to its own alone, the elements in which the
    shares of many samples cancel would decide: for convolutions with ReLU twice as many steps.

    Args:
        errors: One tensor for each parameter.
        sizes: Absolute values of what these are errors of.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
    """
    square, count = sizes[0].new_zeros((), dtype=widest(sizes[0].device)), 0
    for error, size in zip(errors, sizes, strict=True):
        error, size = _wide(error), _wide(size)
        whole = torch.linalg.vector_norm(size) * max(size.numel(), 1) ** -0.5
        tolerance = atol + rtol * torch.maximum(size, whole)
        square = square + ((error.abs() / tolerance) ** 2).sum()
        count += error.numel()
    return (square / max(count, 1)).sqrt()


def size_of(out: Tensor) -> Tensor:
    """Size of each sample's largest stored state, [B], never 0; of states [T, B, N]."""
    return _rms(out).amax(dim=0).clamp(min=_SMALLEST)


def drift_of(rebuilt: Tensor, stored: Tensor, largest: Tensor) -> Tensor:
    """Distance of the rebuilt state from the stored one, relative to `largest`, [B]."""
    return _rms(rebuilt - stored) / largest


def effect_of_drift(
    field: Linearised, times: tuple[Tensor, Tensor], rebuilt: Tensor, stored: Tensor, a: Tensor
) -> tuple[Tensor, Tensor]:
    """What a drift does to the gradient.

    Along an interval the distance d grows at a rate |f(rebuilt) - f(stored)| / |d|, so that its
    effect lasts for the smaller of the interval and 1 / rate. The effect itself is the change of
    a df/dy and a df/dtheta between the two states.

    Args:
        field: f and its products.
        times: Later and earlier end of the interval, [B] each.
        rebuilt: State found at the earlier end, [B, N].
        stored: State that the forward pass had there.
        a: Adjoint there.

    Returns:
        Estimated relative error of the adjoint, [B], and of the parameters' gradient, absolute.
    """
    d = rebuilt - stored
    t = times[1].to(d.dtype)
    there, here = field(t, rebuilt, a), field(t, stored, a)
    rate = _rms((there.dy - here.dy).detach()) / _rms(d).clamp(min=_SMALLEST)
    length = (times[0] - times[1]).abs().to(d.dtype)
    lasting = torch.minimum(length, 1 / rate.clamp(min=_SMALLEST))
    changed = _rms(there.pulled - here.pulled) * lasting / _rms(a).clamp(min=_SMALLEST)
    weight = lasting.to(d.dtype).unsqueeze(1)
    moved = field.weighted((1.0, -1.0), (there, here), weight, keep=False)
    none = torch.zeros_like(lasting).sum()
    return _finite_or_inf(changed), _finite_or_inf(_norm(moved) + none)


class Found(NamedTuple):
    """What is known of the gradient's error on all intervals, first to last.

    Attributes:
        drift: Distance of the rebuilt states from the stored ones, relative, [B, T - 1].
        error: Estimated relative error of the adjoint, [B, T - 1].
        shared: Estimated error of the parameters' gradient, absolute, [T - 1].
    """

    drift: Tensor
    error: Tensor
    shared: Tensor


def conclude(
    report: GradientReport,
    times: Tensor,
    found: list[Interval],
    gradients: Sequence[Tensor],
    quadrature_error: float,
) -> None:
    """Fill the report, and warn where it gives reason to.

    Args:
        report: The handle of the solution.
        times: Output times, [B, T].
        found: What `walk` returned.
        gradients: Parameters' gradients, in the units in which they were summed.
        quadrature_error: Estimated error of these in units of tolerance.
    """
    together = Found(
        torch.stack([f.drift for f in found], dim=1).cpu(),
        torch.stack([f.error for f in found], dim=1).cpu(),
        torch.stack([f.shared for f in found]).cpu(),
    )
    splits = [
        f"the adjoint ran away on the interval {_span(times, 0, i)} (number {i}): "
        f"{interval.cause}. It was split {interval.splits} times, at states solved for "
        "forwards once more, which costs time. Use gradient='checkpointed'."
        for i, interval in enumerate(found)
        if interval.splits
    ]
    warn(report, times, together, gradients, quadrature_error, splits)


def warn(
    report: GradientReport,
    times: Tensor,
    found: Found,
    gradients: Sequence[Tensor],
    quadrature_error: float,
    splits: Sequence[str] = (),
) -> None:
    """Fill the report, and warn where it gives reason to; see `conclude`.

    Args:
        report: The handle of the solution.
        times: Output times, [B, T].
        found: On the CPU.
        gradients: Parameters' gradients, in the units in which they were summed.
        quadrature_error: Estimated error of these in units of tolerance.
        splits: Messages about intervals that had to be split.
    """
    drift = found.drift
    whole = _norm(gradients).clamp(min=_SMALLEST) if gradients else torch.ones(())
    error = torch.maximum(found.error, found.shared / whole.cpu())
    messages: list[str] = []
    sample, i = divmod(int(error.argmax()), error.shape[1])
    if float(error[sample, i]) > _DOUBT:
        who = f" of sample {sample}" if drift.shape[0] > 1 else ""
        messages.append(
            f"the adjoint's gradient{who} is in doubt: on the interval {_span(times, sample, i)} "
            f"(number {i}) the state rebuilt backwards ends {float(drift[sample, i]):.2g} of its "
            f"size away from the stored one; estimated relative error of the gradient "
            f"{float(error[sample, i]):.2g}. Use gradient='checkpointed', or tighter `backward` "
            "tolerances, or more output times."
        )
    messages += splits
    if quadrature_error > _QUADRATURE:
        messages.append(
            "the adjoint's parameter gradient is in doubt: the error estimate of its quadrature is "
            f"{quadrature_error:.2g} times the tolerance: the seminorm left it out of the step "
            "decision, or `f` has too many kinks. Use Tolerances(norm='full'), or "
            "gradient='checkpointed'."
        )
    report.fill(drift, error, quadrature_error, tuple(messages))
    for message in messages:
        warnings.warn(message, GradientWarning, stacklevel=3)


def _span(times: Tensor, sample: int, i: int) -> str:
    return f"from t={float(times[sample, i]):.6g} to {float(times[sample, i + 1]):.6g}"


def _finite_or_inf(x: Tensor) -> Tensor:
    return torch.where(torch.isfinite(x), x, torch.inf)


def _rms(x: Tensor) -> Tensor:
    """Root mean square over the variables of each sample."""
    return torch.linalg.vector_norm(_wide(x), dim=-1) * x.shape[-1] ** -0.5


def _wide(x: Tensor) -> Tensor:
    """Half precision as float32: it has no `_SMALLEST`, and its sums of squares overflow."""
    return x.float() if x.dtype.itemsize < 4 else x


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of several tensors together; 0 for none."""
    squares = [torch.linalg.vector_norm(x).square() for x in tensors]
    return torch.stack(squares).sum().sqrt() if squares else torch.zeros(())
