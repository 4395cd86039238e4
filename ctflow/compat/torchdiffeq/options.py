"""torchdiffeq's option dicts: every entry is honoured, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ctflow.compat.torchdiffeq.methods import SCIPY, Interpolation, Kind
from ctflow.compat.torchdiffeq.norms import Norm
from ctflow.errors import InvalidProblem, Unsupported

__all__ = ["AdaptiveOptions", "GridOptions", "Options", "ScipyOptions", "read"]

_MOST_STEPS = 2**31 - 1  # torchdiffeq's own default


@dataclass(frozen=True)
class AdaptiveOptions:
    """What the adaptive methods may be told.

    Args:
        norm: Of the state's structure; None for torchdiffeq's own.
        first_step: Size of the first step; None finds one.
        min_step: A step of this size or shorter always counts.
        max_step: Largest step.
        safety: Factor on the step that the error suggests.
        ifactor: Largest factor from one step to the next.
        dfactor: Smallest.
        max_num_steps: Limit of attempted steps between two output times.
        step_t: Times at which steps must end, [K].
        jump_t: Times at which f is discontinuous, [J].
    """

    norm: Norm | None = None
    first_step: float | None = None
    min_step: float = 0.0
    max_step: float = math.inf
    safety: float = 0.9
    ifactor: float = 10.0
    dfactor: float = 0.2
    max_num_steps: int = _MOST_STEPS
    step_t: Tensor | None = None
    jump_t: Tensor | None = None


@dataclass(frozen=True)
class GridOptions:
    """What the methods on a grid may be told.

    Args:
        step_size: Of each step; None steps from output to output.
        grid_constructor: `grid_constructor(func, y0, t)` gives the grid.
        interp: Between grid points.
        perturb: Whether f sees times beside grid points only.
        max_order: Of the Adams methods.
        max_iters: Iterations of an implicit equation; None for the method's own limit.
    """

    step_size: float | None = None
    grid_constructor: Callable[[Any, Any, Tensor], Tensor] | None = None
    interp: Interpolation = "linear"
    perturb: bool = False
    max_order: int = 12
    max_iters: int | None = None


@dataclass(frozen=True)
class ScipyOptions:
    """What `scipy_solver` may be told.

    Args:
        solver: ctflow's name of SciPy's solver.
    """

    solver: str = "lsoda"


Options = AdaptiveOptions | GridOptions | ScipyOptions

_ADAPTIVE = (
    "norm", "first_step", "min_step", "max_step", "safety", "ifactor", "dfactor", "max_num_steps",
    "step_t", "jump_t", "dtype",
)  # fmt: skip
_GRID = ("step_size", "grid_constructor", "interp", "perturb")
_KNOWN: dict[Kind, tuple[str, ...]] = {
    "adaptive": _ADAPTIVE,
    "runge_kutta": _GRID,
    "adams": (*_GRID, "max_order", "max_iters"),
    "implicit": (*_GRID, "max_iters"),
    "scipy": ("solver", "min_step", "max_step"),
}


def read(options: object, method: str, kind: Kind, dtype: torch.dtype) -> Options:
    """The option dict of a method as a checked value.

    Args:
        options: A dict, or None.
        method: Its name, for messages.
        kind: What kind it is.
        dtype: That of the state.

    Raises:
        Unsupported: For an option that this method does not have, or that cannot be honoured.
        InvalidProblem: For a value that means nothing.
    """
    if options is not None and not isinstance(options, Mapping):
        raise InvalidProblem(
            f"`options` must be a dict or None, got {type(options).__name__}. "
            "Write options={'first_step': 0.1}."
        )
    given = dict(cast("Mapping[str, Any]", options or {}))
    unknown = [name for name in given if name not in _KNOWN[kind]]
    if unknown:
        others = {_WHOSE[k]: [n for n in unknown if n in names] for k, names in _KNOWN.items()}
        belong = "; ".join(f"{', '.join(names)}: {who}" for who, names in others.items() if names)
        raise Unsupported(
            f"method={method!r} does not have the option {', '.join(map(repr, unknown))}, which "
            f"torchdiffeq would drop. It has {', '.join(_KNOWN[kind])}. "
            f"{f'They belong elsewhere ({belong}). ' if belong else ''}Leave it out."
        )
    if kind == "adaptive":
        return _adaptive(given, dtype)
    return _scipy(given) if kind == "scipy" else _grid(given)


_WHOSE: dict[Kind, str] = {
    "adaptive": "methods that adapt their steps",
    "runge_kutta": "methods on a grid",
    "adams": "Adams methods",
    "implicit": "implicit methods",
    "scipy": "scipy_solver",
}


def _adaptive(given: dict[str, Any], dtype: torch.dtype) -> AdaptiveOptions:
    own = given.pop("dtype", torch.float64)
    if own != torch.float64 and torch.promote_types(own, dtype.to_real()) != torch.float64:
        raise Unsupported(
            f"the option dtype={own} is not honoured: ctflow keeps time in float64, so that small "
            "steps do not vanish in its rounding. Leave it out."
        )
    norm = given.get("norm")
    if norm is not None and not callable(norm):
        raise InvalidProblem(
            f"`norm` must be a function of the state, got {norm!r}. 'seminorm' belongs into "
            "`adjoint_options`."
        )
    defaults = {"first_step": None, "min_step": 0.0, "max_step": math.inf}
    defaults |= {"safety": 0.9, "ifactor": 10.0, "dfactor": 0.2}
    values = {name: _number(name, given.get(name, default)) for name, default in defaults.items()}
    _check_rule(values)
    most = given.get("max_num_steps", _MOST_STEPS)
    most = int(most) if float(most) == int(most) else 0
    if most < 1:
        raise InvalidProblem(
            f"`max_num_steps` must be a positive integer, got {given['max_num_steps']!r}. "
            "It counts attempted steps between two output times."
        )
    step_t, jump_t = (_times(name, given.get(name)) for name in ("step_t", "jump_t"))
    both = [x for x in (step_t, jump_t) if x is not None]
    if both and len(torch.cat(both).unique()) < sum(map(len, both)):
        raise InvalidProblem(
            "`step_t` and `jump_t` must not have any repeated elements between them, got "
            f"{[x.tolist() for x in both]}. Remove them."
        )
    numbers = cast("dict[str, Any]", values)
    return AdaptiveOptions(norm=norm, max_num_steps=most, step_t=step_t, jump_t=jump_t, **numbers)


def _check_rule(values: dict[str, float | None]) -> None:
    first, least, most = values["first_step"], values["min_step"] or 0.0, values["max_step"] or 0.0
    safety, grow, shrink = (values[name] or 0.0 for name in ("safety", "ifactor", "dfactor"))
    if not (0 <= least <= most and most > 0 and (first is None or first > 0)):
        raise InvalidProblem(
            "`first_step`, `min_step` and `max_step` must be positive and in order, got "
            f"{first!r}, {least!r} and {most!r}. Exchange them."
        )
    if not (0 < safety <= 1 and 0 < shrink < 1 < grow):
        raise InvalidProblem(
            "`safety`, `ifactor` and `dfactor` must obey 0 < safety <= 1 and 0 < dfactor < 1 < "
            f"ifactor, got {safety!r}, {grow!r} and {shrink!r}. The defaults are 0.9, 10 and 0.2."
        )


def _grid(given: dict[str, Any]) -> GridOptions:
    size: Any = given.get("step_size")
    construct: Any = given.get("grid_constructor")
    if size is not None and construct is not None:
        raise InvalidProblem(
            "`step_size` and `grid_constructor` are mutually exclusive, got both. Leave one out."
        )
    if size is not None:
        size = _number("step_size", size)
        if size is None or not 0 < size < math.inf:
            raise InvalidProblem(
                f"`step_size` must be finite and positive, got {given['step_size']!r}. "
                "Its sign follows from `t`."
            )
    if construct is not None and not callable(construct):
        raise InvalidProblem(
            f"`grid_constructor` must be callable as (func, y0, t), got {construct!r}. "
            "Return the grid, a tensor."
        )
    interp = given.get("interp", "linear")
    if interp not in ("linear", "cubic"):
        raise InvalidProblem(f"`interp` must be 'linear' or 'cubic', got {interp!r}. Take one.")
    order, iters = given.get("max_order", 12), given.get("max_iters")
    if type(order) is not int or not 1 <= order <= 12:
        raise InvalidProblem(f"`max_order` must be an integer from 1 to 12, got {order!r}.")
    if iters is not None and (type(iters) is not int or iters < 1):
        raise InvalidProblem(f"`max_iters` must be a positive integer, got {iters!r}.")
    return GridOptions(
        size, cast("Any", construct), interp, bool(given.get("perturb", False)), order, iters
    )


def _scipy(given: dict[str, Any]) -> ScipyOptions:
    for name, nothing in (("min_step", 0.0), ("max_step", math.inf)):
        if _number(name, given.get(name, nothing)) != nothing:
            raise Unsupported(
                f"the option {name} of scipy_solver is not honoured, got {given[name]!r}: ctflow's "
                "SciPy backend leaves the size of steps to SciPy's error control. Leave it out."
            )
    solver = given.get("solver", "LSODA")
    if solver not in SCIPY:
        raise InvalidProblem(f"`solver` must be one of {', '.join(SCIPY)}, got {solver!r}.")
    return ScipyOptions(SCIPY[solver])


def _number(name: str, value: object) -> float | None:
    if value is None and name == "first_step":
        return None
    try:
        number = float(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if math.isnan(number):
        raise InvalidProblem(f"`{name}` must be a number, got {value!r}. Pass a float.")
    return number


def _times(name: str, value: object) -> Tensor | None:
    if value is None:
        return None
    try:
        times = torch.as_tensor(cast("Any", value))
    except (TypeError, ValueError, RuntimeError):
        times = torch.zeros(())
    if times.dim() != 1 or times.is_complex():
        raise InvalidProblem(
            f"`{name}` must be a tensor of times, [K], got {value!r:.60}. "
            f"Write {name}=torch.tensor([0.5])."
        )
    return times.cpu().double() if len(times) else None
