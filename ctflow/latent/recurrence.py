"""The paper's recurrence h_i = tanh(W_x x_i + b_x + W_h h_{i-1} + b_h), run with little overhead.

Torch's own records four operations for each step, which for small networks take longer than the
arithmetic; here the steps are taken in place, and their derivative is one product for all of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ctflow.transforms import bare

__all__ = ["states_of"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TANH_BACKWARD = torch.ops.aten.tanh_backward.grad_input


def states_of(recurrence: nn.RNNBase, x: Tensor) -> Tensor:
    """The states of a recurrent network after each step of x [B, n, F], from zero: [B, n, H].

    Args:
        recurrence: `torch.nn.RNN` or `torch.nn.GRU`, batch first, of one layer.
        x: What it reads.

    Cost:
        For the tanh recurrence on the CPU about two thirds of torch's own time; else torch's own.
    """
    if not (_is_plain(recurrence) and _is_bare(recurrence) and x.device.type == "cpu"):
        states, _ = recurrence(x)
        return states
    weights: list[Tensor] = recurrence.all_weights[0]  # pyright: ignore
    return _Recurrence.apply(x, *weights)  # pyright: ignore


def _is_plain(recurrence: nn.RNNBase) -> bool:
    """Whether it is the recurrence above."""
    if type(recurrence) is not nn.RNN or recurrence.nonlinearity != "tanh":
        return False
    one = recurrence.num_layers == 1 and not recurrence.bidirectional
    return one and recurrence.bias and recurrence.batch_first


def _is_bare(recurrence: nn.Module) -> bool:
    """Whether nobody would notice that the module itself is not called."""
    hooked = any(vars(recurrence)[name] for name in _HOOKS)
    return bare() and not hooked and not torch.is_autocast_enabled("cpu")


class _Recurrence(torch.autograd.Function):
    """All steps at once."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        w_x: Tensor,
        w_h: Tensor,
        b_x: Tensor,
        b_h: Tensor,
    ) -> Tensor:
        states = torch.nn.functional.linear(x.transpose(0, 1), w_x, b_x + b_h)
        before, *rest = states.unbind(0)
        before.tanh_()
        turned = w_h.t()
        for now in rest:
            before = now.addmm_(before, turned).tanh_()
        ctx.save_for_backward(x, w_x, w_h, b_x, b_h, states)
        return states.transpose(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        (g,) = gradients
        x, w_x, w_h, b_x, b_h, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # this derivative will be differentiated itself
            return _by_autograd((x, w_x, w_h, b_x, b_h), g, ctx.needs_input_grad)
        slopes = torch.empty_like(states)
        ahead: Tensor | None = None
        steps = zip(g.unbind(1), states.unbind(0), slopes.unbind(0), strict=True)
        for wanted, state, slope in reversed(list(steps)):
            whole = wanted if ahead is None else torch.addmm(wanted, ahead, w_h)
            ahead = _TANH_BACKWARD(whole, state, grad_input=slope)
        rows, read = slopes.flatten(0, 1), x.transpose(0, 1).flatten(0, 1)
        of_bias = rows.sum(0)
        return (
            (slopes @ w_x).transpose(0, 1) if ctx.needs_input_grad[0] else None,
            (read.t() @ rows).t(),  # a third of the other way round
            slopes[1:].flatten(0, 1).t() @ states[:-1].flatten(0, 1),
            of_bias,
            of_bias,
        )


def _by_autograd(
    inputs: tuple[Tensor, ...], g: Tensor, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The same derivative, step by step, with a graph of its own."""
    x, w_x, w_h, b_x, b_h = inputs
    state, states = x.new_zeros(len(x), len(w_h)), list[Tensor]()
    for step in x.unbind(1):
        state = torch.tanh(step @ w_x.t() + b_x + state @ w_h.t() + b_h)
        states.append(state)
    asked = [value for value, wanted in zip(inputs, needed, strict=True) if wanted]
    found = iter(torch.autograd.grad(torch.stack(states, 1), asked, g, create_graph=True))
    return tuple(next(found) if wanted else None for wanted in needed)
