"""Latent states and paths, in two of their directions."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem
from ctflow.plotting.style import axes_or_new, finish, look
from ctflow.plotting.variables import two_of

with suppress(ImportError):  # optional, and only named in annotations
    from matplotlib.axes import Axes

__all__ = ["latent_space"]


def latent_space(
    z: Tensor,
    labels: Sequence[object] | Tensor | None = None,
    ax: Axes | None = None,
    *,
    variables: tuple[int, int] | None = None,
) -> Axes:
    """Latent states as points, or latent paths as curves, by colour and mark of their labels.

    Args:
        z: States [B, L], or paths [B, T, L], finite.
        labels: One for each of the B; None: all alike.
        ax: Where to draw; None: in a new figure.
        variables: Numbers of the two to draw; None: those two if L is 2, else the two directions
            in which the states differ most (principal components).

    Returns:
        The axes.

    Raises:
        MissingDependency: If matplotlib is not installed.
        InvalidProblem: If shapes do not fit, there are no such variables, or `z` is not finite.

    Cost:
        A singular value decomposition of all states, where directions are to be found.

    Example:
        >>> import torch
        >>> from ctflow.plotting import latent_space
        >>> axes = latent_space(torch.randn(20, 4), torch.arange(20) % 2)
    """
    states = z.detach().cpu().double()
    if states.dim() not in (2, 3) or states.shape[-1] < 2 or not states.numel():
        raise InvalidProblem(
            f"`z` must be states [B, L] or paths [B, T, L] of two variables or more, got "
            f"{list(z.shape)}. Reshape it."
        )
    if not bool(states.isfinite().all()):
        raise InvalidProblem("`z` must be finite, got NaN or infinity. Leave such samples out.")
    own = _labels(labels, len(states))
    plane, names = _in_plane(states, variables)
    ax = axes_or_new(ax)
    kinds = list(dict.fromkeys(own))
    for k, kind in enumerate(kinds):
        each = look(k)
        rows = plane[torch.tensor([label == kind for label in own])].numpy()
        ends = rows if rows.ndim == 2 else rows[:, 0]
        if rows.ndim == 3:
            for path in rows:
                ax.plot(
                    path[:, 0], path[:, 1], each.dashes, color=each.colour, linewidth=0.8, alpha=0.6
                )
        ax.plot(
            ends[:, 0], ends[:, 1], each.mark, color=each.colour, markersize=4, alpha=0.8,
            linestyle="none", label=str(kind),
        )  # fmt: skip
    title = "marks are where paths begin" if plane.dim() == 3 else ""
    return finish(ax, names[0], names[1], title, legend=len(kinds) > 1)


def _labels(labels: Sequence[object] | Tensor | None, batch: int) -> list[object]:
    if labels is None:
        return [None] * batch
    own: list[object] = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if any(label.__hash__ is None for label in own):
        raise InvalidProblem(
            f"`labels` must be one number or word for each, got {own[0]!r:.60}. Flatten them."
        )
    if len(own) != batch:
        raise InvalidProblem(
            f"`labels` must be one for each of the {batch} of `z`, got {len(own)}. Give as many."
        )
    return own


def _in_plane(z: Tensor, variables: tuple[int, int] | None) -> tuple[Tensor, tuple[str, str]]:
    """Two coordinates of every state, and what they are."""
    size = z.shape[-1]
    chosen = (0, 1) if variables is None and size == 2 else variables
    if chosen is not None:
        chosen = two_of(chosen)
        if not all(0 <= i < size for i in chosen):
            raise InvalidProblem(
                f"`variables` must be two of 0 to {size - 1}, got {chosen}. Take two of these."
            )
        return z[..., list(chosen)], (f"z[{chosen[0]}]", f"z[{chosen[1]}]")
    flat = z.reshape(-1, size)
    centred = flat - flat.mean(dim=0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    if len(spread) < 2:  # a single state has no directions
        return z[..., :2], ("z[0]", "z[1]")
    shares = spread.square() / spread.square().sum().clamp(min=torch.finfo(z.dtype).tiny)
    plane = (centred @ directions[:2].T).reshape(*z.shape[:-1], 2)
    first, second = (f"component {k + 1} ({shares[k]:.0%})" for k in range(2))
    return plane, (first, second)
