"""Brownian paths: made from a seed, shared between solves, and watched while a solve reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from ctflow.backends.torchsde.library import BrownianInterval
from ctflow.backends.torchsde.schemes import LevyArea
from ctflow.errors import InvalidProblem
from ctflow.sde import BrownianPath

__all__ = ["SeededPath", "brownian_path", "covers", "levy_area_of"]

_ROUNDING = 1e-6  # part of its length by which a question may lie outside of a path


class SeededPath:
    """torchsde's Brownian motion on [t0, t1], which answers for no time outside.

    Torchsde's own says nothing moves there, with a warning.
    """

    def __init__(self, interval: Any, t0: float, t1: float) -> None:  # noqa: ANN401
        self._interval = interval
        self.ends = t0, t1
        self.shape: tuple[int, ...] = tuple(interval.shape)
        self.dtype: torch.dtype = interval.dtype
        self.device: torch.device = interval.device
        self.levy_area_approximation: str = interval.levy_area_approximation

    def __call__(self, ta: Any, tb: Any, return_U: bool = False, return_A: bool = False) -> Any:  # noqa: ANN401
        """W(tb) - W(ta), [B, M], and the areas that are asked for, under torchsde's names.

        Raises:
            InvalidProblem: If the times do not follow each other inside of the path.
        """
        start, end = float(ta), float(tb)
        if not (start <= end and _inside(start, self.ends) and _inside(end, self.ends)):
            raise InvalidProblem(
                f"a Brownian path on {list(self.ends)} has no increment from {start:g} to {end:g}. "
                "Make one that is longer, or ask inside of it, the earlier time first."
            )
        low, high = self.ends
        start, end = (min(max(t, low), high) for t in (start, end))
        return self._interval(start, end, return_U=return_U, return_A=return_A)


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
        InvalidProblem: If the interval is empty, the shape is not [B, M], or the seed is no
            non-negative integer; when asked, for times outside of it.

    Cost:
        Memory of about two numbers a sample for each interval asked for.

    Example:
        >>> path = brownian_path(0.0, 1.0, (5, 2), seed=0)
        >>> bool(torch.allclose(path(0.0, 0.5) + path(0.5, 1.0), path(0.0, 1.0), atol=1e-6))
        True
    """
    if not (_is_time(t0) and _is_time(t1) and t0 < t1):
        raise InvalidProblem(
            f"`t1` must lie after `t0`, both finite, got {t0!r} and {t1!r}. Swap them."
        )
    if not isinstance(shape, Sequence) or len(shape) != 2 or min(shape) < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidProblem(f"`shape` must be [B, M], got {shape!r}. Give both.")
    if type(seed) is not int or seed < 0:
        raise InvalidProblem(f"`seed` must be a non-negative integer, got {seed!r}. Write seed=0.")
    if levy_area not in get_args(LevyArea):
        raise InvalidProblem(
            f"`levy_area` must be one of {', '.join(get_args(LevyArea))}, got {levy_area!r}. "
            "Most schemes need 'none'."
        )
    like = torch.empty(0) if like is None else like
    if not isinstance(like, Tensor) or not like.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
        got = getattr(like, "dtype", type(like).__name__)
        raise InvalidProblem(f"`like` must be a real floating tensor, got {got}. Pass like=y0.")
    interval = BrownianInterval(
        t0, t1, size=tuple(shape), dtype=like.dtype, device=like.device, entropy=seed,
        levy_area_approximation=levy_area, cache_size=None, dt=t1 - t0,
    )  # fmt: skip
    return SeededPath(interval, float(t0), float(t1))


def covers(path: Any, t0: float, t1: float) -> bool:  # noqa: ANN401
    """Whether a path reaches from t0 to t1; one that does not say where it ends is taken to."""
    ends = getattr(path, "ends", None)
    return ends is None or (_inside(t0, ends) and _inside(t1, ends))


def _is_time(t: object) -> bool:
    """Whether it is a finite number, or a tensor of one."""
    return isinstance(t, int | float | Tensor) and math.isfinite(t)


def _inside(t: float, ends: tuple[float, float]) -> bool:
    low, high = ends
    slack = _ROUNDING * (high - low)
    return low - slack <= t <= high + slack


def levy_area_of(path: Any) -> str:  # noqa: ANN401
    """The Levy area that a path has; "none" for one that does not say."""
    return str(getattr(path, "levy_area_approximation", "none"))
