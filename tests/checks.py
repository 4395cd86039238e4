"""Checks that raise, for use in shared test helpers.

A plain `assert` in a test module is rewritten by pytest and holds under `python -O` too. One in any
other module, this one included, vanishes there: helpers raise.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check", "check_close", "check_relative"]


def check(condition: bool | Tensor, message: str) -> None:
    """Raise AssertionError with `message` unless the condition is true."""
    if not bool(condition):
        raise AssertionError(message)


def check_close(actual: Tensor, expected: Tensor, *, rtol: float, atol: float = 0.0) -> None:
    """Raise unless every entry agrees: |actual - expected| <= atol + rtol |expected|.

    Shape and dtype must agree too, and a NaN agrees with nothing.
    """
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def check_relative(
    actual: Tensor | tuple[Tensor, ...],
    expected: Tensor | tuple[Tensor, ...],
    *,
    rtol: float,
    floor: float = 1.0,
) -> None:
    """Raise unless the whole of `actual` is near the whole of `expected`.

    The measure is ||actual - expected|| / max(||expected||, floor) over all entries of all tensors
    together, so that an entry that may be zero is never divided by.

    Args:
        actual: One tensor or several, of any shapes.
        expected: The same number of tensors with the same shapes.
        rtol: Largest relative difference allowed.
        floor: Norm below which `expected` counts as this large.

    Raises:
        AssertionError: If shapes differ, a value is not finite, or the difference is too large.
    """
    left = actual if isinstance(actual, tuple) else (actual,)
    right = expected if isinstance(expected, tuple) else (expected,)
    shapes = [tuple(leaf.shape) for leaf in left], [tuple(leaf.shape) for leaf in right]
    check(shapes[0] == shapes[1], f"shapes differ: {shapes[0]} and {shapes[1]}")
    found, wanted = _flatten(left), _flatten(right)
    check(torch.isfinite(found).all(), f"not finite: {found}")
    check(torch.isfinite(wanted).all(), f"the expected value is not finite: {wanted}")
    scale = max(float(wanted.norm()), floor)
    difference = float((found - wanted).norm()) / scale
    check(
        difference <= rtol,
        f"relative difference {difference:.3e} exceeds {rtol:.1e} (scale {scale:.3e})\n"
        f"actual:   {found}\nexpected: {wanted}",
    )


def _flatten(leaves: tuple[Tensor, ...]) -> Tensor:
    """All entries of all leaves, as one float64 vector."""
    return torch.cat([leaf.detach().to(torch.float64).reshape(-1) for leaf in leaves])
