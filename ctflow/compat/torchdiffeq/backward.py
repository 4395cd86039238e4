"""The adjoint equation as a system of its own, and one interval's solve of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends.adjoint import Evaluated, RanAway, recorded
from ctflow.backends.captures import Captures, pull
from ctflow.backends.field import Field
from ctflow.compat.torchdiffeq.norms import Norm, flat_norm, mixed
from ctflow.compat.torchdiffeq.options import AdaptiveOptions
from ctflow.compat.torchdiffeq.request import Request, asked
from ctflow.compat.torchdiffeq.trajectory import last, trajectory
from ctflow.errors import InvalidProblem, SolveFailed, Unsupported
from ctflow.solution import Solution

__all__ = ["Augmented", "Backward", "Intervals"]


@dataclass(frozen=True, eq=False)
class Backward:
    """How the adjoint equation is solved.

    Args:
        like: Method, tolerances, options and callbacks; its dynamics and state are replaced.
        norm: None for torchdiffeq's own, "seminorm", or a function of
            (t, *y, *adjoint of y, *adjoints of the parameters).
        params: Leaves wanted a gradient for.
        as_forward: Whether method and options are those of the forward solve.
    """

    like: Request
    norm: str | Norm | None
    params: tuple[Tensor, ...]
    as_forward: bool

    @classmethod
    def of(
        cls,
        request: Request,
        tolerances: tuple[object, object],
        method: str | None,
        options: dict[str, Any],
        params: tuple[object, ...],
    ) -> Backward:
        """The arguments of `odeint_adjoint` whose names begin with `adjoint_`, checked.

        Raises:
            InvalidProblem: For what means nothing.
            Unsupported: For an option that cannot be honoured.
        """
        given = dict(options)
        norm = given.pop("norm", None)
        if norm is not None and norm != "seminorm" and not callable(norm):
            raise InvalidProblem(
                f"`norm` of `adjoint_options` must be 'seminorm' or a function, got {norm!r}."
            )
        for i, param in enumerate(params):
            if not isinstance(param, Tensor):
                raise InvalidProblem(
                    f"`adjoint_params` must hold tensors, got {type(param).__name__} at index {i}. "
                    "Pass module.parameters()."
                )
        wanted = tuple(p for p in params if isinstance(p, Tensor) and p.requires_grad)
        # What is computed from others is found where the dynamics keep it, or parts of it.
        leaves = tuple(p for p in wanted if p.is_leaf)
        if callable(norm) and len(leaves) < len(wanted):
            raise Unsupported(
                "a `norm` of your own does not go with `adjoint_params` that are computed from "
                f"other tensors, got {len(wanted) - len(leaves)} of them: ctflow cuts the graph "
                "where the dynamics keep them. Leave one of the two out."
            )
        like = asked(request.func, request.y0, request.t, *tolerances, method, given, "_adjoint")
        if isinstance(like.rtol, Tensor) or isinstance(like.atol, Tensor):
            raise InvalidProblem(
                "`adjoint_rtol` and `adjoint_atol` must be numbers, got one for each element: the "
                "adjoint has other elements. Pass one number each."
            )
        if norm is not None and like.kind != "adaptive":
            raise Unsupported(
                f"adjoint_method={like.method!r} does not have the option 'norm': it takes its "
                "steps whatever the error. Leave it out."
            )
        same = like.method == request.method and not (given.keys() - {"solver"})
        return cls(like, norm, leaves, same)


class Augmented:
    """f and its vector-Jacobian products with respect to state and parameters, in one pass.

    Args:
        flat: dy/dt on flat tensors.
        captures: What it reads beside t and y.
        leaves: What stands in the place of `captures.inputs` now.
    """

    def __init__(self, flat: Field, captures: Captures, leaves: tuple[Tensor, ...]) -> None:
        self._flat = flat
        self._captures = captures
        self.leaves = leaves

    def __call__(self, t: Tensor, y: Tensor, a: Tensor) -> Evaluated:
        """Evaluate f, a df/dy and a df/dtheta at times [1], states [1, N] and adjoints [1, N]."""
        state, dy = recorded(self._flat, self._captures, self.leaves, t, y)
        wanted = (state, *self.leaves)
        none = [None] * len(wanted)
        found = pull((dy,), wanted, (a,), keep=False) if dy.requires_grad else none
        pulled, *shares = (
            torch.zeros_like(x) if g is None else g for g, x in zip(found, wanted, strict=True)
        )
        return Evaluated(dy.detach(), state.detach(), a, pulled, t, tuple(shares))

    def weighted(
        self,
        weights: Sequence[float],
        places: Sequence[Evaluated],
        h: Tensor,
        keep: bool,  # noqa: ARG002 - each place has its shares
    ) -> list[Tensor]:
        """Sum over places of weight h a df/dtheta; see `Linearised.weighted`."""
        columns = zip(*(place.shares for place in places), strict=True)
        scale = h.reshape(())
        return [
            scale * sum(w * x for w, x in zip(weights, column, strict=True)) for column in columns
        ]


class Intervals:
    """Solves [t, y, a, dL/dtheta] over one interval after the other.

    Args:
        request: The forward solve.
        backward: How it is solved.
        system: f and its products.

    Attributes:
        totals: Gradients of the parameters so far, one tensor for each of the system's leaves.
    """

    def __init__(self, request: Request, backward: Backward, system: Augmented) -> None:
        self._request = request
        self._backward = backward
        self._system = system
        self._layout = request.layout
        self._shape = self._layout.shapes[0] if self._layout.is_tensor else None
        dtype, device = self._layout.dtype, self._layout.device
        self.totals = [torch.zeros_like(x, dtype=dtype, device=device) for x in system.leaves]
        self._counted = [i for i, x in enumerate(system.leaves) if x.numel()]
        self._norm = self._measure()

    def back(self, t_from: Tensor, t_to: Tensor, y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        """State and adjoint at t_to [1] from those at t_from."""
        t = torch.cat([t_from, t_to]).to(self._request.t.dtype)
        parts = [self.totals[i] for i in self._counted]
        state = (t.new_zeros(()).to(y.dtype), self._shaped(y), self._shaped(a), *parts)
        like = self._backward.like
        options = like.options
        if isinstance(options, AdaptiveOptions):
            options = replace(options, norm=self._norm)
        whole = replace(like, func=self._slope, y0=state, t=t, options=options)
        try:
            end = cast("tuple[Tensor, ...]", trajectory(whole))
        except SolveFailed as error:
            if not isinstance(error.solution, Solution):
                raise
            raise RanAway(error.solution.stops[0].t, str(error)) from None
        for i, part in zip(self._counted, end[3:], strict=True):
            self.totals[i] = part[-1]
        return end[1][-1].reshape(1, -1), end[2][-1].reshape(1, -1)

    def forth(self, t_from: Tensor, t_to: Tensor, y: Tensor) -> Tensor:
        """State at t_to [1] from that at t_from, as the forward pass would find it."""
        t = torch.cat([t_from, t_to])
        again = replace(self._request, y0=self._layout.unpack(y), t=t)
        return self._layout.pack(last(trajectory(again)))

    def _slope(self, t: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """d[t, y, a, q]/dt = [0, f, -a df/dy, -a df/dtheta]."""
        y, a = (x.reshape(1, -1) for x in state[1:3])
        place = self._system(t.reshape(1), y, a)
        shares = (-place.shares[i].to(y.dtype) for i in self._counted)
        return (
            torch.zeros_like(state[0]),
            self._shaped(place.dy),
            self._shaped(-place.pulled),
            *shares,
        )

    def _shaped(self, flat: Tensor) -> Tensor:
        """A state [1, N] in its own shape, or in one dimension where it is a tuple."""
        return flat.reshape(-1 if self._shape is None else self._shape)

    def _measure(self) -> Norm:
        """The norm of (t, y, a, *dL/dtheta)."""
        own, layout = self._backward.norm, self._layout
        options = self._request.options
        forward = options.norm if isinstance(options, AdaptiveOptions) else None
        of_state = flat_norm(forward, layout)

        def size(parts: tuple[Tensor, ...]) -> Tensor:
            t, y, a, *shares = parts
            sizes = [t.abs(), of_state(y.reshape(1, -1)), of_state(a.reshape(1, -1))]
            if own is None and shares:
                sizes.append(mixed(shares))
            return torch.stack([x.to(y.dtype) for x in sizes]).amax()

        def asked_for(parts: tuple[Tensor, ...]) -> Any:  # noqa: ANN401
            t, y, a, *shares = parts
            n = len(self._backward.params)
            states = [_parts(layout.unpack(x.reshape(1, -1))) for x in (y, a)]
            found = cast("Norm", own)((t, *states[0], *states[1], *shares[:n]))
            rest = shares[n:]  # parameters that only ctflow knows of
            return max(torch.as_tensor(found), mixed(rest)) if rest else found

        return asked_for if callable(own) else size


def _parts(y: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
    return (y,) if isinstance(y, Tensor) else tuple(y)
