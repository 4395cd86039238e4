"""Densities in the plane, and flows on their way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.flows import ContinuousFlow
from ctflow.plotting.style import axes_or_new, look, new_figure

with suppress(ImportError):  # optional, and only named in annotations
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["density", "flow_over_time"]

Range = tuple[float, float]


@torch.no_grad()
def density(
    log_prob: Callable[[Tensor], Tensor],
    ax: Axes | None = None,
    *,
    x: Range = (-4.0, 4.0),
    y: Range = (-4.0, 4.0),
    n: int = 100,
    dtype: torch.dtype | None = None,
) -> Axes:
    """A density in the plane, as an image of  exp(log p).

    Args:
        log_prob: Log-density of points [N, 2], [N].
        ax: Where to draw; None: in a new figure.
        x: Range of the first variable.
        y: Range of the second variable.
        n: Pixels along each side.
        dtype: Of the points; None: torch's default.

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If a range is empty, `n` is below 2, or what comes back is no log-density.

    Cost:
        One call with n * n points.

    Example:
        >>> import torch
        >>> from torch.distributions import Independent, Normal
        >>> from ctflow.plotting import density
        >>> axes = density(Independent(Normal(torch.zeros(2), torch.ones(2)), 1).log_prob)
    """
    if not (x[0] < x[1] and y[0] < y[1] and n >= 2):
        raise InvalidProblem(
            f"`x` and `y` must be growing ranges and `n` at least 2, got {x}, {y} and {n}. "
            "Give them so."
        )
    across, up = _centres(x, n, dtype), _centres(y, n, dtype)
    columns, rows = torch.meshgrid(across, up, indexing="xy")
    values = log_prob(torch.stack([columns, rows], dim=-1).reshape(-1, 2))
    if values.shape != (n * n,):
        raise InvalidProblem(
            f"`log_prob` must return one number a point, [{n * n}], got {list(values.shape)}. "
            "Give the log-density of a distribution over the plane."
        )
    if bool(values.isnan().any()):
        raise InvalidProblem(
            "`log_prob` must return log-densities, got NaN. Narrow the ranges to where it has one."
        )
    ax = axes_or_new(ax)
    image = values.double().exp().reshape(n, n).cpu().numpy()
    ax.imshow(image, origin="lower", extent=(*x, *y), cmap="cividis", vmin=0.0)
    ax.set_aspect("equal")
    return ax


@torch.no_grad()
def flow_over_time(
    flow: ContinuousFlow,
    times: Sequence[float] | None = None,
    *,
    x: Range = (-4.0, 4.0),
    y: Range = (-4.0, 4.0),
    samples: int = 500,
    n: int = 60,
) -> Figure:
    """A flow on its way: samples above their density, time by time.

    Args:
        flow: Over the plane, without a batch.
        times: Between its start and its end, growing from the start; None: five, evenly.
        x: Range of the first variable.
        y: Range of the second variable.
        samples: How many are drawn; the same ones at every time.
        n: Pixels along each side of a density.

    Returns:
        The figure.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If the flow is not over the plane or has a batch; and as `density` does.

    Cost:
        A solve of the samples, and one of n * n points for each time.
    """
    if flow.event_shape != (2,) or flow.batch_shape != ():
        raise InvalidProblem(
            f"`flow` must be over the plane without a batch, got events {list(flow.event_shape)} "
            f"in a batch {list(flow.batch_shape)}. Choose two variables, and one context."
        )
    start, end = (float(each) for each in flow.transform.t)
    chosen = [start + (end - start) * k / 4 for k in range(5)] if times is None else list(times)
    base = flow.base.sample((samples,))
    later = [time for time in chosen if time != start]
    paths = flow.trajectory(base, [start, *later])[1:] if later else base[:0]
    figure, (above, below) = new_figure(2, len(chosen), size=(2.1 * len(chosen), 4.3))
    moved = iter(paths)
    for time, upper, lower in zip(chosen, above, below, strict=True):
        points, now = (base, flow.base) if time == start else (next(moved), flow.at(time))
        upper.plot(*points.cpu().T.numpy(), ".", color=look(0).colour, markersize=2)
        upper.set(xlim=x, ylim=y, title=f"t = {time:.3g}", xticks=[], yticks=[])
        upper.set_aspect("equal")
        density(now.log_prob, lower, x=x, y=y, n=n, dtype=base.dtype)
        lower.set(xticks=[], yticks=[])
    above[0].set_ylabel("samples")
    below[0].set_ylabel("density")
    return figure


def _centres(limits: Range, n: int, dtype: torch.dtype | None) -> Tensor:
    """Of n pixels."""
    low, high = limits
    return (
        low + (torch.arange(n, dtype=dtype or torch.get_default_dtype()) + 0.5) * (high - low) / n
    )
