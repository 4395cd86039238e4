"""What every latent model refuses of what it is given, by name and before any work."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from ctflow.errors import InvalidProblem

__all__ = ["check_count", "check_parts", "check_sizes", "check_tensors"]


def check_tensors(**values: object) -> None:
    """Refuse lists and arrays by name.

    Args:
        values: Each under its name in the message.

    Raises:
        InvalidProblem: Naming the first that is no tensor.
    """
    _refuse(values, torch.is_tensor, "a tensor", "Use torch.as_tensor on it.")


def check_parts(**parts: object) -> None:
    """Refuse parts of a model that are no functions.

    Args:
        parts: Each under its name in the message.

    Raises:
        InvalidProblem: Naming the first that cannot be called.
    """
    _refuse(parts, callable, "callable", "Pass a function or an nn.Module.")


def check_sizes(latent: int, t0: float) -> None:
    """Refuse a latent state without variables, or without a time.

    Args:
        latent: Number of variables.
        t0: Time at which it holds.

    Raises:
        InvalidProblem: Naming both.
    """
    timed = isinstance(t0, int | float | torch.Tensor) and math.isfinite(t0)  # pyright: ignore[reportUnnecessaryIsInstance]
    if type(latent) is not int or latent < 1 or not timed:
        raise InvalidProblem(
            f"`latent` must be a positive integer and `t0` finite, got {latent!r} and {t0!r}. "
            "Give the number of variables, and the time before all data."
        )


def check_count(n_samples: int) -> None:
    """Refuse to draw less than one sample.

    Args:
        n_samples: How many are asked for.

    Raises:
        InvalidProblem: If it is no positive integer.
    """
    if type(n_samples) is not int or n_samples < 1:
        raise InvalidProblem(f"`n_samples` must be positive, got {n_samples!r}. Draw at least one.")


def _refuse(
    values: Mapping[str, object], fits: Callable[[object], bool], wanted: str, advice: str
) -> None:
    for name, value in values.items():
        if not fits(value):
            raise InvalidProblem(f"`{name}` must be {wanted}, got {type(value).__name__}. {advice}")
