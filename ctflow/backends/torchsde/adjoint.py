"""torchsde's stochastic adjoint behind a node of autograd's graph that knows every captured tensor.

The inner solve sees leaves alone: the initial state, and for each tensor that drift or diffusion
reads what stands in its place. The node outside hands their gradients on.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ctflow.backends.captures import Captures, pull, refuse_second
from ctflow.backends.protocol import Solver
from ctflow.backends.torchsde.dynamics import Dynamics
from ctflow.backends.torchsde.library import sdeint_adjoint
from ctflow.backends.torchsde.plan import keywords, quiet
from ctflow.backends.torchsde.tally import Stopped, Tally, Watched
from ctflow.errors import SolveFailed
from ctflow.sde import SDEProblem
from ctflow.solution import Stats

__all__ = ["Inner", "attach"]


@dataclass
class Inner:
    """The solve on leaves, kept for the backward pass.

    Attributes:
        y0: Leaf for the initial state, [B, D].
        leaves: What stood in the place of each captured tensor.
        out: States with torchsde's graph, [T, B, D].
        stats: Completed by the backward pass.
    """

    problem: SDEProblem
    solver: Solver
    dynamics: Dynamics
    watched: Watched
    y0: Tensor
    leaves: tuple[Tensor, ...]
    out: Tensor = field(init=False)
    stats: list[Stats] = field(default_factory=list[Stats])

    def solve(self) -> Tensor:
        """Call torchsde."""
        with quiet():
            return sdeint_adjoint(
                self.dynamics,
                self.y0,
                self.problem.t,
                bm=self.watched,
                adjoint_params=[leaf for leaf in self.leaves if leaf.numel()],
                **keywords(self.problem, self.solver),
            )

    def keep(self, captures: Captures) -> None:
        """Remember, inside `cut`, where the leaves stand; another `cut` would make new ones."""
        same = all(x is leaf for x, leaf in zip(captures.inputs, self.leaves, strict=True))
        field = self.dynamics.field
        self._captures = captures if same else Captures(self.dynamics.both, field)
        self._args = field.args

    @contextmanager
    def put_back(self) -> Generator[Captures]:
        """Let every place hold the leaf that it held in the forward pass."""
        with self._captures.cut():
            self.dynamics.field.args = self._args  # `cut` puts back what was there before it
            yield self._captures

    @torch.no_grad()
    def pull_back(self, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradient of y0 and of each leaf, from that of the outputs g [T, B, D].

        Raises:
            SolveFailed: If the backward solve did not get to the start.
            Unsupported: If drift or diffusion used a tensor that the forward pass could not name.
        """
        inputs = (self.y0, *self.leaves)
        size = g.abs().amax()
        if not bool(torch.isfinite(size)):
            return tuple(torch.full_like(x, torch.nan) for x in inputs)
        scale = torch.where(size > 0, size, 1.0)  # linear in g: tolerances are for size 1
        end = float(self.problem.t[-1])
        tally = Tally(self.solver.step is None, self.solver.max_steps, end, backwards=True)
        dynamics = self.dynamics
        dynamics.tally = self.watched.tally = tally
        with self.put_back() as captures, quiet():
            dynamics.inspect = partial(_inspect, captures, self.leaves)
            try:
                found = pull([self.out], inputs, [g / scale], keep=True)
            except Stopped:
                raise SolveFailed(
                    f"the stochastic adjoint's backward solve stopped with {tally.status.name} at "
                    f"t={-tally.trace[-1]:g}. Use gradient='direct', or a smaller `step`."
                ) from None
            finally:
                dynamics.inspect = None
        tally.finish()
        for stats in self.stats:
            stats.backward = tally.counts()
        return tuple(None if x is None else x * scale.to(x.dtype) for x in found)


def _inspect(
    captures: Captures, leaves: tuple[Tensor, ...], value: Tensor, y: Tensor, marker: int, t: Tensor
) -> None:
    """Refuse what the forward pass could not have known."""
    captures.recheck(value, y, marker, leaves, t)


def attach(inner: Inner, y0: Tensor, captures: Captures) -> Tensor:
    """The outputs as a function of the initial state and of every captured tensor."""
    return _Adjoint.apply(inner, y0, *captures.inputs)  # pyright: ignore


class _Adjoint(torch.autograd.Function):
    """The solve as one node of autograd's graph."""

    @staticmethod
    def forward(ctx: Any, inner: Inner, y0: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401
        """Hand on what the inner solve found."""
        ctx.save_for_backward(y0, *inputs)
        ctx.inner = inner
        ctx.set_materialize_grads(False)
        return inner.out.detach().clone()  # torchsde keeps its own, which nobody may change

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:  # noqa: ANN401
        """Let torchsde solve the adjoint equation."""
        saved = ctx.saved_tensors  # also checks that nothing was changed in place
        (g,) = gradients
        if g is None:
            return (None,) * (1 + len(saved))
        found = ctx.inner.pull_back(g)
        asked = [
            x if need else None for x, need in zip(found, ctx.needs_input_grad[1:], strict=True)
        ]
        return None, *refuse_second(asked, "adjoint", (g, *saved))
