"""Brownian paths: made from a seed, shared between solves, and watched while a solve reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ctflow.backends.torchsde.library import BrownianInterval
from ctflow.backends.torchsde.schemes import LevyArea
from ctflow.errors import InvalidProblem
from ctflow.sde import BrownianPath

__all__ = ["brownian_path", "levy_area_of"]


def brownian_path(
    t0: float,
    t1: float,
    shape: tuple[int, int],
    seed: int,
    *,
    like: Tensor | None = None,
    levy_area: LevyArea = "none",
) -> BrownianPath:
    """A path of Brownian motion for each sample, which is the same whoever reads it.

    What is asked of it first decides how the path is drawn between; afterwards it is fixed: a solve
    with large steps, after one with small steps, follows the same path. `path(ta, tb)` is the
    increment W(tb) - W(ta).

    Args:
        t0: Where it starts.
        t1: Where it ends.
        shape: [B, M]: samples, and Brownian motions of each.
        seed: The same seed and the same order of questions give the same path.
        like: Dtype and device; None: float32 on the CPU.
        levy_area: "space-time" for `srk`, "foster" for `log_ode`, "none" for the rest.

    Raises:
        InvalidProblem: If the interval is empty or the shape is not [B, M].

    Cost:
        Memory of about two numbers a sample for each interval asked for.

    Example:
        >>> path = brownian_path(0.0, 1.0, (5, 2), seed=0)
        >>> bool(torch.allclose(path(0.0, 0.5) + path(0.5, 1.0), path(0.0, 1.0), atol=1e-6))
        True
    """
    if not t0 < t1:
        raise InvalidProblem(f"`t1` must lie after `t0`, got [{t0:g}, {t1:g}]. Swap them.")
    if len(shape) != 2 or min(shape) < 1:
        raise InvalidProblem(f"`shape` must be [B, M], got {list(shape)}. Give both.")
    like = torch.empty(0) if like is None else like
    return BrownianInterval(
        t0, t1, size=tuple(shape), dtype=like.dtype, device=like.device, entropy=seed,
        levy_area_approximation=levy_area, cache_size=None, dt=t1 - t0,
    )  # fmt: skip


def levy_area_of(path: Any) -> str:  # noqa: ANN401
    """The Levy area that a path has; "none" for one that does not say."""
    return str(getattr(path, "levy_area_approximation", "none"))
