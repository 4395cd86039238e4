"""The backward pass of an adjoint as a node of autograd's graph, whoever solves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ctflow.backends.captures import Autocast, refuse_second, refuse_several

__all__ = ["PullBack", "attach_adjoint", "pulled_back", "remember"]

PullBack: TypeAlias = Callable[[Tensor, Tensor], list[Tensor]]
"""Outputs and their gradient, [T, B, N] each, to those of y0 and of each captured tensor."""


def attach_adjoint(
    pull_back: PullBack, out: Tensor, y0: Tensor, inputs: Sequence[Tensor]
) -> Tensor:
    """The outputs of a complete solve, with the adjoint as their gradient.

    Args:
        pull_back: Solves the adjoint equation.
        out: States at the output times, [T, B, N], without a history.
        y0: Initial state, [B, N].
        inputs: What f reads beside t and y.

    Returns:
        The same states, differentiable once by y0 and every input.

    Cost:
        Memory of the outputs, and in the backward pass what `pull_back` takes.
    """
    return _Adjoint.apply(pull_back, out, y0, *inputs)  # pyright: ignore


def remember(ctx: Any, out: Tensor, inputs: Sequence[Tensor]) -> None:  # noqa: ANN401
    """Keep for `pulled_back` what a node's forward pass found."""
    ctx.save_for_backward(out, *inputs)
    ctx.autocast = Autocast.now(out.device.type)


def pulled_back(
    ctx: Any,  # noqa: ANN401
    gradients: tuple[Tensor, ...],
    pull_back: PullBack,
    n_constant: int,
) -> list[Tensor | None]:
    """Gradients of a node's arguments, but for the first `n_constant`, which have none."""
    refuse_several(gradients, "adjoint")
    out, *inputs = ctx.saved_tensors  # also checks that nothing was changed in place
    with torch.no_grad(), ctx.autocast.again():
        found = pull_back(out.detach(), gradients[0])
    needed = ctx.needs_input_grad[n_constant:]
    asked = [g if need else None for g, need in zip(found, needed, strict=True)]
    return [*refuse_second(asked, "adjoint", (gradients[0], out, *inputs))]


class _Adjoint(torch.autograd.Function):
    """A solve that was done already as one node."""

    @staticmethod
    def forward(ctx: Any, pull_back: PullBack, out: Tensor, y0: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ANN401, ARG004
        """Hand the states on."""
        result = out.clone()  # `out` stays as it is, whatever is done to the result
        remember(ctx, result, inputs)
        ctx.pull_back = pull_back
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        """Solve the adjoint equation."""
        return None, None, *pulled_back(ctx, gradients, ctx.pull_back, 2)
