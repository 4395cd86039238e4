"""What is asked of a stochastic solve: an initial value problem with noise, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from ctflow.errors import InvalidProblem, Unsupported
from ctflow.problem import ODEProblem, check_callable
from ctflow.transforms import active

__all__ = ["BrownianPath", "Calculus", "Noise", "SDEProblem"]

Calculus: TypeAlias = Literal["ito", "stratonovich"]
Noise: TypeAlias = Literal["diagonal", "scalar", "additive", "general"]

_CALCULI = ("ito", "stratonovich")
_NOISES = ("diagonal", "scalar", "additive", "general")


@runtime_checkable
class BrownianPath(Protocol):
    """One path of Brownian motion for each sample, kept, so that solves can share it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """[B, M]."""
        ...

    def __call__(self, ta: Any, tb: Any) -> Any:  # noqa: ANN401 - numbers or 0-dim tensors
        """W(tb) - W(ta), [B, M]."""
        ...


@dataclass(frozen=True, eq=False)
class SDEProblem:
    """A stochastic differential equation  dy = f(t, y) dt + g(t, y) dW,  with output at every `t`.

    Args:
        f: Drift `f(t, y)`, or `f(t, y, args)` where `args` is given: [B, D] -> [B, D]. `t` arrives
            0-dim in the dtype of `y`.
        g: Diffusion with the same arguments: [B, D] for diagonal noise, [B, D, 1] for scalar,
            [B, D, M] for additive (it must not depend on `y`) and general noise.
        y0: Initial state, [B, D], floating; row b is one system with noise of its own.
        t: Output times, [T] with T >= 2, strictly increasing; `t[0]` is where `y0` holds. No
            gradient reaches it.
        params: Tensors wanted a gradient for that ctflow could not find by itself.
        args: Handed to `f` and `g`; a gradient reaches its tensors.
        noise: How `g` acts on the Brownian motion.
        calculus: "ito" or "stratonovich": what dW means.
        seed: Of the Brownian motion: the same seed and the same settings give the same numbers.
            None draws one from torch's global generator; the attribute then holds it.
        path: A Brownian path to follow instead, which several solves may share:
            `ctflow.backends.torchsde.brownian_path`, of the dtype of `y0` and over all of `t`.

    Raises:
        InvalidProblem: For anything above that does not hold.
        Unsupported: Under torch.func transforms and in forward mode.

    Example:
        >>> problem = SDEProblem(lambda t, y: -y, lambda t, y: 0.1 * y, torch.ones(7, 2), [0, 1.0])
        >>> problem.noise, problem.calculus
        ('diagonal', 'ito')
    """

    f: Callable[..., Any]
    g: Callable[..., Any]
    y0: Tensor
    t: Tensor
    params: tuple[Tensor, ...] | None = None
    args: Any = None
    noise: Noise = "diagonal"
    calculus: Calculus = "ito"
    seed: int | None = None
    path: BrownianPath | None = None

    def __post_init__(self) -> None:
        """Check everything that can be checked without calling `f` or `g`."""
        _check_choice("noise", self.noise, _NOISES)
        _check_choice("calculus", self.calculus, _CALCULI)
        check_callable(self.g, "`g`", self.args is not None)
        if not isinstance(self.y0, Tensor) or self.y0.is_complex():  # pyright: ignore[reportUnnecessaryIsInstance]
            what = getattr(self.y0, "dtype", type(self.y0).__name__)
            raise InvalidProblem(
                f"`y0` of an SDE must be a real tensor [B, D], got {what}. Put the parts side by "
                "side in dimension 1."
            )
        drift = ODEProblem(self.f, self.y0, self.t, self.params, self.args)
        if self.y0.dim() != 2:
            raise InvalidProblem(
                f"`y0` of an SDE must be [B, D], got shape {list(self.y0.shape)}. "
                "Make dimension 0 the batch, and flatten the rest."
            )
        if active():
            raise Unsupported(
                "stochastic equations under torch.func transforms or in forward mode are not "
                "offered. Use backward() or torch.autograd.grad; dimension 0 of `y0` is a batch."
            )
        t = drift.t
        if t.dim() == 2 or t.requires_grad or float(t[1]) < float(t[0]):
            raise InvalidProblem(
                "`t` of an SDE must be [T], increasing, and want no gradient, got shape "
                f"{list(t.shape)} from {t.flatten()[0].item():g} to {t.flatten()[-1].item():g}"
                f"{' with a gradient' if t.requires_grad else ''}. A path of noise is drawn "
                "forwards, and is not differentiable in time."
            )
        object.__setattr__(self, "t", t)
        object.__setattr__(self, "params", drift.params)
        _check_source(self.seed, self.path, len(self.y0))
        if self.seed is None and self.path is None:
            object.__setattr__(self, "seed", int(torch.randint(2**62, ())))


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidProblem(
            f"`{name}` must be one of {', '.join(map(repr, choices))}, got {value!r}. Choose one."
        )


def _check_source(seed: object, path: object, batch: int) -> None:
    if seed is not None and path is not None:
        raise InvalidProblem(
            f"`seed` and `path` exclude each other, got seed={seed!r} beside a path. Give one."
        )
    if seed is not None and (type(seed) is not int or seed < 0):
        raise InvalidProblem(f"`seed` must be a non-negative integer, got {seed!r}. Write seed=0.")
    if path is None:
        return
    if not isinstance(path, BrownianPath) or len(path.shape) != 2 or path.shape[0] != batch:
        raise InvalidProblem(
            f"`path` must be Brownian motion of shape [{batch}, M], got "
            f"{type(path).__name__}{list(getattr(path, 'shape', []))}. Make one with "
            "ctflow.backends.torchsde.brownian_path."
        )
