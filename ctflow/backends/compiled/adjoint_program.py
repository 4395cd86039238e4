"""The adjoint's walk over all output intervals as one loop: its phases, and the programs of them.

Native's own step, control and quadrature are called here on [y, a], and followed once into a graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ctflow.backends.adjoint import (
    LOOK_CLOSER,
    Evaluated,
    Linearised,
    drift_of,
    effect_of_drift,
    scale_of,
    size_of,
)
from ctflow.backends.compiled.controls import judge, memory_before, with_values
from ctflow.backends.compiled.forward_program import stops_from
from ctflow.backends.compiled.rewrite import in_turns, once, outputs_of
from ctflow.backends.compiled.trace import Traced, graph_of
from ctflow.backends.compiled.trial import Looped, loop
from ctflow.backends.native.control import Control, Span
from ctflow.backends.native.gradients.quadrature import FAR, WithQuadrature
from ctflow.backends.native.loop import resolution, step_end
from ctflow.backends.native.step import combine, rk_step
from ctflow.backends.native.stops import Stops
from ctflow.backends.protocol import Tolerances, is_absolute, leaves_out
from ctflow.backends.tableau import Tableau

__all__ = ["AdjointPhases", "AdjointProgram", "EffectProgram", "Ends", "Head", "Kept"]


class Head(NamedTuple):
    """The whole numbers that a walk is called with, that its loop carries, and that it returns.

    Attributes:
        left: Intervals left.
        limit: Most steps.
        steps: Attempted steps.
        lost: Not 0 if the state rebuilt backwards ran away.
        look: Not 0 if it drifted so far that the effect on the gradient is to be estimated.
    """

    left: int
    limit: int
    steps: int = 0
    lost: int = 0
    look: int = 0


class Ends(NamedTuple):
    """What the walk is between.

    Attributes:
        times: Output times, [B, T].
        out: States there, [T, B, N].
        g: Gradient that reaches each of them, [T, B, N].
        largest: Largest |y| of the forward pass, [B].
    """

    times: Tensor
    out: Tensor
    g: Tensor
    largest: Tensor


class Constants(NamedTuple):
    """What the loop is given beside its inputs.

    Attributes:
        g: Gradient that reaches each output, each sample's divided by its size, [T, B, N].
        share: Size of each sample's gradient, divided by the largest, [B, 1].
        bound: Largest |y| that a rebuilt state may have, [B].
        sizes: Root mean square of the largest output, [B].
        direction: Of the walk: +1 or -1, [B].
    """

    g: Tensor
    share: Tensor
    bound: Tensor
    sizes: Tensor
    direction: Tensor


class Kept(NamedTuple):
    """What the walk writes down at the earlier end of each interval; entry i is of output i.

    Attributes:
        states: States rebuilt backwards, [T, B, N].
        adjoints: Adjoints before the jump, at their scale, [T, B, N].
        drifts: Relative distances of rebuilt from stored states, [T, B].
    """

    states: Tensor
    adjoints: Tensor
    drifts: Tensor


class Products:
    """f and its vector-Jacobian products as graphs.

    Args:
        traced: The graphs.
        tensors: What f reads.
    """

    def __init__(self, traced: Traced, tensors: Sequence[Tensor]) -> None:
        if traced.pulled is None:
            raise RuntimeError("this program was traced without a derivative")
        self._graph = traced.pulled
        self._tensors = tuple(tensors)
        self.leaves = tuple(tensors[i] for i in traced.wanted)

    def __call__(self, t: Tensor, y: Tensor, a: Tensor) -> Evaluated:
        """Evaluate f and all products with one cotangent."""
        dy, pulled, *shares = self._graph(t, y, a, *self._tensors)
        return Evaluated(dy, y, a, pulled, t, tuple(shares))

    def weighted(
        self, weights: Sequence[float], places: Sequence[Evaluated], h: Tensor, keep: bool
    ) -> list[Tensor]:
        """Sum over places of weight h a df/dtheta; see `Linearised.weighted`.

        One sample has one h, which is a factor of the products that are there already.
        """
        del keep
        if h.shape[0] == 1:
            factor = h.reshape(())
            return [
                combine(weights, [p.shares[j] for p in places]) * factor
                for j in range(len(self.leaves))
            ]
        found = [self(p.t, p.state, w * h * p.a) for w, p in zip(weights, places, strict=True)]
        ones = [1.0] * len(found)
        return [combine(ones, [p.shares[j] for p in found]) for j in range(len(self.leaves))]


@dataclass(frozen=True)
class AdjointPhases:
    """The phases of the walk.

    Args:
        tableau: The method.
        control: Step sizes of the backward solve; its values are replaced by inputs.
        traced: f and its vector-Jacobian product as graphs.
        n_values: How many values the control takes.
        own: Tolerances of the backward solve, whose numbers are inputs. Under the seminorm the
            error of the parameters' quadrature is summed up, and decides nothing.
        carries: Whether the derivative at the end of a step is kept for the next: of one sample,
            without outputs inside, where it jumps.
        n_stops: How many inputs say where steps must end: 0, 1 (times) or 2 (and jumps).
    """

    tableau: Tableau
    control: Control
    traced: Traced
    n_values: int
    own: Tolerances | None
    carries: bool
    n_stops: int = 0

    @property
    def seminorm(self) -> bool:
        """Whether the error of the parameters' quadrature decides nothing."""
        return leaves_out(self.own)

    @property
    def n_totals(self) -> int:
        """Parameters that a gradient is wanted of."""
        return len(self.traced.wanted)

    def _split(self, rest: Sequence[Tensor]) -> tuple[Control, Stops | None, Products]:
        control, rest = with_values(self.control, rest[: self.n_values]), rest[self.n_values :]
        stops, tensors = stops_from(rest[: self.n_stops]), rest[self.n_stops :]
        return control, stops, Products(self.traced, tensors)

    def start(self, head: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the loop carries at its beginning, and the `Constants`.

        The adjoint is linear: each sample's is solved at size 1, or as it is.
        """
        ends = Ends(*inputs[:4])
        control, stops, field = self._split(inputs[4:])
        scale = scale_of(ends.g.abs().amax(dim=(0, 2)), is_absolute(self.own)).unsqueeze(1)
        t, t_next = ends.times[:, -1], ends.times[:, -2]
        constants = Constants(
            ends.g / scale,
            scale / scale.amax(),
            (FAR * ends.largest).to(scale.dtype),
            size_of(ends.out),
            torch.sign(t_next - t),
        )
        quadrature = self._quadrature(control, field, constants)
        both = torch.cat([ends.out[-1], constants.g[-1]], dim=1)
        span = Span(t, t_next, constants.direction)
        first = probe = quadrature.field_of_both
        if stops is not None:
            first, probe = stops.beside(first, span.direction), stops.beside(probe, -span.direction)
            span = stops.first_stretch(span)
        f = first(t.to(both.dtype), both)
        step, n_probes = quadrature.first(probe, self.tableau, span, both, f)
        n_evals = n_probes + 1 if n_probes or self.carries else 0
        ticks = torch.zeros((2, t.shape[0]), dtype=torch.int64, device=t.device)
        ticks = torch.cat((torch.full_like(ticks[:1], n_evals), ticks))
        clock = torch.cat((torch.stack((t, step)), memory_before(control, self.tableau, t, both)))
        carry = [head.clone(), clock, ticks, both]
        if self.carries:
            carry += [f, *quadrature.place_of(f).shares]
        return (*carry, *constants, scale)

    @property
    def n_carried(self) -> int:
        """How many of what `start` returns the loop carries."""
        return 5 + self.n_totals if self.carries else 4

    def _quadrature(
        self,
        control: Control,
        field: Products,
        constants: Constants,
        totals: Sequence[Tensor] | None = None,
    ) -> WithQuadrature:
        share, bound = constants.share, constants.bound
        return WithQuadrature(control, field, share, bound, self.seminorm, totals)

    def going(self, head: Tensor) -> Tensor:
        """Whether another step is to be taken."""
        left, limit, steps, lost, _ = head.split(1)
        return ((left > 0) & (steps < limit) & (lost == 0)).all()

    def step(
        self,
        carry: Sequence[Tensor],
        constants: Constants,
        times: Tensor,
        out: Tensor,
        kept: Kept,
        totals: Sequence[Tensor],
        estimates: Sequence[Tensor],
        rest: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """One attempted step of every sample on the present interval: native's loop, one turn.

        When all samples have arrived at the interval's earlier end, state and adjoint jump: to the
        stored state, and by the gradient that reaches it.
        """
        control, stops, field = self._split(rest)
        tableau = self.tableau
        head, clock, ticks, both, *known = carry
        left, limit, steps, lost, look = head.split(1)
        t, size, memory = clock[0], clock[1], clock[2:]
        goal = left - 1
        t_from, t_to = (torch.index_select(times, 1, i)[:, 0] for i in (left, goal))
        span = Span(t_from, t_to, constants.direction)
        stored = _pick(out, goal)
        quadrature = self._quadrature(control, field, constants, totals)
        f = self._remembered(quadrature, t, both, known)

        active = t != t_to
        end = torch.where(active, step_end(quadrature, stops, t, size, span), t)
        seen = None if stops is None else stops.seen(t, end, both.dtype)
        step = rk_step(quadrature.field_of_both, tableau, t, end, both, f, seen)
        verdict, memory = judge(quadrature, tableau, step, size, memory)
        moved = verdict.accepted & active & (end != t)
        t_new = torch.where(moved, end, t)
        both_new = torch.where(moved.unsqueeze(1), step.y1, both)
        stuck = active & ~moved & (verdict.size <= resolution(t_new, span))
        arrived = (t_new == t_to).all()

        y, a = both_new.chunk(2, dim=1)
        drift = drift_of(y, stored, constants.sizes)
        for record, value in zip(kept, (y, a, drift), strict=True):
            record.index_copy_(0, goal, value.unsqueeze(0))
        added = [part for parts in quadrature.pending[: 1 + self.seminorm] for part in parts]
        for total, part in zip((*totals, *estimates), added, strict=True):
            total.add_(torch.where(moved.any(), part, 0.0))

        anew = memory_before(control, tableau, t, both)
        memory = torch.where(arrived, anew, memory)  # native's loop begins anew
        jumped = torch.cat([stored, a + _pick(constants.g, goal)], dim=1)
        evals, done, n_rejected = ticks.unbind(0)
        per_step = tableau.stages - self.carries
        drifted = arrived & (drift > LOOK_CLOSER).any()
        found = [
            torch.cat(
                (left - arrived.long(), limit, steps + 1, lost + stuck.any(), look + drifted)
            ),
            torch.cat((torch.stack((t_new, verdict.size)), memory)),
            torch.stack((evals + per_step, done + active, n_rejected + (active & ~moved))),
            torch.where(arrived, jumped, both_new),
        ]
        if self.carries:
            found.append(torch.where(moved.unsqueeze(1), step.k[-1], step.k[0]))
            later = quadrature.place_of(step.k[-1]).shares
            found += [torch.where(moved[0], x, q) for x, q in zip(later, known[1:], strict=True)]
        return tuple(found)

    def _remembered(
        self, quadrature: WithQuadrature, t: Tensor, both: Tensor, known: Sequence[Tensor]
    ) -> Tensor | None:
        """The derivative that an earlier step left, as a place of the quadrature."""
        if not self.carries:
            return None
        f, *shares = known
        y, a = both.chunk(2, dim=1)
        dy, da = f.chunk(2, dim=1)
        place = Evaluated(dy, y, a, -da, t.to(y.dtype), tuple(shares))
        quadrature.remember(f, place)
        return f

    def effect(
        self,
        left: Tensor,
        times: Tensor,
        out: Tensor,
        kept: Kept,
        errors: Tensor,
        shared: Tensor,
        tensors: Sequence[Tensor],
    ) -> Tensor:
        """Estimate what the drift did on one interval; writes to `errors` and `shared`."""
        goal = left - 1
        field: Linearised = Products(self.traced, tensors)
        later, earlier = (torch.index_select(times, 1, i)[:, 0] for i in (left, goal))
        state, a, drift = (_pick(x, goal) for x in kept)
        error, of_parameters = effect_of_drift(field, (later, earlier), state, _pick(out, goal), a)
        matters = (drift > LOOK_CLOSER).any()
        errors.index_copy_(0, goal, torch.where(matters, error, 0.0).unsqueeze(0))
        shared.index_copy_(0, goal, torch.where(matters, of_parameters, 0.0).reshape(1))
        return left - 1


class _Parts(NamedTuple):
    """The inputs of a walk, sorted."""

    head: Tensor
    ends: Ends
    kept: Kept
    totals: Sequence[Tensor]
    estimates: Sequence[Tensor]
    rest: Sequence[Tensor]


class AdjointProgram(Looped):
    """The walk from the last output time to the first.

    Args:
        phases: What it does.
        inputs: Examples of what `forward` takes: `Head`, `Ends`, `Kept`, totals, estimates, values
            of the control, tensors.
        exact: No approximations of elementary functions.
    """

    RESULTS = (2,)  # the gradient of the initial state

    def __init__(self, phases: AdjointPhases, inputs: Sequence[Tensor], exact: bool) -> None:
        super().__init__()
        self._n_totals = n = phases.n_totals
        self._n_estimates = n if phases.seminorm else 0
        self._n_carried = phases.n_carried
        head, ends, *buffers, rest = self._parts(inputs)
        start = graph_of(phases.start, (head, *ends, *rest))
        found = outputs_of(start)
        self._start = once(start, exact)
        self._going = graph_of(phases.going, (head,))

        n = self._n_carried + len(Constants._fields)
        before = (*found[:n], ends.times, ends.out, *(x for each in buffers for x in each))

        def step(*everything: Tensor) -> tuple[Tensor, ...]:
            carry, constants = (
                everything[: self._n_carried],
                Constants(*everything[self._n_carried : n]),
            )
            times, out, *others = everything[n:]
            _, _, kept, totals, estimates, rest = self._parts((head, *ends, *others))
            return phases.step(carry, constants, times, out, kept, totals, estimates, rest)

        graph, first = graph_of(step, (*before, *rest)), len(before)
        self._before, self._step = in_turns(graph, exact, range(first, first + len(rest)))

    def _parts(self, inputs: Sequence[Tensor]) -> _Parts:
        totals, rest = inputs[8 : 8 + self._n_totals], inputs[8 + self._n_totals :]
        estimates, rest = rest[: self._n_estimates], rest[self._n_estimates :]
        return _Parts(inputs[0], Ends(*inputs[1:5]), Kept(*inputs[5:8]), totals, estimates, rest)

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with another limit of steps."""
        head, place = inputs[0].clone(), Head._fields.index("limit")
        head[place] = head[place].clamp(max=n_steps)
        return [head, *inputs[1:]]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The head, costs [4, B], gradient of the initial state, and the factor of the totals."""
        with torch.no_grad():
            head, ends, *buffers, rest = self._parts(inputs)
            found = self._start(head, *ends, *rest)
            carry, constants, scale = (
                found[: self._n_carried],
                found[self._n_carried : -1],
                found[-1],
            )
            given = (*constants, ends.times, ends.out, *(x for each in buffers for x in each))
            given = (*given, *self._before(*rest))

            def going(*carry: Tensor) -> Tensor:
                return self._going(carry[0])

            def step(*carry: Tensor) -> tuple[Tensor, ...]:
                return self._step(*carry, *given)

            head, _, ticks, both, *_ = loop(going, step, tuple(carry))
            evals, done, n_rejected = ticks.unbind(0)
            costs = torch.stack((evals, done, done - n_rejected, n_rejected))
            return head, costs, both[:, both.shape[1] // 2 :] * scale, scale.amax()


class EffectProgram(Looped):
    """What the drift did to the gradient, one interval after the other.

    Args:
        phases: What it does.
        inputs: Examples of what `forward` takes.
        exact: No approximations of elementary functions.
    """

    def __init__(self, phases: AdjointPhases, inputs: Sequence[Tensor], exact: bool) -> None:
        super().__init__()

        def step(*inputs: Tensor) -> Tensor:
            left, times, out, states, adjoints, drifts, errors, shared, *tensors = inputs
            kept = Kept(states, adjoints, drifts)
            return phases.effect(left, times, out, kept, errors, shared, tensors)

        graph = graph_of(lambda *inputs: [step(*inputs)], inputs)
        self._before, self._step = in_turns(graph, exact, range(8, len(inputs)))

    def limited(self, inputs: Sequence[Tensor], n_steps: int) -> list[Tensor]:
        """The inputs with fewer intervals: the first ones."""
        return [inputs[0].clamp(max=n_steps), *inputs[1:]]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Nothing of interest: errors and shared are written to."""
        left, times, out, states, adjoints, drifts, errors, shared, *tensors = inputs
        with torch.no_grad():
            constant = self._before(*tensors)

            def going(left: Tensor) -> Tensor:
                return (left > 0).all()

            def step(left: Tensor) -> tuple[Tensor]:
                return tuple(
                    self._step(
                        left, times, out, states, adjoints, drifts, errors, shared, *constant
                    )
                )

            (left,) = loop(going, step, (left.clone(),))
            return left


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """Entry `index` [1] along the first dimension; no host is asked for it."""
    return torch.index_select(x, 0, index)[0]
