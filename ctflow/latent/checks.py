"""What every latent model refuses of what it is given, by name and before any work."""

from __future__ import annotations

import math

from torch import Tensor

from ctflow.errors import InvalidProblem

__all__ = ["check_parts", "check_sizes", "check_tensors"]


def check_tensors(**values: object) -> None:
    """Refuse lists and arrays by name.

    Args:
        values: Each under its name in the message.

    Raises:
        InvalidProblem: Naming the first that is no tensor.
    """
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise InvalidProblem(
                f"`{name}` must be a tensor, got {type(value).__name__}. Use torch.as_tensor on it."
            )


def check_parts(**parts: object) -> None:
    """Refuse parts of a model that are no functions.

    Args:
        parts: Each under its name in the message.

    Raises:
        InvalidProblem: Naming the first that cannot be called.
    """
    for name, part in parts.items():
        if not callable(part):
            raise InvalidProblem(
                f"`{name}` must be callable, got {type(part).__name__}. Pass a function or an "
                "nn.Module."
            )


def check_sizes(latent: int, t0: float) -> None:
    """Refuse a latent state without variables, or without a time.

    Args:
        latent: Number of variables.
        t0: Time at which it holds.

    Raises:
        InvalidProblem: Naming both.
    """
    if type(latent) is not int or latent < 1 or not math.isfinite(t0):
        raise InvalidProblem(
            f"`latent` must be a positive integer and `t0` finite, got {latent!r} and {t0!r}. "
            "Give the number of variables, and the time before all data."
        )
