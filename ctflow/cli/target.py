"""What a command is pointed at: `package.module:name` or `path/to/file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctflow.errors import CtflowError
from ctflow.problem import ODEProblem

__all__ = [
    "Dtype",
    "find",
    "find_field",
    "find_function",
    "load_problem",
    "parse_shape",
    "parse_times",
    "users_code",
]


class Dtype(StrEnum):
    """Dtype of the states."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"

    @property
    def torch(self) -> torch.dtype:
        """As torch names it."""
        return torch.float32 if self is Dtype.FLOAT32 else torch.float64


def find(target: str) -> Any:  # noqa: ANN401
    """The object that a target names.

    Raises:
        CtflowError: If there is no colon, no such module or file, or no such name in it.
    """
    place, colon, name = target.rpartition(":")
    if not (place and colon and name):
        raise CtflowError(
            f"a target must read 'package.module:name' or 'file.py:name', got {target!r}. "
            "Name the vector field after a colon."
        )
    found: Any = _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise CtflowError(f"{place!r} has no {name!r}. Check the spelling after the colon.")
        found = getattr(found, part)
    return found


def find_function(target: str) -> Callable[..., Any]:
    """The function that a target names.

    Raises:
        CtflowError: If it is not callable.
    """
    found = find(target)
    if not callable(found):
        raise CtflowError(
            f"{target!r} must be a function of the state, got {type(found).__name__}. Name one."
        )
    return found


@contextmanager
def users_code(target: str) -> Generator[None]:
    """Say in one line what somebody's code raised, and where.

    Raises:
        CtflowError: In place of anything that is none of ctflow's own errors.
    """
    try:
        yield
    except CtflowError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        where = f" at {line.filename}:{line.lineno}" if line.filename else ""
        raise CtflowError(
            f"{target!r} raised {type(error).__name__}: {error}{where}. "
            "Repair it; `ctflow --debug` shows the traceback."
        ) from error


def find_field(target: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The vector field that a target names; a class, or a function of nothing, is called first.

    Raises:
        CtflowError: If it is not callable.
    """
    found = find(target)
    with users_code(target):
        made = found() if isinstance(found, type) else found
    if isinstance(made, nn.Module):
        return made.to(dtype)
    if not callable(made):
        raise CtflowError(
            f"{target!r} must be a vector field f(t, y), got {type(made).__name__}. "
            "Name a function, a module, or a class that makes one."
        )
    return made


def load_problem(target: str, shape: str, times: str, dtype: torch.dtype, seed: int) -> ODEProblem:
    """An `ODEProblem` that a target names, or one made of a field, a shape and times.

    Raises:
        CtflowError: If it is neither, or a field without a shape.
    """
    found = find(target)
    if isinstance(found, ODEProblem):
        return found
    size = parse_shape(shape, target)
    generator = torch.Generator().manual_seed(seed)
    y0 = torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.tensor(parse_times(times), dtype=torch.float64)
    return ODEProblem(find_field(target, dtype), y0, t, batched=len(size) > 1)


def parse_shape(text: str, target: str) -> tuple[int, ...]:
    """Sizes separated by commas.

    Raises:
        CtflowError: If they are no positive whole numbers.
    """
    parts = text.split(",") if text else []
    if not parts or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise CtflowError(
            f"`--shape` must be the shape of a state of {target!r}, such as 8,2, got {text!r}. "
            "Give its sizes, separated by commas."
        )
    return tuple(int(part) for part in parts)


def parse_times(text: str) -> list[float]:
    """Times separated by commas.

    Raises:
        CtflowError: If they are no numbers, or fewer than two.
    """
    try:
        times = [float(part) for part in text.split(",")]
    except ValueError:
        times = []
    if len(times) < 2:
        raise CtflowError(f"`--times` must be numbers such as 0,1, got {text!r}. Give two or more.")
    return times


def _module(place: str) -> Any:  # noqa: ANN401
    if place.endswith(".py") or "/" in place:
        return _file(Path(place))
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # as `python -m` does
    try:
        with users_code(place):
            return importlib.import_module(place)
    except CtflowError as error:
        if not isinstance(error.__cause__, ModuleNotFoundError):
            raise
        raise CtflowError(
            f"{place!r} cannot be imported: {error.__cause__}. Check the name, or give the path "
            "of the file."
        ) from error


def _file(path: Path) -> Any:  # noqa: ANN401
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise CtflowError(f"there is no Python file {str(path)!r}. Check the path.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up while it runs
    with users_code(str(path)):
        spec.loader.exec_module(module)
    return module
