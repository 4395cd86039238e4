"""What was followed is held against `f` itself, where its solve begins, before it is trusted.

Following an `f` takes its Python at its word, and a network that is recognised is written anew: a
fault in either would give another function, and right solutions of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ctflow.backends.compiled.reads import Reads
from ctflow.backends.compiled.trace import Traced
from ctflow.backends.compiled.trial import distances, nudged
from ctflow.backends.field import Field
from ctflow.errors import Unsupported
from ctflow.state import as_real

__all__ = ["check_followed"]

_ROUGH = 1e-2  # rounding may move a few activations over a kink
_STARTS = (1, 2)  # how far each lies from the first, in units of rounding


def check_followed(
    field: Field,
    traced: Traced,
    inputs: tuple[Tensor, Tensor],
    reads: Reads,
    given: Sequence[Tensor],
) -> None:
    """Compare graphs with the function that they were made of: its value, and all products.

    Args:
        field: The function.
        traced: The graphs.
        inputs: t [B] and y [B, N].
        reads: The tensors that the function reads.
        given: What the graphs take in their place.

    Raises:
        Unsupported: If they differ, also a few units of rounding beside y.

    Cost:
        Two evaluations of `f`, and two of its vector-Jacobian product where one is wanted.
    """
    t, y = inputs
    if _alike(field, traced, t, y, reads, given):
        return
    if any(_alike(field, traced, t, nudged([y], n)[0], reads, given) for n in _STARTS):
        return
    raise Unsupported(
        "backend 'compiled' followed `f` into operations that give other values than `f` does. "
        "Keep `f` from depending on how or when it is called (`torch.is_grad_enabled()`, caches, "
        "hooks), or use backend='native'."
    )


def _alike(
    field: Field,
    traced: Traced,
    t: Tensor,
    y: Tensor,
    reads: Reads,
    given: Sequence[Tensor],
) -> bool:
    with torch.no_grad():
        pairs = [(field(t, y), traced.value(t, y, *given))]
    if traced.pulled is not None:
        cotangent = torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y)
        leaves = [x.detach() for x in reads.tensors]  # one may have been computed from another
        inner = [leaves[i].requires_grad_() for i in traced.wanted]
        with torch.enable_grad(), reads.replaced(field, leaves):
            state = y.detach().requires_grad_()
            dy = field(t, state)
            found: Sequence[Tensor] = [torch.zeros_like(x) for x in (state, *inner)]
            if dy.requires_grad:
                found = torch.autograd.grad(
                    dy, (state, *inner), cotangent, allow_unused=True, materialize_grads=True
                )
        with torch.no_grad():
            theirs = traced.pulled(t, y, cotangent, *given)
        ours = [dy.detach(), *(as_real(x) for x in found)]
        pairs += list(zip(ours, theirs, strict=True))
    return max(distances(pairs)) <= _ROUGH
