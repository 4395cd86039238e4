"""Drift and diffusion of a problem in the form that torchsde integrates, checked and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ctflow.backends.captures import pull, sequence_number
from ctflow.backends.field import Field, in_this_thread
from ctflow.backends.torchsde.tally import Tally
from ctflow.errors import InvalidProblem
from ctflow.problem import ODEProblem
from ctflow.sde import SDEProblem
from ctflow.solution import Status
from ctflow.state import Layout

__all__ = ["Both", "Dynamics", "Inspect"]

Inspect = Callable[[Tensor, Tensor, int, Tensor], None]
"""Called with a value, the state, the number of the next node before, and the time."""


class Both:
    """Drift and diffusion as one object, so that one search finds the tensors of both."""

    def __init__(self, problem: SDEProblem) -> None:
        self.f, self.g = problem.f, problem.g

    def __call__(self, t: Tensor, y: Tensor, *args: Any) -> Any:  # noqa: ANN401
        """Evaluate the drift."""
        return self.f(t, y, *args)


class Dynamics:
    """The object with `f` and `g` that torchsde asks for.

    Args:
        problem: What is asked.
        tally: Counts the drift's evaluations; may be replaced.

    Attributes:
        noise_type: As torchsde calls it.
        sde_type: As torchsde calls it.
        both: The problem without its noise, for `Captures`.
        field: Holds `args`, which `Captures` replaces in the backward pass.
        inspect: Called after each evaluation that has a graph.
        watch: The same for a solve that is not recorded: each evaluation gets a graph for it.
        n_noises: Brownian motions of each sample, known once `probe` was called.
    """

    def __init__(self, problem: SDEProblem, tally: Tally) -> None:
        self.noise_type: str = problem.noise
        self.sde_type: str = problem.calculus
        self.both = ODEProblem(Both(problem), problem.y0, problem.t, problem.params, problem.args)
        self.field = Field(self.both, Layout.of(problem.y0, per_sample=False))
        self.tally = tally
        self.inspect: Inspect | None = None
        self.watch: Inspect | None = None
        self._problem = problem
        self.n_noises = 0

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift, [B, D]."""
        self.tally.n_f_evals += 1
        return self._evaluated("f", self._problem.f, t, y)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        """Diffusion, [B, D] or [B, D, M]."""
        return self._evaluated("g", self._problem.g, t, y)

    def _evaluated(self, name: str, call: Callable[..., Any], t: Tensor, y: Tensor) -> Tensor:
        marker = sequence_number()
        time = t.detach().to(y.dtype)
        has_args = self._problem.args is not None
        call = in_this_thread(call, y.device)
        with torch.set_grad_enabled(self.watch is not None or torch.is_grad_enabled()):
            value = call(time, y, self.field.args) if has_args else call(time, y)
        self._check(name, value, y)
        if self.watch is not None:
            self.watch(value, y, marker, time)
        if self.inspect is not None and torch.is_grad_enabled():
            self.inspect(value, y, marker, time)
        if not bool(torch.isfinite(value.detach()).all()):
            self.tally.f_is_finite = False
            self.tally.stop(Status.NON_FINITE)
        return value

    def _check(self, name: str, value: object, y: Tensor) -> None:
        rank = 2 if name == "f" or self.noise_type == "diagonal" else 3
        fits = isinstance(value, Tensor) and value.dim() == rank and value.shape[:2] == y.shape
        if not isinstance(value, Tensor) or not fits or value.dtype != y.dtype:
            form = "[B, D]" if rank == 2 else "[B, D, M]"
            got = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise InvalidProblem(
                f"`{name}` must return a tensor {form} of the dtype of `y` "
                f"({y.dtype} {list(y.shape)}) for {self.noise_type} noise, got {got:.80}. "
                "Change it, or say which `noise` it is."
            )
        if rank == 3 and self.noise_type == "scalar" and value.shape[2] != 1:
            raise InvalidProblem(
                f"`{name}` of scalar noise must be [B, D, 1], got {list(value.shape)}. "
                "Use noise='general' for several Brownian motions."
            )

    def probe(self, t: Tensor, y: Tensor) -> Tensor:
        """Drift and diffusion side by side, [1, ...], with their graph; checks additive noise.

        Args:
            t: Time of the start.
            y: A leaf that wants a gradient, [B, D].

        Raises:
            InvalidProblem: If a diffusion called additive depends on the state.
        """
        drift, diffusion = self.f(t, y), self.g(t, y)
        if self.noise_type == "additive" and diffusion.requires_grad:
            self._check_additive(diffusion, y)
        self.n_noises = diffusion.shape[-1]
        return torch.cat([drift.reshape(1, -1), diffusion.reshape(1, -1)], dim=1)

    def _check_additive(self, value: Tensor, y: Tensor) -> None:
        """Refuse a diffusion that moves with the state: schemes for additive noise ignore that."""
        (moves,) = pull([value], [y], [torch.ones_like(value)], keep=True)
        if moves is not None and bool((moves != 0).any()):
            raise InvalidProblem(
                "`g` of additive noise must not depend on `y`, got one that does. "
                "Use noise='general'."
            )
