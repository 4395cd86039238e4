"""A solution along time: its variables, its steps, its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.plotting.style import (
    GREY,
    axes_or_new,
    finish,
    legend_wanted,
    look,
    new_figure,
)
from ctflow.plotting.variables import EVERY, curves_of, own_times, row_of, step_times
from ctflow.solution import Solution, Status

with suppress(ImportError):  # optional, and only named in annotations
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["errors", "plot", "step_sizes", "trajectories"]

_FINE = 400  # times of a curve that is drawn smooth


def plot(
    solution: Solution, *, sample: int | None = None, variables: Sequence[int] | None = None
) -> Figure:
    """A solution at a glance: `trajectories` above `step_sizes`, on one axis of time.

    Args:
        solution: What `solve` returned; with `dense=True` its curves are smooth.
        sample: Row of the batch; None: the first under per-sample steps, everything under shared.
        variables: Numbers of the variables; None: the first ten.

    Returns:
        The figure.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If there is no such sample or variable.

    Cost:
        No evaluation of f.

    Example:
        >>> import torch
        >>> from ctflow import ODEProblem, solve
        >>> from ctflow.plotting import plot
        >>> solution = solve(ODEProblem(lambda t, y: -y, torch.ones(2), [0.0, 1.0], dense=True))
        >>> figure = plot(solution)
        >>> len(figure.axes)
        2
    """
    curves_of(solution, solution.y, sample, variables)  # refused before a figure is made
    figure, rows = new_figure(2, size=(6.4, 5.2), share=True)
    (above,), (below,) = rows
    trajectories(solution, above, sample=sample, variables=variables)
    step_sizes(solution, below, sample=sample)
    above.set_xlabel("")
    return figure


def trajectories(
    solution: Solution,
    ax: Axes | None = None,
    *,
    sample: int | None = None,
    variables: Sequence[int] | None = None,
) -> Axes:
    """Variables against time, with a mark at the end of every accepted step.

    Where the solution is dense its curves are smooth and the marks lie on them. Otherwise lines
    join the output times, and the steps are ticks at the bottom.

    Args:
        solution: What `solve` returned.
        ax: Where to draw; None: in a new figure.
        sample: Row of the batch; None: the first under per-sample steps, everything under shared.
        variables: Numbers of the variables; None: the first ten.

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If there is no such sample or variable.
    """
    steps, outputs = step_times(solution, sample), own_times(solution, sample)
    fine = outputs
    if solution.dense is not None:
        fine = torch.linspace(float(outputs[0]), float(outputs[-1]), _FINE, dtype=torch.float64)
    drawn = curves_of(solution, _states(solution, fine, sample), sample, variables)
    ax = axes_or_new(ax)
    dots = None
    if solution.dense is not None and len(steps):
        dots = curves_of(solution, _states(solution, steps, sample), sample, variables).values
    for i, name in enumerate(drawn.names):
        each = look(i)
        ax.plot(
            fine.numpy(),
            drawn.values[:, i].numpy(),
            color=each.colour,
            linestyle=each.dashes,
            label=name,
        )
        if dots is not None:
            ax.plot(steps.numpy(), dots[:, i].numpy(), each.mark, color=each.colour, markersize=4)
    if dots is None and len(steps):
        bottom = ax.get_xaxis_transform()
        ax.plot(
            steps.numpy(), torch.full_like(steps, 0.02).numpy(), "|", color=GREY, transform=bottom
        )
    more = f", {drawn.left_out} more variables not drawn" if drawn.left_out else ""
    return finish(ax, "t", "state", _told(solution, sample) + more, legend_wanted(drawn.names))


def step_sizes(solution: Solution, ax: Axes | None = None, *, sample: int | None = None) -> Axes:
    """Size of every accepted step along time, on a logarithmic axis.

    Args:
        solution: What `solve` returned.
        ax: Where to draw; None: in a new figure.
        sample: Row of the batch; None: the first.

    Returns:
        The axes; they say so where the backend does not tell its steps.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If there is no such sample.
    """
    steps, row = step_times(solution, sample), row_of(solution, sample)
    ax = axes_or_new(ax)
    if len(steps) < 2:
        ax.text(0.5, 0.5, "this backend does not tell its steps", transform=ax.transAxes,
                ha="center", va="center", color=GREY)  # fmt: skip
        return finish(ax, "t", "step size")
    sizes, each = steps.diff().abs(), look(0)
    ax.plot(
        steps.numpy(),
        torch.cat([sizes, sizes[-1:]]).numpy(),
        drawstyle="steps-post",
        color=each.colour,
    )
    ax.plot(
        ((steps[1:] + steps[:-1]) / 2).numpy(),
        sizes.numpy(),
        each.mark,
        color=each.colour,
        markersize=3,
    )
    ax.set_yscale("log")
    forward = solution.stats.forward
    taken, rejected = int(forward.n_accepted[row]), int(forward.n_rejected[row])
    title = f"{taken} steps, {rejected} rejected, {int(forward.n_f_evals[row])} evaluations"
    return finish(ax, "t", "step size", title)


def errors(
    solution: Solution,
    reference: Callable[[Tensor], Any],
    ax: Axes | None = None,
    *,
    sample: int | None = None,
) -> Axes:
    """Distance from a reference along time, beside the tolerance.

        e(t) = rms(y(t) - y*(t)),    tolerance: atol + rtol rms(y*(t))

    A solver keeps the error of each step to its tolerance; what they come to at a time may be
    smaller or larger.

    Args:
        solution: What `solve` returned.
        reference: The state at times [K], K in front of every leaf: a formula, or the dense
            solution of a tighter solve.
        ax: Where to draw; None: in a new figure.
        sample: Row of the batch; None: the first under per-sample steps, everything under shared.

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If there is no such sample, or the reference has another shape.
    """
    times = own_times(solution, sample)
    if solution.dense is not None:
        times = torch.linspace(float(times[0]), float(times[-1]), _FINE, dtype=torch.float64)
    ours = curves_of(solution, _states(solution, times, sample), sample, EVERY).values
    theirs = curves_of(solution, reference(times), sample, EVERY).values
    if theirs.shape != ours.shape:
        raise InvalidProblem(
            f"`reference` must return {ours.shape[1]} variables at each of the {ours.shape[0]} "
            f"times, got {theirs.shape[1]} at {theirs.shape[0]}. Give the state at times [K]."
        )
    gap = (ours - theirs).square().mean(dim=1).sqrt()
    ax = axes_or_new(ax)
    line = gap.clamp(min=torch.finfo(torch.float64).tiny)  # the start has none, and log no zero
    ax.plot(times[1:].numpy(), line[1:].numpy(), color=look(0).colour, label="error")
    settings = solution.stats.solver
    if settings.rtol is not None and settings.atol is not None:
        size = theirs.square().mean(dim=1).sqrt()
        allowed = settings.atol + settings.rtol * size
        ax.plot(times.numpy(), allowed.numpy(), color=GREY, linestyle="--", label="tolerance")
    ax.set_yscale("log")
    return finish(ax, "t", "error", _told(solution, sample), legend=True)


def _states(solution: Solution, times: Tensor, sample: int | None) -> Any:  # noqa: ANN401
    """The state at some times of a sample: the dense one, or where it was asked for."""
    if solution.dense is None:
        return solution.y
    own, row = solution.dense.start, row_of(solution, sample)
    if len(own) == 1:
        return solution.dense(times)
    share = torch.linspace(0, 1, len(times), dtype=torch.float64, device=own.device)
    start, end = own.double(), solution.dense.end.double()
    every = start[:, None] + (end - start)[:, None] * share  # others' times: within their own
    every[row] = times.to(own.device)
    return solution.dense(every.to(own.dtype))


def _told(solution: Solution, sample: int | None) -> str:
    """Who solved, and how it ended if not well."""
    settings, row = solution.stats.solver, row_of(solution, sample)
    status = Status(int(solution.status[row]))
    return f"{settings.backend}, {settings.method}" + (
        "" if status is Status.OK else f", stopped: {status.name}"
    )
