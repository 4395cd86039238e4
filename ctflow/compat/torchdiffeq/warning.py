"""Warnings that point at the program, and not at what it calls."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

__all__ = ["warn_caller"]

_OURS = str(Path(__file__).parents[2])


def warn_caller(message: str) -> None:
    """Warn, in the name of the first caller that is no part of ctflow or torch.

    Args:
        message: What to say.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_inside(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, UserWarning, stacklevel=level)


def _is_inside(file: str) -> bool:
    return file.startswith(_OURS) or "/torch/" in file.replace("\\", "/")
