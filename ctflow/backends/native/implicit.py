"""One step of a Rosenbrock method: f, its derivatives, and one factorisation for all stages."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ctflow.backends.captures import boundary, sequence_number
from ctflow.backends.jacobian import rows_of
from ctflow.backends.native.rosenbrock import Rosenbrock
from ctflow.backends.native.step import FlatField, Step, combine, moved_by, stage_times
from ctflow.errors import InvalidProblem

__all__ = ["Linearised", "check_visible", "linearise", "rosenbrock_step"]


class Linearised(NamedTuple):
    """f and its derivatives at one place of every sample.

    Attributes:
        dy: f, [B, N].
        by_y: df/dy, [B, N, N]; row i holds the derivatives of the i-th component.
        by_t: df/dt, [B, N]; None where f does not depend on time.
    """

    dy: Tensor
    by_y: Tensor
    by_t: Tensor | None


def rosenbrock_step(
    field: FlatField,
    method: Rosenbrock,
    t0: Tensor,
    t1: Tensor,
    y0: Tensor,
    seen: tuple[Tensor, Tensor] | None = None,
) -> Step:
    """Advance every sample from t0 to t1 by one linearly implicit step; see `Rosenbrock`.

    A sample with t1 = t0 keeps its state bit for bit. Where the matrix is singular the step is not
    finite, and the control shortens it.

    Args:
        field: dy/dt on flat tensors.
        method: The method.
        t0: Start, [B].
        t1: End, [B]; no stage is evaluated beyond it.
        y0: State at t0, [B, N].
        seen: Least and greatest time that f may see, [B] each, in the dtype of y.

    Returns:
        The step, differentiable through f, df/dy and df/dt where grad mode is on.

    Cost:
        One evaluation for each stage, N vector-Jacobian products, one factorisation of an N x N
        matrix for each sample, and its memory.

    Source:
        Hairer, Wanner, Solving Ordinary Differential Equations II, section IV.7.
    """
    h = (t1 - t0).to(y0.dtype).unsqueeze(-1)
    times = stage_times(method, t0, t1, y0.dtype, seen)
    start = linearise(field, times[0], y0)
    solve = _Factorised(_matrix(h * method.gamma, start.by_y))
    k: list[Tensor] = []
    for i in range(method.stages):
        right = start.dy
        if i:
            right = field(times[i], moved_by(y0, method.a[i], k, h))
            right = right + combine(method.m[i], k)
        if start.by_t is not None and method.d[i]:
            right = torch.addcmul(right, start.by_t, h * method.d[i])
        k.append(solve(right * method.gamma))
    y1 = moved_by(y0, method.b, k, h)
    return Step(t0, t1, y0, y1, h, tuple(k), seen)


def linearise(field: FlatField, t: Tensor, y: Tensor) -> Linearised:
    """f, df/dy and df/dt, with graphs of their own where grad mode is on and someone wants them.

    Args:
        field: dy/dt on flat tensors; samples must not depend on each other.
        t: Times [B], in the dtype of y.
        y: States [B, N].

    Cost:
        One evaluation and N vector-Jacobian products.
    """
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        moment = t.detach().clone().requires_grad_()
        # A name of its own for what f gets: df/dy must not see other ways from y to what f reads.
        place = y.view_as(y) if recorded and y.requires_grad else _leaf(y)
        marker = sequence_number()
        dy = field(moment, place)
        wanted = recorded and (
            y.requires_grad or any(x is not moment and x is not place for x in boundary(dy, marker))
        )
        by_t, by_y = rows_of(dy, (moment, place), create=wanted)
    if by_y is None:
        by_y = dy.new_zeros(dy.shape[1], *dy.shape)
    found = (dy, by_y.transpose(0, 1), None if by_t is None else by_t.transpose(0, 1))
    return Linearised(*found) if wanted else Linearised(*(_detached(x) for x in found))


class _Factorised:
    """Solves with one matrix for each sample, factorised once.

    Args:
        matrix: [B, N, N].
    """

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        with torch.no_grad():  # a singular one gives what is not finite, and no exception
            lu, pivots, _ = torch.linalg.lu_factor_ex(matrix)
        self._lu, self._pivots = lu, pivots

    def __call__(self, b: Tensor) -> Tensor:
        """The x [B, N] with  matrix x = b."""
        return _Solve.apply(self._matrix, self._lu, self._pivots, b, False)  # pyright: ignore


class _Solve(torch.autograd.Function):
    """matrix^-1 b, or matrix^-T b, whose derivative is a transposed solve with the same factors."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        matrix: Tensor,
        lu: Tensor,
        pivots: Tensor,
        b: Tensor,
        transposed: bool,
    ) -> Tensor:
        x = torch.linalg.lu_solve(lu, pivots, b.unsqueeze(-1), adjoint=transposed).squeeze(-1)
        ctx.save_for_backward(matrix, lu, pivots, x)
        ctx.transposed = transposed
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        matrix, lu, pivots, x = ctx.saved_tensors
        of_b: Tensor = _Solve.apply(matrix, lu, pivots, gradients[0], not ctx.transposed)  # pyright: ignore
        of_matrix = None
        if ctx.needs_input_grad[0]:
            left, right = (x, of_b) if ctx.transposed else (of_b, x)
            of_matrix = -left.unsqueeze(-1) * right.unsqueeze(-2)
        return of_matrix, None, None, of_b, None


def _matrix(h: Tensor, by_y: Tensor) -> Tensor:
    """1 - h df/dy, [B, N, N], for h [B, 1]."""
    unit = torch.eye(by_y.shape[-1], dtype=by_y.dtype, device=by_y.device)
    return unit - h.unsqueeze(-1) * by_y


def _leaf(y: Tensor) -> Tensor:
    """A copy that takes a gradient, also of what was made under inference mode."""
    return (y.clone() if y.is_inference() else y.detach()).requires_grad_()


def _detached(x: Tensor | None) -> Any:  # noqa: ANN401
    return None if x is None else x.detach()


def check_visible(
    field: FlatField, t: Tensor, later: Tensor, y: Tensor, wanted: bool | None
) -> int:
    """Raise if f depends on t or y where autograd finds no way, and its derivative would be wrong.

    Args:
        field: dy/dt on flat tensors.
        t: Start [B], in the dtype of y.
        later: Another time of the interval, [B].
        y: State there, [B, N].
        wanted: Whether a gradient is; None: where `f` reads a tensor that needs one.

    Returns:
        How many evaluations it took.
    """
    with torch.enable_grad():
        moment, place = t.detach().clone().requires_grad_(), _leaf(y)
        marker = sequence_number()
        dy = field(moment, place)
        every = list(boundary(dy, marker))
    reached = [x for x in every if x is moment or x is place]
    wanted = len(every) > len(reached) if wanted is None else wanted
    n_again = _check_twice(field, t, y, dy, place) if wanted else 0
    shift = torch.finfo(y.dtype).eps ** 0.5 * (1 + y.detach().abs())
    moves = {"y": (t, y.detach() + shift), "t": (later, y.detach())}
    unseen = [name for name, x in (("y", place), ("t", moment)) if not any(x is r for r in reached)]
    for name in unseen:
        with torch.no_grad():
            other = field(*moves[name])
        if not bool(((other == dy) | ~torch.isfinite(other) | ~torch.isfinite(dy)).all()):
            raise InvalidProblem(
                f"an implicit method needs df/d{name} from autograd, got an `f` that depends on "
                f"`{name}` where autograd finds no way (NumPy, `item`, `detach`, noise). "
                "Write it in torch operations, or use an explicit method."
            )
    return 1 + len(unseen) + n_again


_TWICE = (
    "an implicit method needs df/dy with a derivative of its own for gradients, got an `f` whose "
    "backward pass autograd cannot follow"
)
_INSTEAD = (
    "Write it in torch operations that can be differentiated twice, solve under torch.no_grad(), "
    "or use an explicit method."
)


def _check_twice(field: FlatField, t: Tensor, y: Tensor, dy: Tensor, place: Tensor) -> int:
    """Raise if df/dy moves with y where autograd finds no way: a backward that cannot be derived.

    How many evaluations that took.
    """
    if not dy.requires_grad:
        return 0
    slope = _slope(dy, place, create=True)
    if slope is None:
        return 0
    if slope.requires_grad:
        try:
            torch.autograd.grad(slope.sum(), place, allow_unused=True)
        except RuntimeError as error:  # fused attention, for one
            raise InvalidProblem(f"{_TWICE} ({error}). {_INSTEAD}") from error
        return 0
    eps, here = torch.finfo(y.dtype).eps, y.detach()
    moved: list[float] = []
    for part in (1.0, 0.5):
        with torch.enable_grad():
            other = _leaf(here + part * eps**0.25 * (1 + here.abs()))
            there = _slope(field(t, other), other, create=False)
        moved.append(0.0 if there is None else float((there - slope).norm()))
    smooth = 0.25 * moved[0] < moved[1] < 0.75 * moved[0]  # and not the step of a kink
    if smooth and moved[0] > eps**0.5 * (1 + float(slope.norm())):
        raise InvalidProblem(f"{_TWICE} (once_differentiable, NumPy, `detach`). {_INSTEAD}")
    return 2


def _slope(dy: Tensor, y: Tensor, create: bool) -> Tensor | None:
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        dy.sum(), y, create_graph=create, allow_unused=True
    )
    return found[0]
