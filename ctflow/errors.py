"""The errors ctflow raises; every one of them is a `CtflowError`."""

from __future__ import annotations

__all__ = [
    "BackendUnavailable",
    "CheckFailed",
    "CtflowError",
    "GradientWarning",
    "InvalidProblem",
    "MissingDependency",
    "SolveFailed",
    "Unsupported",
]


class CtflowError(Exception):
    """Root of every error that ctflow raises on purpose."""


class InvalidProblem(CtflowError, ValueError):
    """What was asked makes no sense: a shape, dtype, time grid, tolerance, or what `f` returns."""


class Unsupported(CtflowError, NotImplementedError):
    """What was asked makes sense, but this backend cannot do it; the message says which can."""


class BackendUnavailable(CtflowError, ImportError):
    """The named backend does not exist, or the library behind it is not installed."""


class MissingDependency(CtflowError):
    """A package of an extra, or data, are not on this machine; the message says how to get them."""


class SolveFailed(CtflowError, RuntimeError):
    """A solve did not reach the end of its time interval.

    Args:
        message: Which sample stopped where, and the likely cause.
        solution: The partial `ctflow.Solution`; what was not reached holds NaN.
    """

    def __init__(self, message: str, solution: object = None) -> None:
        super().__init__(message)
        self.solution = solution


class CheckFailed(CtflowError, AssertionError):
    """A check of `ctflow.testing` found a fault; an AssertionError, so that test runners show it.

    Args:
        report: What was checked and found; its text is the message.
    """

    def __init__(self, report: object) -> None:
        super().__init__(str(report))
        self.report = report


class GradientWarning(UserWarning):
    """A backward pass has reason to doubt the gradient that it returned."""
