"""Answering `import torchdiffeq` with ctflow, in this process."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import suppress
from types import ModuleType

from ctflow.backends import registry
from ctflow.compat import torchdiffeq
from ctflow.errors import BackendUnavailable, InvalidProblem

__all__ = ["REPLACEABLE", "replace_library"]

REPLACEABLE = {"torchdiffeq": torchdiffeq}
"""Libraries whose interface ctflow has, and the module that has it."""


def replace_library(name: str) -> ModuleType:
    """Let every later `import` of a library get ctflow's module of the same interface.

    ctflow's own backend of that name goes on with the library itself. A submodule of the library
    is not there any more: `import torchdiffeq._impl` raises ModuleNotFoundError. Processes that
    are started afresh from here import the library as it is installed.

    Args:
        name: Of the library.

    Returns:
        The module that is imported instead.

    Raises:
        InvalidProblem: If ctflow does not have its interface.

    Example:
        >>> from ctflow.compat.swap import replace_library
        >>> replace_library("numpy")
        Traceback (most recent call last):
        ctflow.errors.InvalidProblem: `name` must be one of torchdiffeq, got 'numpy'. ...
    """
    if name not in REPLACEABLE:
        raise InvalidProblem(
            f"`name` must be one of {', '.join(REPLACEABLE)}, got {name!r}. ctflow has the "
            "interface of no other library."
        )
    with suppress(BackendUnavailable):  # of a library that is not installed
        registry.get(name)  # keeps it for the backend that is made of it
    ours = REPLACEABLE[name]
    module = ModuleType(name, ours.__doc__)
    module.__spec__ = importlib.util.spec_from_loader(name, loader=None, origin=ours.__file__)
    module.__file__ = ours.__file__
    module.__dict__.update({key: getattr(ours, key) for key in (*ours.__all__, "__version__")})
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[loaded]
    sys.modules[name] = module
    return module
