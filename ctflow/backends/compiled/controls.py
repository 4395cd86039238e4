"""What of a step-size control is part of a program, and what is an input of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.backends.native.control import Control

__all__ = ["control_key", "control_values", "with_values"]


def control_key(control: Control) -> tuple[object, ...]:
    """What of a control is part of the program."""
    values = _values_of(control)
    kind = type(control)
    if not values and not hasattr(kind, "__dataclass_fields__"):
        return (kind, control)
    held = vars(control).items()
    return (kind, *((name, _hashable(value)) for name, value in held if name not in values))


def control_values(control: Control, like: Tensor) -> tuple[Tensor, ...]:
    """What of a control is an input of the program, as tensors in time's dtype."""
    values = (getattr(control, name) for name in _values_of(control))
    return tuple(
        value.detach().to(like)
        if isinstance(value, Tensor)
        else _number(float(value), like.dtype, like.device)
        for value in values
    )


@lru_cache(maxsize=256)
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number as a tensor that no program writes to."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=dtype, device=device)


def with_values(control: Control, values: Sequence[Tensor]) -> Control:
    """The control with other values: tensors in the place of numbers."""
    copy: Any = object.__new__(type(control))
    copy.__dict__.update(vars(control))
    copy.__dict__.update(zip(_values_of(control), values, strict=True))
    return copy


def _values_of(control: Control) -> tuple[str, ...]:
    return getattr(type(control), "VALUES", ())


def _hashable(value: object) -> object:
    if isinstance(value, tuple):
        return tuple([_hashable(item) for item in cast("tuple[object, ...]", value)])
    return (value.start, value.stop) if isinstance(value, slice) else value
