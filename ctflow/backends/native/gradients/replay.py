"""Taking recorded steps again: who stands in for samples that failed."""

from __future__ import annotations

import torch
from torch import Tensor

from ctflow.backends.native.loop import Outcome
from ctflow.backends.native.observers import Hits

__all__ = ["exchange", "hits_of_the_well", "well"]


def well(outcome: Outcome) -> Tensor | None:
    """For each sample, a sample whose steps may be taken again: itself, or a healthy one.

    A failed sample may have left `f` or its derivative non-finite; with a zero cotangent that
    would still be 0 * inf = NaN in the gradient of shared parameters.

    Returns:
        Row numbers [B], or None if no sample is well.
    """
    failed = outcome.status != 0
    if bool(failed.all()):
        return None
    own = torch.arange(len(failed))
    return torch.where(failed, own[~failed][0], own) if outcome.stops else own


def exchange(source: Tensor, x: Tensor) -> Tensor:
    """Rows of x as `well` says; x itself where every sample stands for itself."""
    own = torch.arange(len(source))
    return x if bool((source == own).all()) else x[source.to(x.device)]


def hits_of_the_well(source: Tensor, hits: Hits) -> Hits:
    """The output times of samples that stand for themselves.

    Those of a failed sample would fall outside the steps of the one that stands in for it, where
    the interpolant may be infinite; they are constants of the gradient anyway.
    """
    where = source.to(hits.row.device)
    own = where[hits.row] == hits.row
    return hits if bool(own.all()) else Hits(*(x[own] for x in hits))
