"""Fields and paths in the plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.plotting.style import GREY, axes_or_new, finish, look
from ctflow.plotting.variables import curves_of, two_of
from ctflow.solution import Solution

with suppress(ImportError):  # optional, and only named in annotations
    from matplotlib.axes import Axes

__all__ = ["phase_portrait", "vector_field"]

_ROOM = 0.1  # of the paths' extent, around them
_FINE = 400  # times of a path that is drawn smooth
_MOST = 200  # paths: more are one blot


@torch.no_grad()
def vector_field(
    f: Callable[[Tensor, Tensor], Tensor],
    ax: Axes | None = None,
    *,
    x: tuple[float, float] = (-2.0, 2.0),
    y: tuple[float, float] = (-2.0, 2.0),
    t: float = 0.0,
    n: int = 20,
    batched: bool = True,
    dtype: torch.dtype | None = None,
) -> Axes:
    """Directions of a field in the plane, shaded by its strength.

    Args:
        f: `f(t, y)` with states [N, 2], or [2] where it is not batched.
        ax: Where to draw; None: in a new figure.
        x: Range of the first variable.
        y: Range of the second variable.
        t: Time at which it is asked, 0-dim.
        n: Arrows along each side.
        batched: Whether all places may be asked at once; False: one by one.
        dtype: Of the states; None: torch's default.

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If a range is empty, `n` below 2, or `f` returns no velocity of the plane.

    Cost:
        One evaluation of n * n states, or n * n of one.

    Example:
        >>> from ctflow.plotting import vector_field
        >>> axes = vector_field(lambda t, y: y.flip(-1))
    """
    if not (x[0] < x[1] and y[0] < y[1] and n >= 2):
        raise InvalidProblem(
            f"`x` and `y` must be growing ranges and `n` at least 2, got {x}, {y} and {n}. "
            "Give them so."
        )
    across = torch.linspace(*x, n, dtype=dtype)
    up = torch.linspace(*y, n, dtype=dtype)
    columns, rows = torch.meshgrid(across, up, indexing="xy")
    places = torch.stack([columns, rows], dim=-1).reshape(-1, 2)
    time = torch.tensor(t, dtype=places.dtype)
    found = f(time, places) if batched else torch.stack([f(time, place) for place in places])
    if found.shape != places.shape:
        raise InvalidProblem(
            f"`f` must return velocities of shape {list(places.shape)}, got {list(found.shape)}. "
            "Give a field of two variables, with batched=False if it takes one state at a time."
        )
    speed = found.double().norm(dim=-1)
    arrows = (found.double() / speed.clamp(min=torch.finfo(torch.float64).tiny)[:, None]).cpu()
    ax = axes_or_new(ax)
    drawn = ax.quiver(
        *places.T.double().cpu().numpy(), *arrows.T.numpy(), speed.cpu().numpy(), cmap="cividis",
        pivot="mid", angles="xy", alpha=0.7, scale=1.4 * n, width=0.004,
    )  # fmt: skip
    ax.figure.colorbar(drawn, ax=ax, label="|f|")
    return finish(ax, "y[0]", "y[1]", f"field at t = {t:g}")


def phase_portrait(
    solution: Solution,
    ax: Axes | None = None,
    *,
    variables: tuple[int, int] = (0, 1),
    f: Callable[[Tensor, Tensor], Tensor] | None = None,
    batched: bool = True,
) -> Axes:
    """Paths in the plane of two variables, each from a ring to a dot; the field behind them.

    Paths of a dense solution are smooth. No more than 200 are drawn; the title says how many.

    Args:
        solution: What `solve` returned. Every sample under per-sample steps is a path; under shared
            steps every row of a batch [B, ...], or the one state.
        ax: Where to draw; None: in a new figure.
        variables: Numbers of the two, of one sample.
        f: Its field, where the state is those two variables alone.
        batched: As in `vector_field`.

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If there are no such variables, nothing finite to draw, or `f` where the
            state is more than the two.
    """
    paths = _paths(solution, two_of(variables))
    every = torch.cat(paths)
    every = every[every.isfinite().all(dim=1)]
    if not len(every):
        raise InvalidProblem(
            "`solution` must have a finite state, got none. Look at `solution.status`."
        )
    ax = axes_or_new(ax)
    if f is not None:
        room = _ROOM * (every.amax(dim=0) - every.amin(dim=0)).clamp(min=1e-6)
        (left, low), (right, high) = (
            (every.amin(0) - room).tolist(),
            (every.amax(0) + room).tolist(),
        )
        field = _in_plane(f, solution, variables)
        box = (left, right), (low, high)
        vector_field(field, ax, x=box[0], y=box[1], batched=batched, dtype=_dtype(solution))
    for i, path in enumerate(each.numpy() for each in paths):
        each = look(0 if len(paths) > 7 else i)
        faint = 0.5 if len(paths) > 7 else 1.0
        dashes = "-" if len(paths) > 7 else each.dashes
        ax.plot(path[:, 0], path[:, 1], dashes, color=each.colour, linewidth=1.4, alpha=faint)
        ax.plot(path[:1, 0], path[:1, 1], "o", color=each.colour, markersize=5, fillstyle="none")
        ax.plot(path[-1:, 0], path[-1:, 1], "o", color=each.colour, markersize=4)
    names = curves_of(solution, solution.y, _first(solution), variables).names
    of = f" of {_batch(solution)}" if _batch(solution) > len(paths) else ""
    title = f"{len(paths)}{of} paths" + ("" if f is None else ", and the field at t = 0")
    if f is None:
        ax.axhline(0, color=GREY, linewidth=0.5)
        ax.axvline(0, color=GREY, linewidth=0.5)
    return finish(ax, names[0], names[1], title)


def _in_plane(
    f: Callable[[Tensor, Tensor], Tensor], solution: Solution, variables: tuple[int, int]
) -> Callable[[Tensor, Tensor], Tensor]:
    """The field with its variables in the order of the axes."""
    y = solution.y
    alone = isinstance(y, Tensor) and y.is_floating_point() and y.shape[-1] == 2
    if not alone or sorted(variables) != [0, 1]:
        what = f"shape {list(y.shape)}, {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
        raise InvalidProblem(
            f"`f` can be drawn where the state is two real variables alone, got {what} and "
            f"variables={variables}. Leave `f` out."
        )
    return f if variables == (0, 1) else lambda t, p: f(t, p.flip(-1)).flip(-1)


def _paths(solution: Solution, variables: Sequence[int]) -> list[Tensor]:
    """[K, 2] of each sample: smooth where the solution is dense, else the outputs."""
    y = solution.y
    if solution.dense is not None:
        start, end = solution.dense.start[:, None], solution.dense.end[:, None]
        times = start + (end - start) * torch.linspace(0, 1, _FINE, dtype=start.dtype).to(start)
        y = solution.dense(times if len(times) > 1 else times[0])
    first = _first(solution)
    if first is None:
        return [curves_of(solution, y, None, variables).values]
    n = min(_MOST, _batch(solution))
    return [curves_of(solution, y, i, variables).values for i in range(n)]


def _first(solution: Solution) -> int | None:
    """0 where there is a batch."""
    return None if _batch(solution) == 0 else 0


def _batch(solution: Solution) -> int:
    """Samples; 0 where the state is one system without a batch."""
    if solution.stats.solver.coupling == "per_sample":
        return len(solution.status)
    y = solution.y
    return y.shape[1] if isinstance(y, Tensor) and y.dim() == 3 else 0


def _dtype(solution: Solution) -> torch.dtype | None:
    return solution.y.dtype if isinstance(solution.y, Tensor) else None
